"""Hymba-1.5B: 25 query heads over 5, widths 64 and 128, 128 pinned keys, a window of 1,024; 3,200 scan channels."""

# Inputs are kept in lists and unpacked into operators:
# pyright: reportCallIssue=false

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import nlrl_kernels
from nlrl_kernels.bench.alternatives import vllm_flash_attention
from nlrl_kernels.bench.case import Case, Check, Plan, Run, Size, nbytes
from nlrl_kernels.mamba_scan import reference as scan_reference
from nlrl_kernels.mamba_scan import tolerance as scan_tolerance
from nlrl_kernels.window_attention import reference as attention_reference
from nlrl_kernels.window_attention import tolerance as attention_tolerance

_PAGE, _STATES = 16, 16


def plans(size: Size) -> Iterator[Plan]:
    """Attention in prefill and decode, scans in training, prefill and decode."""
    prefills = [(1, length, length) for length in size.pick([8192, 2048, 32768], [20])]
    decodes = [(3, 1, 30)] if size.tiny else [(64, 1, 8192), (64, 1, 1024), (1, 1, 8192), (256, 1, 2048)]
    for rows, count, context in prefills + (decodes[:1] if size.quick else decodes):
        label = f"{rows} x {count} of {context}, window 1024"
        yield Plan("pinned_window_attention", label, lambda r=rows, n=count, c=context: _attention(size, r, n, c))
    for batch, time in [(2, 5)] if size.tiny else [(1, 2048), (16, 2048), (1, 32768)]:
        yield Plan("selective_scan_varlen", f"{batch} x {time}", lambda b=batch, t=time: _prefill(size, b, t))
        if size.quick:
            break
    for rows in size.pick([64, 1, 256], [3]):
        yield Plan("selective_state_update", f"{rows} rows", lambda r=rows: _update(size, r))
    for batch, time in [(2, 5)] if size.tiny else [(4, 2048)]:
        yield Plan(
            "selective_scan", f"{batch} x {time}, forward and backward", lambda b=batch, t=time: _scan(size, b, t)
        )


def _attention(size: Size, rows: int, count: int, context: int) -> Case:
    kv_heads, group, width_k, width_v, metas = (1, 2, 16, 32, 5) if size.tiny else (5, 5, 64, 128, 128)
    window, blocks = 7 if size.tiny else 1024, -(-context // _PAGE)
    pages = size.normal(rows * blocks + 1, _PAGE, kv_heads, width_k + width_v)
    k_pages, v_pages = pages[..., :width_k], pages[..., width_k:]
    table = torch.randperm(rows * blocks, device=size.device).add(1).to(torch.int32).view(rows, blocks)
    q = size.normal(rows * count, kv_heads * group, width_k)
    meta_k, meta_v = size.normal(kv_heads, metas, width_k), size.normal(kv_heads, metas, width_v)
    lengths = torch.full((rows,), context, dtype=torch.int32, device=size.device)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=size.device) * count
    out = torch.empty(rows * count, kv_heads * group, width_v, dtype=size.dtype, device=size.device)
    settings = {"meta_k_HMD": meta_k, "meta_v_HMD": meta_v, "window": window, "scale": width_k**-0.5}

    def run() -> torch.Tensor:
        return nlrl_kernels.pinned_window_attention(
            q, k_pages, v_pages, table, lengths, starts, out_THD=out, max_query_len=count, **settings
        )

    def check() -> Iterator[Check]:
        out.fill_(float("nan"))
        found, some = run(), min(count, 64)
        last = torch.tensor([0, some], device=size.device)
        expected = torch.empty(some, *out.shape[1:], device=size.device)
        attention_reference.pinned_window_attention(
            q[-some:].float(), k_pages, v_pages, table[-1:], lengths[-1:], last,
            out_THD=expected, max_query_len=some, **settings,
        )  # fmt: skip
        yield "last queries", found[-some:], expected, attention_tolerance.FORWARD[size.dtype]

    def full_cache() -> Run:
        function, version = vllm_flash_attention()
        cache = size.normal(rows * blocks + 1, _PAGE, kv_heads, 2 * width_v)
        wide_q = F.pad(q, (0, width_v - width_k))
        return lambda: function(
            wide_q, cache[..., :width_v], cache[..., width_v:], count, starts, context, seqused_k=lengths,
            block_table=table, softmax_scale=width_k**-0.5, causal=True, fa_version=version,
        )  # fmt: skip

    def flex() -> Run:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def seen(b: object, h: object, q_at: torch.Tensor, k_at: torch.Tensor) -> torch.Tensor:
            j = k_at - metas
            return (k_at < metas) | ((j <= q_at) & (q_at - j <= window))

        mask = create_block_mask(seen, None, None, context, metas + context, device=size.device)
        k, v = (size.normal(1, kv_heads, metas + context, w) for w in (width_k, width_v))
        compiled = torch.compile(flex_attention, dynamic=False)
        queries = q.transpose(0, 1)[None]
        return lambda: compiled(queries, k, v, block_mask=mask, scale=width_k**-0.5, enable_gqa=True)

    seen_keys = metas + min(context, window + 1)
    pairs = rows * count * seen_keys
    keys_read = rows * (min(context, window + count) + metas)
    moved = keys_read * kv_heads * (width_k + width_v) * pages.element_size() + nbytes(q, out)
    alternatives = {"FlashAttention (vLLM), full cache": full_cache}
    if rows == 1 and count == context:
        alternatives["FlexAttention, compiled"] = flex
    return Case(run, check, moved, pairs * kv_heads * group * 2 * (width_k + width_v), alternatives)


def _scan_inputs(size: Size, *leading: int) -> dict[str, torch.Tensor]:
    channels = 8 if size.tiny else 3200
    return {
        "u": size.normal(*leading, channels),
        "delta": F.softplus(size.normal(*leading, channels)),
        "A": -torch.rand(channels, _STATES, device=size.device) - 0.1,
        "B": size.normal(*leading, _STATES),
        "C": size.normal(*leading, _STATES),
        "D": size.normal(channels, dtype=torch.float32),
    }


def _prefill(size: Size, batch: int, time: int) -> Case:
    inputs = _scan_inputs(size, batch * time)
    u, A = inputs["u"], inputs["A"]
    starts = torch.arange(batch + 1, dtype=torch.int32, device=size.device) * time
    states = torch.zeros(batch + 1, *A.shape, device=size.device)
    slots = torch.arange(1, batch + 1, dtype=torch.int32, device=size.device)
    fresh = torch.zeros(batch, dtype=torch.bool, device=size.device)
    rows = {"starts_R1": starts, "slots_R": slots, "has_state_R": fresh, "start_CN": torch.zeros_like(A)}

    def run() -> torch.Tensor:
        return nlrl_kernels.selective_scan_varlen(*inputs.values(), states_SCN=states, **rows)

    def check() -> Iterator[Check]:
        found = run()
        few = min(time, 256)  # the reference is a loop over time
        of_first = {key: x if key in "AD" else x[:few].float()[None] for key, x in inputs.items()}
        expected, _ = scan_reference.selective_scan(*of_first.values())
        yield f"first {few} tokens", found[:few], expected[0], scan_tolerance.FORWARD[size.dtype]

    def vllm() -> Run:
        from vllm.model_executor.layers.mamba.ops.mamba_ssm import selective_scan_fn

        u_CT, delta_CT = (inputs[key].t().contiguous() for key in ("u", "delta"))
        B, C = (inputs[key].t().contiguous()[None] for key in ("B", "C"))
        return lambda: selective_scan_fn(
            u_CT, states, delta_CT, A, B, C, inputs["D"], None, query_start_loc=starts, cache_indices=slots,
            has_initial_state=fresh,
        )  # fmt: skip

    moved = nbytes(*inputs.values()) + nbytes(u) + nbytes(states)
    return Case(run, check, moved, alternatives={"vLLM selective_scan_fn": vllm})


def _update(size: Size, rows: int) -> Case:
    inputs = _scan_inputs(size, rows)
    slots = torch.arange(1, rows + 1, dtype=torch.int32, device=size.device)
    states = size.normal(rows + 1, *inputs["A"].shape, dtype=torch.float32)

    def run() -> torch.Tensor:
        return nlrl_kernels.selective_state_update(*inputs.values(), states_SCN=states, slots_R=slots)

    def check() -> Iterator[Check]:
        before = states.clone()
        found = run()
        wide = [x.float() for x in inputs.values()]
        expected = scan_reference.selective_state_update(*wide, states_SCN=before, slots_R=slots)
        yield "output", found, expected, scan_tolerance.FORWARD[size.dtype]
        yield "states", states, before, scan_tolerance.FORWARD[torch.float32]

    def vllm() -> Run:
        from vllm.model_executor.layers.mamba.ops.mamba_ssm import selective_state_update

        out = torch.empty_like(inputs["u"])
        return lambda: selective_state_update(states, *inputs.values(), None, state_batch_indices=slots, out=out)

    moved = 2 * rows * states[0].numel() * 4 + nbytes(*inputs.values(), inputs["u"])
    return Case(run, check, moved, alternatives={"vLLM selective_state_update": vllm})


def _scan(size: Size, batch: int, time: int) -> Case:
    inputs = {key: x.float().requires_grad_() for key, x in _scan_inputs(size, batch, time).items()}
    dy = torch.randn_like(inputs["u"])

    def step(time: int) -> tuple[torch.Tensor, ...]:
        short = [x if key in "AD" else x[:, :time] for key, x in inputs.items()]
        return torch.autograd.grad(nlrl_kernels.selective_scan(*short)[0], list(inputs.values()), dy[:, :time])

    def check() -> Iterator[Check]:
        few = min(time, 128)
        short = [x if key in "AD" else x[:, :few] for key, x in inputs.items()]
        exact = torch.autograd.grad(scan_reference.selective_scan(*short)[0], list(inputs.values()), dy[:, :few])
        for key, found, expected in zip(inputs, step(few), exact, strict=True):
            yield f"gradient of {key}", found, expected, scan_tolerance.BACKWARD[torch.float32]

    def compiled() -> Run:
        definition = torch.compile(scan_reference.selective_scan, dynamic=False)
        few = min(time, 128)  # a loop over time: its compilation takes as long as it has steps
        short = [x if key in "AD" else x[:, :few] for key, x in inputs.items()]
        return lambda: torch.autograd.grad(definition(*short)[0], list(inputs.values()), dy[:, :few])

    moved = 3 * nbytes(*inputs.values()) + 2 * nbytes(dy)
    return Case(lambda: step(time), check, moved, alternatives={"torch.compile, 128 tokens of it only": compiled})
