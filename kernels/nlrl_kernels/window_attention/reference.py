"""Attention with a window and pinned keys, in plain torch: a loop over rows.

Over a paged cache, for the query at position p of a row, with keys k_j and values v_j at positions j and pinned ones
(m_i, w_i):

    visible j: j <= p and p - j <= window        o = softmax(scale q . [m ; k_visible]) @ [w ; v_visible]

In whole rows the pinned keys are a row's first ones:

    visible j: j <= p and (p - j <= window or j < pinned)

Axes: T packed query tokens, S packed keys, H heads, G key heads, D width of keys, V of values, R rows, M pinned keys;
lengths count cached tokens, queries included.
"""

from itertools import pairwise

import torch


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
    page_size = k_pages.shape[1]
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    starts, lengths = starts_R1.tolist(), lengths_R.tolist()
    for row, length in enumerate(lengths):
        span = slice(starts[row], starts[row + 1])
        count = min(span.stop - span.start, max_query_len)
        if count == 0 or length == 0:
            continue
        queries = torch.arange(length - count, length, device=q_THD.device)
        oldest = 0 if window is None else max(0, length - count - window)
        keys = torch.arange(oldest, length, device=q_THD.device)
        pages = block_table[row, keys // page_size].long()
        k_HSD = k_pages[pages, keys % page_size].to(wide).transpose(0, 1)
        v_HSD = v_pages[pages, keys % page_size].to(wide).transpose(0, 1)
        k_HSD = torch.cat([meta_k_HMD.to(wide), k_HSD], dim=1)
        v_HSD = torch.cat([meta_v_HMD.to(wide), v_HSD], dim=1)
        distance = queries[:, None] - keys
        hidden = distance < 0 if window is None else (distance < 0) | (distance > window)
        hidden = torch.cat([hidden.new_zeros(count, meta_k_HMD.shape[1]), hidden], dim=1)
        group = q_THD.shape[1] // len(k_HSD)
        q_HGTD = q_THD[span].to(wide).unflatten(1, (-1, group)).permute(1, 2, 0, 3)
        scores = (q_HGTD @ k_HSD[:, None].transpose(-1, -2) * scale).masked_fill(hidden, float("-inf"))
        o_HGTD = scores.softmax(dim=-1) @ v_HSD[:, None]
        out_THD[span] = o_HGTD.permute(2, 0, 1, 3).flatten(1, 2).to(out_THD.dtype)
    return out_THD


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
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    rows = []
    for (t0, t1), (s0, s1) in zip(pairwise(starts_R1.tolist()), pairwise(key_starts_R1.tolist()), strict=True):
        k_GSD, v_GSV = (x[s0:s1].to(wide).transpose(0, 1) for x in (k_SGD, v_SGV))
        q_GNTD = q_THD[t0:t1].to(wide).unflatten(1, (k_SGD.shape[1], -1)).permute(1, 2, 0, 3)
        key = torch.arange(s1 - s0, device=q_THD.device)
        query = key[s1 - s0 - (t1 - t0) :, None]
        visible = key <= query
        if window is not None:
            visible &= (query - key <= window) | (key < pinned)
        scores = (q_GNTD @ k_GSD[:, None].transpose(-1, -2) * scale).masked_fill(~visible, float("-inf"))
        o_GNTV = scores.softmax(dim=-1) @ v_GSV[:, None]
        rows.append(o_GNTV.permute(2, 0, 1, 3).flatten(1, 2))
    return torch.cat(rows).to(q_THD.dtype)
