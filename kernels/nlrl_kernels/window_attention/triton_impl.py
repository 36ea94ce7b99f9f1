"""Paged attention with a window and pinned keys in Triton; the definition is in ``reference.py``.

One program computes a tile of rows of one request and one key head: all query heads of the group are packed into the
tile's rows, so keys are read once per group. It walks the pinned keys, then the cached keys from the oldest that its
first query sees; softmax is accumulated as in Milakov and Gimelshein 2018 (arXiv 1805.02867). Keys and values may
differ in width. Values are masked when loaded, not only their scores: a page that was given back holds anything.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl


@triton.jit
def _accumulate(q, k, v, visible, scale, best, total, acc, IEEE: tl.constexpr):
    """Add one tile of keys to the running softmax: row maxima, row sums, weighted values."""
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale
    scores = tl.where(visible, scores, float("-inf"))
    best_new = tl.maximum(best, tl.max(scores, axis=1))
    # Rows that have seen no key yet keep weights of 0 instead of exp(-inf + inf).
    shift = tl.where(best_new == float("-inf"), 0.0, best_new)
    weights = tl.exp(scores - shift[:, None])
    rescale = tl.exp(best - shift)
    total = total * rescale + tl.sum(weights, axis=1)
    acc = acc * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=precision)
    return best_new, total, acc


@triton.jit
def _attend(
    q_ptr, k_ptr, v_ptr, table_ptr, lengths_ptr, starts_ptr, meta_k_ptr, meta_v_ptr, out_ptr,
    scale, window, metas, page_size,
    q_t, q_h, k_b, k_p, k_h, k_d, v_b, v_p, v_h, v_d, table_r,
    mk_h, mk_m, mk_d, mv_h, mv_m, mv_d, out_t, out_h,
    GROUP: tl.constexpr, HAS_WINDOW: tl.constexpr, WIDTH_K: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    row, tile, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - first
    length = tl.load(lengths_ptr + row)
    if (tile * BLOCK_M >= count * GROUP) | (length <= 0):
        return
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token, member = index // GROUP, index % GROUP
    in_m = token < count
    dk, dv, n = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_N)
    in_k, in_v = dk < WIDTH_K, dv < WIDTH_V
    token64, q_head = (first + token).to(tl.int64), head * GROUP + member
    q_at = token64[:, None] * q_t + q_head[:, None] * q_h + dk[None, :]
    q = tl.load(q_ptr + q_at, mask=in_m[:, None] & in_k[None, :], other=0.0)
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)

    meta_k_ptr += head * mk_h
    meta_v_ptr += head * mv_h
    for begin in range(0, metas, BLOCK_N):
        i = begin + n
        known = i < metas
        k_mask, v_mask = known[:, None] & in_k[None, :], known[:, None] & in_v[None, :]
        k = tl.load(meta_k_ptr + i[:, None] * mk_m + dk[None, :] * mk_d, mask=k_mask, other=0.0)
        v = tl.load(meta_v_ptr + i[:, None] * mv_m + dv[None, :] * mv_d, mask=v_mask, other=0.0)
        visible = known[None, :] & in_m[:, None]
        best, total, acc = _accumulate(q, k.to(q.dtype), v.to(q.dtype), visible, scale, best, total, acc, IEEE)

    position = length - count + token
    earliest = length - count + tile * BLOCK_M // GROUP
    end = tl.minimum(length, length - count + (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1)
    begin_keys = 0
    if HAS_WINDOW:
        begin_keys = tl.maximum(0, earliest - window)
    table_ptr += row.to(tl.int64) * table_r
    k_ptr += head * k_h
    v_ptr += head * v_h
    for begin in range(begin_keys, end, BLOCK_N):
        j = begin + n
        known = j < end
        page = tl.load(table_ptr + j // page_size, mask=known, other=0).to(tl.int64)
        within = j % page_size
        k_at = page[:, None] * k_b + within[:, None] * k_p + dk[None, :] * k_d
        v_at = page[:, None] * v_b + within[:, None] * v_p + dv[None, :] * v_d
        k = tl.load(k_ptr + k_at, mask=known[:, None] & in_k[None, :], other=0.0)
        v = tl.load(v_ptr + v_at, mask=known[:, None] & in_v[None, :], other=0.0)
        visible = known[None, :] & in_m[:, None] & (j[None, :] <= position[:, None])
        if HAS_WINDOW:
            visible = visible & (position[:, None] - j[None, :] <= window)
        best, total, acc = _accumulate(q, k.to(q.dtype), v.to(q.dtype), visible, scale, best, total, acc, IEEE)

    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_at = token64[:, None] * out_t + q_head[:, None] * out_h + dv[None, :]
    tl.store(out_ptr + out_at, out, mask=in_m[:, None] & in_v[None, :])


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
    if q_THD.stride(-1) != 1 or out_THD.stride(-1) != 1 or block_table.stride(-1) != 1:
        raise ValueError("Queries, output and block table must be adjacent along their last axis.")
    heads, width_k = q_THD.shape[1:]
    page_size, kv_heads, width_v = v_pages.shape[1:]
    group = heads // kv_heads
    rows = max_query_len * group
    wide = q_THD.dtype == torch.float32
    # One token per request: the smallest tile that tl.dot takes. float32 tiles of keys are half as long, for registers.
    block_m = 16 if rows <= 16 else 32 if rows <= 32 or wide else 64
    grid = (len(lengths_R), triton.cdiv(rows, block_m), kv_heads)
    _attend[grid](
        q_THD, k_pages, v_pages, block_table, lengths_R.contiguous(), starts_R1.contiguous(),
        meta_k_HMD, meta_v_HMD, out_THD,
        scale, 0 if window is None else window, meta_k_HMD.shape[1], page_size,
        q_THD.stride(0), q_THD.stride(1), *k_pages.stride(), *v_pages.stride(), block_table.stride(0),
        *meta_k_HMD.stride(), *meta_v_HMD.stride(), out_THD.stride(0), out_THD.stride(1),
        GROUP=group, HAS_WINDOW=window is not None, WIDTH_K=width_k, WIDTH_V=width_v,
        BLOCK_K=max(16, triton.next_power_of_2(width_k)), BLOCK_V=max(16, triton.next_power_of_2(width_v)),
        BLOCK_M=block_m, BLOCK_N=32 if wide else 64, IEEE=wide, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out_THD
