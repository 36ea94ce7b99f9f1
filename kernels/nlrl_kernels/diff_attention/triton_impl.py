"""Differential attention in Triton: launches, tile sizes and gradients; defined by ``reference``.

The kernels are in ``kernels`` and ``backward``. float64 is left to the reference.
"""

# Triton types neither launches nor its own helpers:
# pyright: reportCallIssue=false, reportArgumentType=false

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton

from nlrl_kernels.diff_attention import backward as kernels_backward
from nlrl_kernels.diff_attention import kernels, reference

_LOG2_E = math.log2(math.e)
_PROGRAMS = 528
"""Programs of a norm's backward pass: four a multiprocessor of an H100."""

_AT_ONCE = 264
"""Programs of a decode that an H100 holds at once, two a multiprocessor by their registers. Keys are split over no
more: a second round of a few would take as long as the first."""

_MAX_SPLITS = 64
_KEYS_A_SPLIT = 256
"""A split is not made for fewer keys than this."""

Way = Literal["together", "in_turn", "sums_first"]
"""Around the sums of the two maps; see ``kernels``."""

_Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Of both queries, both keys, the values, lambda [T, H] and the norm's weight [W]."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How one launch is cut.

    Attributes:
        queries: rows of a tile of queries (several heads of a group each).
        keys: keys of a tile.
        warps: of a program.
        stages: tiles of keys that are on their way at a time.
        way: around the sums of the two maps.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    way: Way = "together"


def prefill_tile(width_v: int, dtype: torch.dtype) -> Tile:
    """For many queries a row: the most keys of which no register spills inside a walk when compiled for sm_90.

    A group of four warps takes 64 queries, and while one is at its exponentials the other has the tensor cores.
    """
    if dtype == torch.float32:  # no tensor cores: float32 products are IEEE
        return Tile(32, 32, 4, 2, "in_turn" if width_v > 128 else "together")
    return Tile(128, 64 if width_v > 128 else 128, 8, 3, "in_turn")


def decode_tile(width_v: int, dtype: torch.dtype) -> Tile:
    """For a token or two a row: the smallest tile of queries that tl.dot takes, as many keys as hide their latency.

    Triton gives the page numbers stages of their own: of five, two are tiles of keys and values on their way.
    """
    return Tile(16, 32, 4, 2 if dtype == torch.float32 else 5) if width_v > 128 else Tile(16, 64, 4, 3)


def backward_tiles(width_v: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """For the gradients of queries, and of keys and values."""
    if dtype == torch.float32:
        return Tile(16, 16, 4, 1), Tile(16, 16, 4, 1)
    if width_v > 128:
        return Tile(64, 32, 8, 2), Tile(16, 64, 8, 2)
    return Tile(64, 32, 4, 2), Tile(32, 64, 8, 2)


def diff_attention_varlen(
    q1_THD: torch.Tensor,
    q2_THD: torch.Tensor,
    k1_SGD: torch.Tensor,
    k2_SGD: torch.Tensor,
    v_SGW: torch.Tensor,
    lam: torch.Tensor,
    *,
    starts_R1: torch.Tensor,
    key_starts_R1: torch.Tensor,
    max_query_len: int,
    max_key_len: int,
    scale: float,
    eps: float | None = None,
    weight_W: torch.Tensor | None = None,
    factor: float = 1.0,
) -> torch.Tensor:
    """See ``nlrl_kernels.diff_attention_varlen``."""
    if q1_THD.dtype == torch.float64:
        return reference.diff_attention_varlen(
            q1_THD, q2_THD, k1_SGD, k2_SGD, v_SGW, lam, starts_R1=starts_R1, key_starts_R1=key_starts_R1,
            max_query_len=max_query_len, max_key_len=max_key_len, scale=scale, eps=eps, weight_W=weight_W,
            factor=factor,
        )  # fmt: skip
    _check_scale(scale)
    tensors = (q1_THD, q2_THD, k1_SGD, k2_SGD, v_SGW, lam, *(() if weight_W is None else (weight_W,)))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return _varlen(
        q1_THD, q2_THD, k1_SGD, k2_SGD, v_SGW, lam, weight_W, starts_R1, key_starts_R1,
        max_query_len, max_key_len, scale, eps, factor, keep,
    )[0]  # fmt: skip


def diff_attention_paged(
    q1_THD: torch.Tensor,
    q2_THD: torch.Tensor,
    k1_pages: torch.Tensor,
    k2_pages: torch.Tensor,
    v_pages: torch.Tensor,
    block_table: torch.Tensor,
    lengths_R: torch.Tensor,
    starts_R1: torch.Tensor,
    lam: torch.Tensor,
    *,
    scale: float,
    out_THW: torch.Tensor,
    max_query_len: int,
    eps: float | None = None,
    weight_W: torch.Tensor | None = None,
    factor: float = 1.0,
) -> torch.Tensor:
    """See ``nlrl_kernels.diff_attention_paged``."""
    _check_scale(scale)
    tokens, heads, width = q1_THD.shape
    page_size, kv_heads, width_v = v_pages.shape[1:]
    group, rows = heads // kv_heads, len(lengths_R)
    few = max_query_len * group <= 16
    tile = decode_tile(width_v, q1_THD.dtype) if few else prefill_tile(width_v, q1_THD.dtype)
    splits = 1
    if few:
        longest = block_table.shape[1] * page_size
        splits = min(_AT_ONCE // max(1, rows * kv_heads), triton.cdiv(longest, _KEYS_A_SPLIT), _MAX_SPLITS)
        splits = max(1, splits)
    _check_adjacent(q1_THD, q2_THD, k1_pages, k2_pages, v_pages, out_THW, block_table)
    if not rows or not tokens:
        return out_THW
    way = "together" if few else tile.way
    rest = torch.empty((tokens, heads, width_v) if way == "in_turn" else 0, dtype=q1_THD.dtype, device=out_THW.device)
    partial = torch.empty((splits, 2, tokens, heads, width_v) if splits > 1 else 0, device=out_THW.device)
    stats = torch.empty((splits, 4, tokens, heads) if splits > 1 else 0, device=out_THW.device)
    lam_TH, weight = lam.expand(tokens, heads), lam if weight_W is None else weight_W.contiguous()
    starts, lengths = starts_R1.contiguous(), lengths_R.contiguous()
    first_axis = splits if splits > 1 else triton.cdiv(max_query_len * group, tile.queries)
    kernels.attend[(first_axis, kv_heads, rows)](
        q1_THD, q2_THD, k1_pages, k2_pages, v_pages, lam_TH, weight, out_THW, rest, stats, partial, stats,
        starts, starts, block_table, lengths, scale * _LOG2_E, eps or 0.0, factor, tokens, heads,
        *q1_THD.stride()[:2], *q2_THD.stride()[:2], *k1_pages.stride()[:3], *k2_pages.stride()[:3],
        *v_pages.stride()[:3], block_table.stride(0), *lam_TH.stride(), *out_THW.stride()[:2],
        GROUP=group, SHARED=_same(k1_pages, k2_pages), PAGE=page_size,
        ALIKE=k1_pages.stride()[:2] == k2_pages.stride()[:2] == v_pages.stride()[:2], SPLITS=splits,
        WAY=way, NORM=eps is not None, HAS_WEIGHT=weight_W is not None, KEEP=False,
        **_sizes(width, width_v, tile, q1_THD.dtype),
    )  # fmt: skip
    if splits > 1:
        kernels.combine[(max_query_len, heads, rows)](
            partial, stats, lam_TH, weight, out_THW, starts, lengths, eps or 0.0, factor, tokens, heads,
            *lam_TH.stride(), *out_THW.stride()[:2],
            SPLITS=splits, BLOCK_S=triton.next_power_of_2(splits), NORM=eps is not None,
            HAS_WEIGHT=weight_W is not None, WIDTH_V=width_v, BLOCK_W=_padded(width_v), num_warps=4,
        )  # fmt: skip
    return out_THW


@torch.library.custom_op("nlrl_kernels::diff_attention_varlen", mutates_args=())
def _varlen(
    q1: torch.Tensor,
    q2: torch.Tensor,
    k1: torch.Tensor,
    k2: torch.Tensor,
    v: torch.Tensor,
    lam: torch.Tensor,
    weight: torch.Tensor | None,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    max_query_len: int,
    max_key_len: int,
    scale: float,
    eps: float | None,
    factor: float,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result and, if ``keep``, what stands before the norm and the logarithms of the sums, in base 2."""
    q1, q2, k1, k2, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q1, q2, k1, k2, v))
    (tokens, heads, width), (_, kv_heads, width_v) = q1.shape, v.shape
    out, plain, lse = _outputs(q1, v, eps, keep)
    group, tile, lam_TH = heads // kv_heads, prefill_tile(width_v, q1.dtype), lam.expand(tokens, heads)
    rows = len(starts) - 1
    if rows > 0 and tokens:
        kernels.attend[(triton.cdiv(max_query_len * group, tile.queries), kv_heads, rows)](
            q1, q2, k1, k2, v, lam_TH, lam if weight is None else weight.contiguous(), out, plain, lse, lse, lse,
            starts.contiguous(), key_starts.contiguous(), starts, starts,
            scale * _LOG2_E, eps or 0.0, factor, tokens, heads,
            *q1.stride()[:2], *q2.stride()[:2], 0, *k1.stride()[:2], 0, *k2.stride()[:2], 0, *v.stride()[:2],
            0, *lam_TH.stride(), *out.stride()[:2],
            GROUP=group, SHARED=_same(k1, k2), PAGE=0, ALIKE=False, SPLITS=1, WAY=tile.way,
            NORM=eps is not None, HAS_WEIGHT=weight is not None, KEEP=keep, **_sizes(width, width_v, tile, q1.dtype),
        )  # fmt: skip
    return out, plain, lse


@_varlen.register_fake
def _(
    q1: torch.Tensor, q2: torch.Tensor, k1: torch.Tensor, k2: torch.Tensor, v: torch.Tensor, lam: torch.Tensor,
    weight: torch.Tensor | None, starts: torch.Tensor, key_starts: torch.Tensor, max_query_len: int, max_key_len: int,
    scale: float, eps: float | None, factor: float, keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    return _outputs(q1, v, eps, keep)


@torch.library.custom_op("nlrl_kernels::diff_attention_varlen_backward", mutates_args=())
def _varlen_backward(
    dy: torch.Tensor,
    q1: torch.Tensor,
    q2: torch.Tensor,
    k1: torch.Tensor,
    k2: torch.Tensor,
    v: torch.Tensor,
    lam: torch.Tensor,
    weight: torch.Tensor | None,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    plain: torch.Tensor,
    lse: torch.Tensor,
    max_query_len: int,
    max_key_len: int,
    scale: float,
    eps: float | None,
    factor: float,
) -> _Gradients:
    q1, q2, k1, k2, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q1, q2, k1, k2, v))
    (tokens, heads, width), (_, kv_heads, width_v) = q1.shape, v.shape
    dq1, dq2, dk1, dk2, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q1, q2, k1, k2, v))
    sums = torch.zeros(2, heads, tokens, device=q1.device)
    do, dweight = dy.contiguous(), torch.zeros(width_v, device=q1.device)
    rows, lam_TH, shared = len(starts) - 1, lam.expand(tokens, heads), _same(k1, k2)
    if rows > 0 and tokens:
        if eps is not None:
            do, dweight = _norm_backward(do, plain, weight, eps, factor)
        of_queries, of_keys = backward_tiles(width_v, q1.dtype)
        strides = [s for x in (q1, q2, k1, k2, v) for s in x.stride()[:2]] + list(lam_TH.stride())
        starts, key_starts = starts.contiguous(), key_starts.contiguous()
        kernels_backward.queries_backward[(triton.cdiv(max_query_len, of_queries.queries), heads, rows)](
            q1, q2, k1, k2, v, lam_TH, do, lse, dq1, dq2, sums, starts, key_starts,
            scale * _LOG2_E, scale, tokens, heads, *strides,
            GROUP=heads // kv_heads, SHARED=shared, **_sizes(width, width_v, of_queries, q1.dtype),
        )  # fmt: skip
        kernels_backward.keys_backward[(triton.cdiv(max_key_len, of_keys.keys), kv_heads, rows)](
            q1, q2, k1, k2, v, lam_TH, do, lse, sums, dk1, dk2, dv, starts, key_starts,
            scale * _LOG2_E, scale, tokens, heads, kv_heads, *strides,
            GROUP=heads // kv_heads, SHARED=shared, **_sizes(width, width_v, of_keys, q1.dtype),
        )  # fmt: skip
    dlam = -sums[1].t().contiguous()
    return dq1, dq2, dk1, dk2, dv, dlam, dweight


@_varlen_backward.register_fake
def _(
    dy: torch.Tensor, q1: torch.Tensor, q2: torch.Tensor, k1: torch.Tensor, k2: torch.Tensor, v: torch.Tensor,
    lam: torch.Tensor, weight: torch.Tensor | None, starts: torch.Tensor, key_starts: torch.Tensor,
    plain: torch.Tensor, lse: torch.Tensor, max_query_len: int, max_key_len: int, scale: float, eps: float | None,
    factor: float,
) -> _Gradients:  # fmt: skip
    dq1, dq2, dk1, dk2, dv = (x.new_empty(x.shape) for x in (q1, q2, k1, k2, v))
    return dq1, dq2, dk1, dk2, dv, lse.new_empty(q1.shape[:2]), lse.new_empty(v.shape[-1])


def _norm_backward(
    dy: torch.Tensor, plain: torch.Tensor, weight: torch.Tensor | None, eps: float, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of what stands before the norm, and of its weight."""
    rows, width_v = plain.shape[0] * plain.shape[1], plain.shape[2]
    programs = min(rows, _PROGRAMS)
    do, partial = torch.empty_like(plain), torch.empty(programs, width_v, device=dy.device)
    kernels_backward.norm_backward[(programs,)](
        dy, plain, plain if weight is None else weight.contiguous(), do, partial, rows, eps, factor,
        HAS_WEIGHT=weight is not None, WIDTH_V=width_v, BLOCK_W=_padded(width_v), num_warps=1,
    )  # fmt: skip
    return do, partial.sum(0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:9], *output[1:])
    ctx.settings = inputs[9:14]


def _backward(ctx: Any, dy: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    *inputs, plain, lse = ctx.saved_tensors
    dq1, dq2, dk1, dk2, dv, dlam, dweight = _varlen_backward(dy, *inputs, plain, lse, *ctx.settings)
    lam, weight = inputs[5], inputs[6]
    dlam = dlam.sum_to_size(lam.shape).to(lam.dtype)
    return dq1, dq2, dk1, dk2, dv, dlam, None if weight is None else dweight.to(weight.dtype), *[None] * 8


_varlen.register_autograd(_backward, setup_context=_setup_context)


def _outputs(
    q1: torch.Tensor, v: torch.Tensor, eps: float | None, keep: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (*q1.shape[:2], v.shape[-1])
    out = torch.empty(shape, dtype=q1.dtype, device=q1.device)
    needed = (keep and eps is not None) or prefill_tile(v.shape[-1], q1.dtype).way == "in_turn"
    plain = torch.empty(shape if needed else 0, dtype=q1.dtype, device=q1.device)
    lse = torch.empty((2, *q1.shape[1::-1]) if keep else 0, dtype=torch.float32, device=q1.device)
    return out, plain, lse


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether both maps read the same keys."""
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride()


def _padded(width: int) -> int:
    return max(16, int(triton.next_power_of_2(width)))


def _sizes(width: int, width_v: int, tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "WIDTH": width,
        "WIDTH_V": width_v,
        "BLOCK_D": _padded(width),
        "BLOCK_W": _padded(width_v),
        "BLOCK_M": tile.queries,
        "BLOCK_N": tile.keys,
        "IEEE": dtype == torch.float32,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _check_adjacent(*tensors: torch.Tensor) -> None:
    if any(tensor.stride(-1) != 1 for tensor in tensors):
        raise ValueError("Queries, pages, output and block table must be adjacent along their last axis.")


def _check_scale(scale: float) -> None:
    if scale <= 0:
        raise ValueError(f"The scale must be positive, not {scale}: row maxima are taken before it is applied.")
