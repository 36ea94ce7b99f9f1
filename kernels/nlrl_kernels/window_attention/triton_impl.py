"""Attention with a window and pinned keys in Triton: launches, tile sizes and gradients; defined by ``reference``.

The kernels are in ``kernels`` and ``backward``. float64 is left to the reference.
"""

# Triton types neither launches nor its own helpers:
# pyright: reportCallIssue=false, reportArgumentType=false

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from nlrl_kernels.window_attention import backward as kernels_backward
from nlrl_kernels.window_attention import kernels, reference

_LOG2_E = math.log2(math.e)
_MAX_SPLITS = 64
_QUERIES_A_SPAN = 1024
"""In the backward pass the queries of a pinned key are shared out over programs by so many: about a window's."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How one launch is cut.

    Attributes:
        queries: rows of a tile of queries (all heads of a group, token by token).
        keys: keys of a tile.
        warps: of a program.
        stages: tiles that are on their way at a time.
        programs: of a decode, at most, by sharing out the keys of its rows: 528 are the four that a multiprocessor
            of an H100 holds at a time.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    programs: int = 528


def prefill_tile(width_v: int, dtype: torch.dtype, page: int = 0) -> Tile:
    """For many queries a row: the tile that issues the fewest instructions a key, of those that spill no registers.

    Long tiles of keys pay: once a tile, all weighted values are rescaled.
    """
    if dtype == torch.float32:  # no tensor cores: float32 products are IEEE
        return Tile(32, 32, 4, 2)
    return _fitting(Tile(128, 128, 8, 3) if width_v <= 128 else Tile(64, 32, 8, 3), page)


def decode_tile(width_v: int, dtype: torch.dtype, page: int = 0) -> Tile:
    """For a token or two a row: the smallest tile of queries that tl.dot takes, as many keys as hide their latency."""
    return _fitting(Tile(16, 32, 4, 3) if dtype == torch.float32 or width_v > 128 else Tile(16, 64, 4, 3), page)


def backward_tiles(width_v: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """For the gradients of queries, and of keys and values: the largest whose inner loops spill no registers."""
    if dtype == torch.float32:
        return Tile(32, 16, 8, 1), Tile(32, 16, 8, 1)
    if width_v > 128:
        return Tile(64, 32, 8, 3), Tile(32, 64, 8, 3)
    return Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)


def _fitting(tile: Tile, page: int) -> Tile:
    """With half the keys where that makes tiles lie in one page each, whose rows need no look-up of their own."""
    half = tile.keys // 2
    return replace(tile, keys=half) if page % tile.keys and page % half == 0 and half >= 32 else tile


def pinned_window_attention(
    q_THD: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths_R: torch.Tensor,
    starts_R1: torch.Tensor,
    *,
    meta_k_HMD: torch.Tensor,
    meta_v_HMD: torch.Tensor,
    window: int | None,
    scale: float,
    out_THD: torch.Tensor,
    max_query_len: int,
) -> torch.Tensor:
    """See ``nlrl_kernels.pinned_window_attention``."""
    if q_THD.dtype == torch.float64:
        return reference.pinned_window_attention(
            q_THD, k_pages, v_pages, block_table, lengths_R, starts_R1, meta_k_HMD=meta_k_HMD, meta_v_HMD=meta_v_HMD,
            window=window, scale=scale, out_THD=out_THD, max_query_len=max_query_len,
        )  # fmt: skip
    _check(q_THD, k_pages, v_pages, out_THD, block_table, scale=scale)
    (tokens, heads, width), (page, kv_heads, width_v) = q_THD.shape, v_pages.shape[1:]
    group, rows, pinned = heads // kv_heads, len(lengths_R), meta_k_HMD.shape[1]
    if not rows or not tokens:
        return out_THD
    meta_k, meta_v = (_adjacent(x.to(k_pages.dtype)) for x in (meta_k_HMD, meta_v_HMD))
    decode = max_query_len * group <= 16
    tile, splits = prefill_tile(width_v, q_THD.dtype, page), 1
    if decode:
        tile = decode_tile(width_v, q_THD.dtype, page)
        longest = block_table.shape[1] * page
        splits = decode_splits(rows * kv_heads, pinned, longest, window, max_query_len, tile)
    partial = torch.empty((splits, tokens, heads, width_v) if splits > 1 else 0, device=out_THD.device)
    stats = torch.empty((splits, 2, tokens, heads) if splits > 1 else 0, device=out_THD.device)
    starts, lengths = starts_R1.contiguous(), lengths_R.contiguous()
    kernels.attend[(kv_heads, splits, rows) if decode else (kv_heads, _tiles(tokens * group, tile.queries, rows))](
        q_THD, k_pages, v_pages, meta_k, meta_v, out_THD, stats, partial, stats, starts, starts, block_table, lengths,
        scale * _LOG2_E, window or 0, pinned, rows, tokens, heads,
        *q_THD.stride()[:2], *k_pages.stride()[:3], *v_pages.stride()[:3], block_table.stride(0),
        *meta_k.stride()[:2], *meta_v.stride()[:2], *out_THD.stride()[:2],
        GROUP=group, PAGE=page, DECODE=decode, SPLIT=splits > 1, KEEP=False, HAS_WINDOW=window is not None,
        HAS_PINNED=pinned > 0, ALIKE=(meta_k.stride(1), meta_v.stride(1)) == (k_pages.stride(1), v_pages.stride(1)),
        **_sizes(width, width_v, tile, q_THD.dtype),
    )  # fmt: skip
    if splits > 1:
        kernels.combine[(heads, max_query_len, rows)](
            partial, stats, out_THD, starts, lengths, splits, tokens, heads, *out_THD.stride()[:2],
            BLOCK_S=triton.next_power_of_2(splits), WIDTH_V=width_v, BLOCK_V=_padded(width_v), num_warps=4,
        )  # fmt: skip
    return out_THD


def decode_splits(heads: int, pinned: int, longest: int, window: int | None, queries: int, tile: Tile) -> int:
    """Over how many programs the keys of a row and head are shared out, from shapes alone: a graph can be captured.

    Args:
        heads: rows times key heads.
        pinned: pinned keys.
        longest: tokens that a row can have.
        window: past it the length of a row changes nothing, the number of splits either.
        queries: of a row at most.
        tile: how the launch is cut.
    """
    seen = longest if window is None else min(longest, window + queries)
    tiles = -(-pinned // tile.keys) - (-seen // tile.keys) + (seen < longest)
    return max(1, min(tile.programs // heads, tiles, _MAX_SPLITS))


def pinned_window_attention_varlen(
    q_THD: torch.Tensor,
    k_SGD: torch.Tensor,
    v_SGV: torch.Tensor,
    *,
    starts_R1: torch.Tensor,
    key_starts_R1: torch.Tensor,
    max_query_len: int,
    window: int | None,
    pinned: int,
    scale: float,
) -> torch.Tensor:
    """See ``nlrl_kernels.pinned_window_attention_varlen``."""
    if q_THD.dtype == torch.float64:
        return reference.pinned_window_attention_varlen(
            q_THD, k_SGD, v_SGV, starts_R1=starts_R1, key_starts_R1=key_starts_R1, max_query_len=max_query_len,
            window=window, pinned=pinned, scale=scale,
        )  # fmt: skip
    _check(scale=scale)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (q_THD, k_SGD, v_SGV))
    return _varlen(q_THD, k_SGD, v_SGV, starts_R1, key_starts_R1, max_query_len, window, pinned, scale, keep)[0]


@torch.library.custom_op("nlrl_kernels::pinned_window_attention_varlen", mutates_args=())
def _varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    max_query_len: int,
    window: int | None,
    pinned: int,
    scale: float,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result and, if ``keep``, the logarithms of the sums, in base 2, [G, T H / G]."""
    q, k, v = _adjacent(q), _adjacent(k), _adjacent(v)
    (tokens, heads, width), (_, kv_heads, width_v) = q.shape, v.shape
    out, lse = _outputs(q, v, keep)
    group, rows, tile = heads // kv_heads, len(starts) - 1, prefill_tile(width_v, q.dtype)
    if rows > 0 and tokens:
        starts, key_starts = starts.contiguous(), key_starts.contiguous()
        kernels.attend[(kv_heads, _tiles(tokens * group, tile.queries, rows))](
            q, k, v, k, v, out, lse, lse, lse, starts, key_starts, starts, starts,
            scale * _LOG2_E, window or 0, pinned, rows, tokens, heads,
            *q.stride()[:2], 0, *k.stride()[:2], 0, *v.stride()[:2], 0, 0, 0, 0, 0, *out.stride()[:2],
            GROUP=group, PAGE=0, DECODE=False, SPLIT=False, KEEP=keep, HAS_WINDOW=window is not None,
            HAS_PINNED=window is not None and pinned > 0, ALIKE=True, **_sizes(width, width_v, tile, q.dtype),
        )  # fmt: skip
    return out, lse


@_varlen.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, key_starts: torch.Tensor,
    max_query_len: int, window: int | None, pinned: int, scale: float, keep: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    return _outputs(q, v, keep)


@torch.library.custom_op("nlrl_kernels::pinned_window_attention_varlen_backward", mutates_args=())
def _varlen_backward(
    do: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    max_query_len: int,
    window: int | None,
    pinned: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v, do = _adjacent(q), _adjacent(k), _adjacent(v), do.contiguous()
    (tokens, heads, width), (_, kv_heads, width_v) = q.shape, v.shape
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    group, rows, pinned = heads // kv_heads, len(starts) - 1, 0 if window is None else pinned
    if rows < 1 or not tokens:
        return dq.zero_(), dk.zero_(), dv.zero_()
    delta = torch.empty_like(lse)
    kernels_backward.row_sums[(kv_heads, triton.cdiv(tokens * group, 32))](
        do, out, delta, tokens, heads, GROUP=group, WIDTH_V=width_v, BLOCK_V=_padded(width_v), ROWS=32, num_warps=4
    )
    of_queries, of_keys = backward_tiles(width_v, q.dtype)
    starts, key_starts = starts.contiguous(), key_starts.contiguous()
    strides = [stride for x in (q, k, v) for stride in x.stride()[:2]]
    scales, flags = (scale * _LOG2_E, scale), {"GROUP": group, "HAS_WINDOW": window is not None}
    kernels_backward.queries_backward[(kv_heads, _tiles(tokens * group, of_queries.queries, rows))](
        q, k, v, do, lse, delta, dq, starts, key_starts, *scales, window or 0, pinned, rows, tokens, heads, *strides,
        HAS_PINNED=pinned > 0, **flags, **_sizes(width, width_v, of_queries, q.dtype),
    )  # fmt: skip
    sizes = _sizes(width, width_v, of_keys, q.dtype)
    kernels_backward.keys_backward[(kv_heads, _tiles(len(k), of_keys.keys, rows))](
        q, k, v, do, lse, delta, dk, dv, starts, key_starts, *scales, window or 0, pinned, rows, tokens, heads,
        kv_heads, 1, 0, *strides, PINNED=False, **flags, **sizes,
    )  # fmt: skip
    if pinned:
        spans, pin_tiles = triton.cdiv(max_query_len, _QUERIES_A_SPAN), triton.cdiv(pinned, of_keys.keys)
        parts = [torch.empty(spans, rows, pinned, kv_heads, w, device=q.device) for w in (width, width_v)]
        kernels_backward.keys_backward[(kv_heads, spans * pin_tiles, rows)](
            q, k, v, do, lse, delta, *parts, starts, key_starts, *scales, window or 0, pinned, rows, tokens, heads,
            kv_heads, pin_tiles, _QUERIES_A_SPAN, *strides, PINNED=True, **flags | {"HAS_WINDOW": False}, **sizes,
        )  # fmt: skip
        for part, total, wide in ((parts[0], dk, width), (parts[1], dv, width_v)):
            kernels_backward.add_spans[(kv_heads, triton.cdiv(pinned, 16), rows)](
                part, total, key_starts, spans, rows, pinned, kv_heads,
                WIDTH=wide, BLOCK=_padded(wide), BLOCK_N=16, num_warps=4,
            )  # fmt: skip
    return dq, dk, dv


@_varlen_backward.register_fake
def _(
    do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor,
    key_starts: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, max_query_len: int, window: int | None,
    pinned: int, scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.settings = inputs[5:9]


def _backward(ctx: Any, do: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_varlen_backward(do, *ctx.saved_tensors, *ctx.settings), *[None] * 7


_varlen.register_autograd(_backward, setup_context=_setup_context)


def _outputs(q: torch.Tensor, v: torch.Tensor, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty((*q.shape[:2], v.shape[-1]), dtype=q.dtype, device=q.device)
    sums = (v.shape[1], q.shape[0] * (q.shape[1] // v.shape[1]))
    return out, torch.empty(sums if keep else 0, dtype=torch.float32, device=q.device)


def _tiles(packed: int, block: int, rows: int) -> int:
    """How many tiles rows of so many entries in all can have: what ``kernels.find_row`` counts."""
    return packed // block + rows


def _padded(width: int) -> int:
    return max(16, int(triton.next_power_of_2(width)))


def _sizes(width: int, width_v: int, tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "WIDTH_K": width,
        "WIDTH_V": width_v,
        "BLOCK_K": _padded(width),
        "BLOCK_V": _padded(width_v),
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "IEEE": dtype == torch.float32,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _adjacent(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _check(*tensors: torch.Tensor, scale: float) -> None:
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        raise ValueError("Queries, pages, output and block table must be adjacent along their last axis.")
    if scale <= 0:
        raise ValueError(f"The scale of attention must be positive, got {scale}: multiply the queries by -1 instead.")
