"""Hymba-1.5B's attention: 25 query heads over 5, keys of 64, values of 128, 128 pinned keys, a window of 1,024.

Pages of 128 tokens hold a key beside its value, head by head, as vLLM lays them out for this model.
"""

# Inputs are kept in lists and unpacked into operators:
# pyright: reportCallIssue=false

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import nlrl_kernels
from nlrl_kernels.bench.alternatives import vllm_flash_attention
from nlrl_kernels.bench.case import Case, Check, Plan, Run, Size, nbytes
from nlrl_kernels.window_attention import reference
from nlrl_kernels.window_attention.tolerance import BACKWARD, FORWARD

_SOME = 64
"""Tokens, or rows of a decode, at each end of a batch that are compared with the reference in float64."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads, widths and mask of one model."""

    kv_heads: int = 5
    group: int = 5
    width_k: int = 64
    width_v: int = 128
    metas: int = 128
    window: int | None = 1024
    page: int = 128

    @property
    def scale(self) -> float:
        """Of the scores: the width of keys counts, not that of values."""
        return self.width_k**-0.5

    def pairs(self, first: int, last: int, pinned_in_row: bool = False) -> int:
        """How many keys the queries at positions ``first`` to ``last`` - 1 see together, of one head."""
        position = torch.arange(first, last, dtype=torch.int64)
        span = last if self.window is None else self.window + 1
        seen = torch.clamp(position + 1, max=span)
        if pinned_in_row:
            further = torch.clamp(position - span + 1, min=0, max=self.metas)  # pinned keys before the window
            return int((seen + further).sum())
        return int(seen.sum()) + self.metas * (last - first)


def shape_for(size: Size, *, window: bool) -> Shape:
    """Hymba-1.5B's window layers or its global ones, or tiny."""
    if size.tiny:
        return Shape(1, 2, 16, 32, 5, 7 if window else None, 16)
    return Shape() if window else Shape(window=None)


def plans(size: Size) -> Iterator[Plan]:
    """Prefill whole and in chunks, decode, the global layers, and training."""
    paged = "pinned_window_attention"
    shape, whole = shape_for(size, window=True), shape_for(size, window=False)
    prefills = [(1, n, n) for n in size.pick([8192, 1024, 2048, 4096, 16384, 32768, 65536], [20])]
    decodes = [(64, 1, 8192), (64, 1, 2048), (1, 1, 8192), (32, 1, 8192), (128, 1, 8192), (256, 1, 8192)]
    more = [(64, 1, 1024), (64, 1, 32768), (64, 1, 65536), (1, 1, 65536), (256, 1, 1024)]
    chunks = [(1, 2048, 8192), (4, 2048, 4096)]
    ends = [(1, 8192, 8192), (1, 32768, 32768), (1, 1, 65536), (32, 1, 8192), (128, 1, 8192)]
    if size.tiny:
        decodes, more, chunks, ends = [(3, 1, 30)], [], [(2, 6, 30)], [(1, 9, 9), (2, 1, 20)]
    elif size.quick:
        decodes, more, chunks, ends = decodes[:2], [], [], ends[:1]
    for rows, count, context in prefills + decodes + more + chunks:
        label = f"{rows} x {count} of {context}, window {shape.window}"
        yield Plan(paged, label, lambda r=rows, n=count, c=context: paged_case(size, shape, r, n, c))
    for rows, count, context in ends:
        label = f"all keys, {rows} x {count} of {context}"
        yield Plan(paged, label, lambda r=rows, n=count, c=context: paged_case(size, whole, r, n, c))
    trainings = [(2, 12)] if size.tiny else [(4, 2048), (1, 8192)][: 1 if size.quick else 2]
    for rows, length in trainings:
        for backward in (False, True):
            what = ", forward and backward" if backward else ""
            label = f"{rows} x {length}, window {shape.window}{what}"
            kernel = "pinned_window_attention_varlen"
            yield Plan(kernel, label, lambda r=rows, n=length, b=backward: rows_case(size, shape, r, n, b))


def paged_case(size: Size, shape: Shape, rows: int, count: int, context: int) -> Case:
    """``count`` queries of each row, the last of ``context`` tokens; pages lie anywhere."""
    g, width_k, width_v, page = shape.kv_heads, shape.width_k, shape.width_v, shape.page
    heads, blocks = g * shape.group, -(-context // page)
    pages = size.normal(rows * blocks + 1, g, page, width_k + width_v).transpose(1, 2)
    k_pages, v_pages = pages[..., :width_k], pages[..., width_k:]
    table = torch.randperm(rows * blocks, device=size.device).add(1).to(torch.int32).view(rows, blocks)
    q, meta = size.normal(rows * count, heads, width_k), size.normal(g, shape.metas, width_k + width_v)
    meta_k, meta_v = meta[..., :width_k], meta[..., width_k:]
    lengths = torch.full((rows,), context, dtype=torch.int32, device=size.device)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=size.device) * count
    out = torch.empty(rows * count, heads, width_v, dtype=size.dtype, device=size.device)
    mask = {"window": shape.window, "scale": shape.scale}

    def run() -> torch.Tensor:
        return nlrl_kernels.pinned_window_attention(
            q, k_pages, v_pages, table, lengths, starts, out_THD=out, max_query_len=count,
            meta_k_HMD=meta_k, meta_v_HMD=meta_v, **mask,
        )  # fmt: skip

    def check() -> Iterator[Check]:
        out.fill_(float("nan"))
        found = run()
        few = min(count, _SOME)
        for row in {0, rows // 2, rows - 1}:
            for last in {few, count}:
                tokens = slice(row * count + last - few, row * count + last)
                exact = torch.empty(few, heads, width_v, dtype=torch.float64, device=size.device)
                reference.pinned_window_attention(
                    q[tokens].double(), k_pages, v_pages, table[row : row + 1],
                    torch.tensor([context - count + last]), torch.tensor([0, few]), out_THD=exact, max_query_len=few,
                    meta_k_HMD=meta_k, meta_v_HMD=meta_v, **mask,
                )  # fmt: skip
                yield f"row {row}, {few} queries up to {last}", found[tokens], exact, FORWARD[size.dtype]

    def whole_row() -> tuple[torch.Tensor, torch.Tensor]:
        """Pinned and cached keys and values of the one row, [1, G, M + S, width]."""
        k, v = (x[table[0].long()].flatten(0, 1)[:context].transpose(0, 1) for x in (k_pages, v_pages))
        return torch.cat([meta_k, k], dim=1)[None], torch.cat([meta_v, v], dim=1)[None]

    def flash(window: bool) -> Run:
        cache = torch.cat([F.pad(k_pages, (0, width_v - width_k)), v_pages], dim=-1)
        return _flash(F.pad(q, (0, width_v - width_k)), cache, table, lengths, starts, count, shape, window)

    pairs = rows * shape.pairs(context - count, context)
    oldest = 0 if shape.window is None else max(0, context - count - shape.window)
    read = (rows * (context - oldest) + shape.metas) * g * (width_k + width_v) * pages.element_size()
    alternatives: dict[str, Callable[[], Run]] = {"FlashAttention (vLLM), full cache": lambda: flash(False)}
    if shape.window is not None:
        alternatives["FlashAttention (vLLM), window without pinned keys"] = lambda: flash(True)
    if rows == 1 and count > 1:
        alternatives["FlexAttention, compiled"] = lambda: _flex(q, *whole_row(), context - count, shape)
        alternatives["FlexAttention, compiled, as Hymba's own file"] = lambda: _flex_halves(
            q, *whole_row(), context - count, shape
        )
    return Case(run, check, read + nbytes(q, out), pairs * heads * 2 * (width_k + width_v), alternatives)


def _flash(
    q: torch.Tensor, cache: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor, count: int,
    shape: Shape, window: bool,
) -> Run:  # fmt: skip
    """Over a cache with keys padded to the width of values: its other form is wrong with pages of 128 tokens."""
    function, version = vllm_flash_attention()
    span = [shape.window, 0] if window and shape.window is not None else None
    keys, values, longest = cache[..., : shape.width_v], cache[..., shape.width_v :], table.shape[1] * shape.page
    return lambda: function(
        q, keys, values, count, starts, longest, seqused_k=lengths, block_table=table, softmax_scale=shape.scale,
        causal=True, window_size=span, fa_version=version,
    )  # fmt: skip


def _block_mask(queries: int, keys: int, before: int, shape: Shape, device: torch.device) -> Any:
    """FlexAttention's mask for queries at positions from ``before`` on, over pinned and other keys."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: object, h: object, q_at: torch.Tensor, k_at: torch.Tensor) -> torch.Tensor:
        position, j = q_at + before, k_at - shape.metas
        near = j <= position if shape.window is None else (j <= position) & (position - j <= shape.window)
        return (k_at < shape.metas) | near

    return create_block_mask(seen, None, None, queries, keys, device=str(device))


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, before: int, shape: Shape) -> Run:
    """One call, keys and values of unequal width, a key head for a group of query heads."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(flex_attention, dynamic=False)
    mask = _block_mask(len(q), k.shape[2], before, shape, q.device)
    queries = q.transpose(0, 1)[None]
    return lambda: attend(queries, k, v, block_mask=mask, scale=shape.scale, enable_gqa=True)[0].transpose(0, 1)


def _flex_halves(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, before: int, shape: Shape) -> Run:
    """Keys repeated for every query head, and each half of the values in a call of its own."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(flex_attention, dynamic=False)
    mask = _block_mask(len(q), k.shape[2], before, shape, q.device)
    queries = q.transpose(0, 1)[None]

    def both() -> torch.Tensor:
        keys = k.repeat_interleave(shape.group, dim=1)
        halves = v.repeat_interleave(shape.group, dim=1).chunk(2, dim=-1)
        out = [attend(queries, keys, half.contiguous(), block_mask=mask, scale=shape.scale) for half in halves]
        return torch.cat(out, dim=-1)[0].transpose(0, 1)

    return both


def rows_case(size: Size, shape: Shape, rows: int, length: int, backward: bool) -> Case:
    """Rows of meta tokens and ``length`` more, as in training."""
    g, heads, tokens = shape.kv_heads, shape.kv_heads * shape.group, shape.metas + length
    widths = ((heads, shape.width_k), (g, shape.width_k), (g, shape.width_v))
    inputs = [size.normal(rows * tokens, *width).requires_grad_(backward) for width in widths]
    do = size.normal(rows * tokens, heads, shape.width_v)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=size.device) * tokens
    mask = {"window": shape.window, "pinned": shape.metas, "scale": shape.scale}

    def step(inputs: list[torch.Tensor], do: torch.Tensor, starts: torch.Tensor, attend: Callable) -> Any:
        longest = len(do) // (len(starts) - 1)
        out = attend(*inputs, starts_R1=starts, key_starts_R1=starts, max_query_len=longest, **mask)
        return torch.autograd.grad(out, inputs, do) if backward else (out,)

    def check() -> Iterator[Check]:
        some = min(tokens, shape.metas + 1536)  # the mask is the same further on, its scores in float64 are not small
        first = torch.tensor([0, some], dtype=torch.int32, device=size.device)
        short, exact = ([x[:some].detach().to(kind).requires_grad_(backward) for x in inputs] for kind in
                        (size.dtype, torch.float64))  # fmt: skip
        found = step(short, do[:some], first, nlrl_kernels.pinned_window_attention_varlen)
        expected = step(exact, do[:some].double(), first, reference.pinned_window_attention_varlen)
        names, tolerance = (("q", "k", "v"), BACKWARD) if backward else (("result",), FORWARD)
        for name, one, other in zip(names, found, expected, strict=True):
            yield name, one, other, tolerance[size.dtype]

    def dense() -> Run:
        """What the transformers model does without the operator: a mask of every pair, keys repeated."""
        position = torch.arange(tokens, device=size.device)
        seen = position[:, None] >= position
        if shape.window is not None:
            seen = seen & ((position[:, None] - position <= shape.window) | (position < shape.metas))

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> torch.Tensor:
            q, k, v = (x.unflatten(0, (rows, tokens)).transpose(1, 2) for x in (q, k, v))
            k, v = k.repeat_interleave(shape.group, dim=1), v.repeat_interleave(shape.group, dim=1)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=shape.scale)
            return out.transpose(1, 2).flatten(0, 1)

        return lambda: step(inputs, do, starts, attend)

    def flex() -> Run:
        from torch.nn.attention.flex_attention import flex_attention

        block_mask = _block_mask_of_rows(tokens, shape, inputs[0].device)
        compiled = torch.compile(flex_attention, dynamic=False)

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: object) -> torch.Tensor:
            q, k, v = (x.unflatten(0, (rows, tokens)).transpose(1, 2) for x in (q, k, v))
            out = compiled(q, k, v, block_mask=block_mask, scale=shape.scale, enable_gqa=True)
            return out.transpose(1, 2).flatten(0, 1)

        return lambda: step(inputs, do, starts, attend)

    def run() -> Any:
        return step(inputs, do, starts, nlrl_kernels.pinned_window_attention_varlen)

    pairs = rows * heads * shape.pairs(0, tokens, pinned_in_row=True)
    # Backward as usually counted: five products, though the scores and their gradients are computed twice.
    products = shape.width_k + shape.width_v + (3 * shape.width_k + 2 * shape.width_v if backward else 0)
    moved = nbytes(*inputs, do) * (2 if backward else 1)
    return Case(run, check, moved, 2 * pairs * products, {"mask in torch": dense, "FlexAttention, compiled": flex})


def _block_mask_of_rows(tokens: int, shape: Shape, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(b: object, h: object, q_at: torch.Tensor, k_at: torch.Tensor) -> torch.Tensor:
        causal = k_at <= q_at
        return causal if shape.window is None else causal & ((q_at - k_at <= shape.window) | (k_at < shape.metas))

    return create_block_mask(seen, None, None, tokens, tokens, device=str(device))
