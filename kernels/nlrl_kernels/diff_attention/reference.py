"""Differential attention in plain torch: both maps written out, dense and causal.

Ye et al. 2024, arXiv 2410.05258, equations 1 to 4. For head h, whose cached head is g = h // (H / G):

    A_j = softmax(scale q_j . k_j, over the keys that are visible)        j = 1, 2
    o   = A_1 v_g - lambda A_2 v_g
    y   = factor * o / sqrt(mean(o^2) + eps) * weight                     where eps is given, else y = o

Arithmetic is float32 or wider. Axes: B batch, T query tokens, S key tokens (the queries are the last T of them), H
heads, G cached heads, D width of a query or key, W width of a value.
"""

from itertools import pairwise
from typing import Any

import torch


def diff_attention(
    q1_BTHD: torch.Tensor,
    q2_BTHD: torch.Tensor,
    k1_BSGD: torch.Tensor,
    k2_BSGD: torch.Tensor,
    v_BSGW: torch.Tensor,
    lam: torch.Tensor,
    *,
    scale: float,
    eps: float | None = None,
    weight_W: torch.Tensor | None = None,
    factor: float = 1.0,
    mask_BTS: torch.Tensor | None = None,
) -> torch.Tensor:
    """Differential attention, differentiable in every tensor argument but the mask.

    Args:
        q1_BTHD: queries of the first maps, rotated.
        q2_BTHD: queries of the second maps.
        k1_BSGD: keys of the first maps; H is a multiple of G.
        k2_BSGD: keys of the second maps; V2 gives the same tensor twice.
        v_BSGW: values; W is 2D in V1, D in V2.
        lam: a scalar, or one number a token and head, [B, T, H].
        scale: factor on the scores, usually D ** -0.5.
        eps: of the RMS norm over a head's W values; None: no norm, no weight and no factor.
        weight_W: weight of that norm; None: ones.
        factor: on the normed values; 1 - lambda_init in V1.
        mask_BTS: True where a query may see a key, besides causality; a query that sees none gives zeros.

    Returns:
        [B, T, H, W], in the dtype of ``q1_BTHD``.
    """
    wide = torch.promote_types(q1_BTHD.dtype, torch.float32)
    queries, keys = q1_BTHD.shape[1], k1_BSGD.shape[1]
    distance = torch.arange(keys - queries, keys, device=q1_BTHD.device)[:, None] - torch.arange(
        keys, device=q1_BTHD.device
    )
    visible = (distance >= 0)[None] if mask_BTS is None else (distance >= 0) & mask_BTS
    first, second = (
        _map_of_values(q.to(wide), k.to(wide), v_BSGW.to(wide), scale, visible[:, None])
        for q, k in ((q1_BTHD, k1_BSGD), (q2_BTHD, k2_BSGD))
    )
    o_BTHW = first - (lam if lam.ndim == 0 else lam[..., None]).to(wide) * second
    if eps is not None:
        o_BTHW = o_BTHW * torch.rsqrt(o_BTHW.square().mean(dim=-1, keepdim=True) + eps) * factor
        if weight_W is not None:
            o_BTHW = o_BTHW * weight_W.to(wide)
    return o_BTHW.to(q1_BTHD.dtype)


def _map_of_values(
    q_BTHD: torch.Tensor, k_BSGD: torch.Tensor, v_BSGW: torch.Tensor, scale: float, visible_B1TS: torch.Tensor
) -> torch.Tensor:
    """softmax(scale q . k) v, [B, T, H, W]."""
    repeats = q_BTHD.shape[2] // k_BSGD.shape[2]
    k_BSHD, v_BSHW = (x.repeat_interleave(repeats, dim=2) for x in (k_BSGD, v_BSGW))
    scores_BHTS = torch.einsum("bthd,bshd->bhts", q_BTHD, k_BSHD) * scale
    weights = scores_BHTS.masked_fill(~visible_B1TS, float("-inf")).softmax(dim=-1)
    weights = weights.masked_fill(~visible_B1TS, 0.0)  # a row that sees nothing is NaN until here
    return torch.einsum("bhts,bshw->bthw", weights, v_BSHW)


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
    norm: dict[str, Any] = {"scale": scale, "eps": eps, "weight_W": weight_W, "factor": factor}
    rows = []
    for (t0, t1), (s0, s1) in zip(pairwise(starts_R1.tolist()), pairwise(key_starts_R1.tolist()), strict=True):
        q1, q2 = q1_THD[None, t0:t1], q2_THD[None, t0:t1]
        k1, k2, v = k1_SGD[None, s0:s1], k2_SGD[None, s0:s1], v_SGW[None, s0:s1]
        rows.append(diff_attention(q1, q2, k1, k2, v, lam if lam.ndim == 0 else lam[None, t0:t1], **norm)[0])
    return torch.cat(rows)


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
    norm: dict[str, Any] = {"scale": scale, "eps": eps, "weight_W": weight_W, "factor": factor}
    page_size = v_pages.shape[1]
    for row, (length, (t0, t1)) in enumerate(zip(lengths_R.tolist(), pairwise(starts_R1.tolist()), strict=True)):
        if length == 0 or t0 == t1:
            continue
        at = torch.arange(length, device=q1_THD.device)
        pages = block_table[row, at // page_size].long()
        k1, k2, v = (x[pages, at % page_size][None] for x in (k1_pages, k2_pages, v_pages))
        lam_TH = lam if lam.ndim == 0 else lam[None, t0:t1]
        heads = diff_attention(q1_THD[None, t0:t1], q2_THD[None, t0:t1], k1, k2, v, lam_TH, **norm)
        out_THW[t0:t1] = heads[0].to(out_THW.dtype)
    return out_THW
