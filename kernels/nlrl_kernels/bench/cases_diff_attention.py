"""Differential attention at the shapes of the paper's 3B model: 12 heads, maps of 128, values of 256; V2 beside it."""

# Inputs are kept in lists and unpacked into operators:
# pyright: reportCallIssue=false

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import nlrl_kernels
from nlrl_kernels.bench.alternatives import dense_attention, packed_attention, vllm_flash_attention
from nlrl_kernels.bench.case import Case, Check, Plan, Run, Size, UnavailableError, nbytes
from nlrl_kernels.diff_attention.reference import diff_attention
from nlrl_kernels.diff_attention.tolerance import BACKWARD, FORWARD

_PAGE = 16
_LAMBDA, _FACTOR, _EPS = 0.6, 0.4, 1e-5


def plans(size: Size) -> Iterator[Plan]:
    """Prefill of one long row, the rest of one in pages, a training step, and decode."""
    for length in size.pick([8192, 1024, 32768, 65536, 2048, 4096, 16384], [21]):
        for version in (1, 2) if length in (8192, 65536, 21) else (1,):
            label = f"V{version}, 1 x {length}"
            yield Plan("diff_attention_varlen", label, lambda v=version, n=length: _prefill(size, v, n))
    for length in size.pick([4096, 16384], [9]):
        label = f"V1, 1 x {length}, forward and backward"
        yield Plan("diff_attention_varlen_backward", label, lambda n=length: _training(size, n))
    for new, context in [(21, 37)] if size.tiny else [(2048, 8192), (8192, 65536)]:
        label = f"V1, last {new} of {context} in pages"
        yield Plan("diff_attention_paged", label, lambda n=new, c=context: _decode(size, 1, 1, c, n))
        if size.quick:
            break
    contexts = [(64, 8192), (1, 8192), (1, 65536), (256, 1024), (8, 8192), (32, 8192), (128, 2048), (256, 4096)]
    for rows, context in [(3, 40)] if size.tiny else contexts:
        for version in (1, 2) if context in (8192, 40) else (1,):
            label = f"V{version}, decode of {rows} x {context}"
            yield Plan("diff_attention_paged", label, lambda v=version, r=rows, c=context: _decode(size, v, r, c))
        if size.quick:
            break


def _shape(size: Size, version: int) -> tuple[int, int, int, int]:
    """Heads, cached heads, width of a map, width of a value."""
    heads, width = (2, 16) if size.tiny else (12, 128)
    return (heads, heads, width, 2 * width) if version == 1 else (2 * heads, heads, width, width)


def _packed(size: Size, version: int, tokens: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """(q1, q2, k1, k2, v, lambda), and the settings of scale and norm."""
    heads, cached, width, width_v = _shape(size, version)
    k1 = size.normal(tokens, cached, width)
    k2 = size.normal(tokens, cached, width) if version == 1 else k1
    queries, v = [size.normal(tokens, heads, width) for _ in range(2)], size.normal(tokens, cached, width_v)
    if version == 1:
        lam = torch.tensor(_LAMBDA, device=size.device)
        weight = size.normal(width_v, dtype=torch.float32)
        return [*queries, k1, k2, v, lam], _settings(width) | {"eps": _EPS, "factor": _FACTOR, "weight_W": weight}
    return [*queries, k1, k2, v, size.normal(tokens, heads).sigmoid()], _settings(width)


def _settings(width: int) -> dict[str, Any]:
    return {"scale": width**-0.5}


def _flops(heads: int, width: int, width_v: int, pairs: int) -> int:
    """Two products of scores and two with the values, for each visible pair."""
    return heads * pairs * (4 * width + 4 * width_v)


def _exact(inputs: list[torch.Tensor], settings: dict[str, Any], part: slice) -> torch.Tensor:
    """These queries of one row, by the reference in float64."""
    q1, q2, k1, k2, v, lam = (x.double() for x in inputs)
    keys = slice(0, part.stop)
    lam = lam if lam.ndim == 0 else lam[None, part]
    parts = (q1[None, part], q2[None, part], k1[None, keys], k2[None, keys], v[None, keys])
    return diff_attention(*parts, lam, **_wide(settings))[0]


def _wide(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with the norm's weight in float64."""
    return settings | ({"weight_W": settings["weight_W"].double()} if "weight_W" in settings else {})


def _finish(first: torch.Tensor, second: torch.Tensor, lam: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """What the authors' modules do behind attention."""
    o = first.float() - (lam if lam.ndim == 0 else lam[..., None]) * second.float()
    if "eps" in settings:
        o = o * torch.rsqrt(o.square().mean(-1, keepdim=True) + settings["eps"]) * settings["weight_W"]
        o = o * settings["factor"]
    return o.to(first.dtype)


def _composed(inputs: list[torch.Tensor], settings: dict[str, Any], attend: Callable[..., torch.Tensor]) -> Run:
    """Microsoft's composition: V1 four calls over halves of the values, V2 one call with both maps as heads."""
    q1, q2, k1, k2, v, lam = inputs
    finish = torch.compile(_finish, dynamic=False)
    if k1 is k2:
        q = torch.stack([q1, q2], dim=2).flatten(1, 2)

        def one_call() -> torch.Tensor:
            first, second = attend(q, k1, v).unflatten(1, (-1, 2)).unbind(2)
            return finish(first, second, lam, settings)

        return one_call
    halves = [half.contiguous() for half in v.chunk(2, dim=-1)]

    def four_calls() -> torch.Tensor:
        first, second = (torch.cat([attend(q, k, half) for half in halves], dim=-1) for q, k in ((q1, k1), (q2, k2)))
        return finish(first, second, lam, settings)

    return four_calls


def _padded(q1: torch.Tensor, q2: torch.Tensor) -> torch.Tensor:
    """The queries of the rewrite as ordinary attention: [q1; 0] and [0; q2], heads 2i and 2i + 1."""
    zeros = torch.zeros_like(q1)
    pair = [torch.cat([q1, zeros], dim=-1), torch.cat([zeros, q2], dim=-1)]
    return torch.stack(pair, dim=2).flatten(1, 2)


def _operator(inputs: list[torch.Tensor], settings: dict[str, Any], tokens: int) -> torch.Tensor:
    starts = torch.tensor([0, tokens], dtype=torch.int32, device=inputs[0].device)
    return _launch(inputs, settings, tokens, starts)


def _launch(inputs: list[torch.Tensor], settings: dict[str, Any], tokens: int, starts: torch.Tensor) -> torch.Tensor:
    return nlrl_kernels.diff_attention_varlen(
        *inputs, starts_R1=starts, key_starts_R1=starts, max_query_len=tokens, max_key_len=tokens, **settings
    )


def _prefill(size: Size, version: int, tokens: int) -> Case:
    inputs, settings = _packed(size, version, tokens)
    starts = torch.tensor([0, tokens], dtype=torch.int32, device=size.device)
    heads, _, width, width_v = _shape(size, version)

    def check() -> Iterator[Check]:
        found = _launch(inputs, settings, tokens, starts)
        for part in (slice(0, min(tokens, 64)), slice(max(0, tokens - 64), tokens)):
            name = f"queries {part.start} to {part.stop}"
            yield name, found[part], _exact(inputs, settings, part), FORWARD[size.dtype]

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return packed_attention(q, k, v, starts, tokens, settings["scale"])

    def rewrite() -> Run:
        q1, q2, k1, k2, v, lam = inputs
        q, k = _padded(q1, q2), torch.cat([k1, k2], dim=-1)
        finish = torch.compile(_finish, dynamic=False)

        def run() -> torch.Tensor:
            first, second = flash(q, k, v).unflatten(1, (-1, 2)).unbind(2)
            return finish(first, second, lam, settings)

        return run

    alternatives = {
        "FlashAttention (vLLM), composed": lambda: _composed(inputs, settings, flash),
        "sdpa, composed": lambda: _composed(
            inputs, settings, lambda q, k, v: dense_attention(q, k, v, settings["scale"])
        ),
    }
    if version == 1:
        alternatives["FlashAttention (vLLM), padded queries"] = rewrite
    moved = nbytes(*inputs[:3], inputs[4]) + (nbytes(inputs[3]) if version == 1 else 0)
    moved += tokens * heads * width_v * inputs[0].element_size()
    pairs = tokens * (tokens + 1) // 2
    run = lambda: _launch(inputs, settings, tokens, starts)  # noqa: E731
    return Case(run, check, moved, _flops(heads, width, width_v, pairs), alternatives)


def _training(size: Size, tokens: int) -> Case:
    inputs, settings = _packed(size, 1, tokens)
    trained = [x.requires_grad_() for x in (*inputs, settings["weight_W"])]
    starts = torch.tensor([0, tokens], dtype=torch.int32, device=size.device)
    heads, _, width, width_v = _shape(size, 1)
    dy = size.normal(tokens, heads, width_v)

    def step(result: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(result, trained, dy)

    def check() -> Iterator[Check]:
        """All gradients at full length would need the maps written out; they are compared on the first 512 tokens."""
        few = min(tokens, 512)
        short = [x if x.ndim == 0 else x[:few] for x in inputs]
        found = torch.autograd.grad(_operator(short, settings, few), trained, dy[:few])
        exact = torch.autograd.grad(_exact(short, settings, slice(0, few)), trained, dy[:few].double())
        for i, (one, other) in enumerate(zip(found, exact, strict=True)):
            yield f"gradient {i}", one, other, BACKWARD[size.dtype]

    def composed() -> Run:
        forward = _composed(inputs, settings, lambda q, k, v: dense_attention(q, k, v, settings["scale"]))

        def run() -> tuple[torch.Tensor, ...]:
            result = forward()
            assert isinstance(result, torch.Tensor)
            return step(result)

        return run

    run = lambda: step(_launch(inputs, settings, tokens, starts))  # noqa: E731
    # Backward forms the scores again and has, besides, four products a map with them and the values' gradient.
    flops = _flops(heads, width, width_v, tokens * (tokens + 1) // 2) * 7 // 2
    return Case(run, check, 3 * nbytes(*inputs) + 2 * nbytes(dy), flops, {"sdpa, composed": composed})


def _decode(size: Size, version: int, rows: int, context: int, new: int = 1) -> Case:
    """The last ``new`` tokens of each row over the pages of its context; one is a decode."""
    heads, cached, width, width_v = _shape(size, version)
    maps = 2 if version == 1 else 1
    blocks = -(-context // _PAGE)
    pages = size.normal(rows * blocks + 1, _PAGE, cached, maps * width + width_v)
    keys, v_pages = pages[..., : maps * width], pages[..., maps * width :]
    k1_pages = keys[..., :width]
    k2_pages = keys[..., width:] if version == 1 else k1_pages
    table = torch.randperm(rows * blocks, device=size.device).add(1).to(torch.int32).view(rows, blocks)
    lengths = torch.full((rows,), context, dtype=torch.int32, device=size.device)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=size.device) * new
    inputs, settings = _packed(size, version, rows * new)
    q1, q2, lam = inputs[0], inputs[1], inputs[5]
    out = torch.empty(rows * new, heads, width_v, dtype=size.dtype, device=size.device)
    cache = _Cache(k1_pages, k2_pages, v_pages, table, lengths, starts)

    def run() -> torch.Tensor:
        return nlrl_kernels.diff_attention_paged(
            q1, q2, k1_pages, k2_pages, v_pages, table, lengths, starts, lam,
            out_THW=out, max_query_len=new, **settings,
        )  # fmt: skip

    def check() -> Iterator[Check]:
        out.fill_(float("nan"))
        found = run()
        for row in {0, rows - 1}:
            gathered = [x[table[row].long()].flatten(0, 1)[:context] for x in (k1_pages, k2_pages, v_pages)]
            last = slice(row * new + max(0, new - 64), (row + 1) * new)
            lam_last = lam if lam.ndim == 0 else lam[None, last]
            exact = diff_attention(
                *(x.double()[None] for x in (q1[last], q2[last], *gathered)), lam_last, **_wide(settings)
            )
            yield f"row {row}", found[last], exact[0], FORWARD[size.dtype]

    moved = rows * context * cached * (maps * width + width_v) * pages.element_size() + nbytes(q1, q2, out)
    visible = sum(range(context - new + 1, context + 1)) if new > 1 else context
    alternatives = {
        "FlashAttention (vLLM), one call": lambda: _one_flash_call(inputs, settings, keys, cache, new, version),
        "FlashAttention (vLLM), composed": lambda: _composed_pages(inputs, settings, cache, new, version),
        "two passes of our paged attention": lambda: _two_passes(inputs, settings, cache, new),
    }
    return Case(run, check, moved, _flops(heads, width, width_v, rows * visible), alternatives)


@dataclass(frozen=True, slots=True)
class _Cache:
    """Pages of keys of both maps and of values, and where the rows are in them."""

    k1_pages: torch.Tensor
    k2_pages: torch.Tensor
    v_pages: torch.Tensor
    table: torch.Tensor
    lengths: torch.Tensor
    starts: torch.Tensor

    def flash(self, settings: dict[str, Any], new: int) -> Callable[..., torch.Tensor]:
        """Attention of queries over some pages of keys and values, by vLLM's FlashAttention."""
        function, fa_version = vllm_flash_attention()
        longest = self.table.shape[1] * _PAGE

        def attend(q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor) -> torch.Tensor:
            return function(
                q, k_pages, v_pages, new, self.starts, longest, seqused_k=self.lengths, block_table=self.table,
                softmax_scale=settings["scale"], causal=True, fa_version=fa_version,
            )  # fmt: skip

        return attend


def _one_flash_call(
    inputs: list[torch.Tensor], settings: dict[str, Any], keys: torch.Tensor, cache: _Cache, new: int, version: int
) -> Run:
    """Both maps as heads of one call: padded in V1, and as it is in V2. What models do without our kernel."""
    attend, finish = cache.flash(settings, new), torch.compile(_finish, dynamic=False)
    q1, q2, lam = inputs[0], inputs[1], inputs[5]
    q = _padded(q1, q2) if version == 1 else torch.stack([q1, q2], dim=2).flatten(1, 2)

    def run() -> torch.Tensor:
        first, second = attend(q, keys, cache.v_pages).unflatten(1, (-1, 2)).unbind(2)
        return finish(first, second, lam, settings)

    return run


def _composed_pages(inputs: list[torch.Tensor], settings: dict[str, Any], cache: _Cache, new: int, version: int) -> Run:
    """Microsoft's composition of V1: a call for each map and half of the values."""
    if version == 2:
        raise UnavailableError("V2's composition is the one call")
    attend, finish = cache.flash(settings, new), torch.compile(_finish, dynamic=False)
    maps = ((inputs[0], cache.k1_pages), (inputs[1], cache.k2_pages))
    halves, lam = cache.v_pages.chunk(2, dim=-1), inputs[5]

    def run() -> torch.Tensor:
        first, second = (torch.cat([attend(q, k, half) for half in halves], dim=-1) for q, k in maps)
        return finish(first, second, lam, settings)

    return run


def _two_passes(inputs: list[torch.Tensor], settings: dict[str, Any], cache: _Cache, new: int) -> Run:
    """A pass over the cache for each map, by our kernel for other models: what is left when nothing else is there."""
    finish = torch.compile(_finish, dynamic=False)
    q1, q2, lam, v_pages = inputs[0], inputs[1], inputs[5], cache.v_pages
    (cached, width_v), width = v_pages.shape[2:], q1.shape[-1]
    outs = [torch.empty(*q1.shape[:2], width_v, dtype=q1.dtype, device=q1.device) for _ in range(2)]
    meta_k, meta_v = (torch.empty(cached, 0, w, dtype=q1.dtype, device=q1.device) for w in (width, width_v))

    def run() -> torch.Tensor:
        for q, k_pages, to in ((q1, cache.k1_pages, outs[0]), (q2, cache.k2_pages, outs[1])):
            nlrl_kernels.pinned_window_attention(
                q, k_pages, v_pages, cache.table, cache.lengths, cache.starts, meta_k_HMD=meta_k, meta_v_HMD=meta_v,
                window=None, scale=settings["scale"], out_THD=to, max_query_len=new,
            )  # fmt: skip
        return finish(*outs, lam, settings)

    return run
