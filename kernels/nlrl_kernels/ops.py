"""The public operators. Each runs the implementation that ``dispatch`` selects for its first argument.

Axes: B batch, T time or packed tokens, C channels, N states, K convolution width, R rows (requests), R1 rows + 1,
S state slots, H heads (of queries, or of keys and values), D head width, P page size, M always-visible keys; in nGPT's
steps E model width, F feed-forward width, each after any leading axes.
"""

from collections.abc import Sequence
from types import ModuleType

import torch

from nlrl_kernels.dispatch import implementation_for, select


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
    """Causal attention of packed rows over a paged cache, with a window and pinned keys that every query sees.

    The queries of a row are the last tokens of its context. A query at position p sees the M pinned keys and the
    cached keys at positions k <= p with p - k <= window (window + 1 of them; all when window is None). Query head h
    reads key/value head h // (query heads / key heads). Scores and sums are float32. Pages outside the window are
    never read, and the time of a decode depends on the window, not on the context. Pages of a multiple of 64 or 128
    tokens are read fastest. ``scale`` is positive.

    Arguments that need a word:

    - k_pages: keys [pages, P, key heads, key width], any strides.
    - v_pages: values [pages, P, key heads, value width], any strides.
    - block_table: page of each P tokens of a row, [R, pages per row].
    - lengths_R: tokens of each row in the cache, its queries included; 0 for an unused row.
    - starts_R1: first query token of each row, and the end of the last.
    - meta_k_HMD: pinned keys, constant over rows.
    - meta_v_HMD: pinned values.
    - out_THD: where the output is written.
    - max_query_len: no row has more query tokens.
    """
    return select("pinned_window_attention", q_THD)(
        q_THD,
        k_pages,
        v_pages,
        block_table,
        lengths_R,
        starts_R1,
        meta_k_HMD=meta_k_HMD,
        meta_v_HMD=meta_v_HMD,
        window=window,
        scale=scale,
        out_THD=out_THD,
        max_query_len=max_query_len,
    )


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
    """Causal attention of packed rows with a window and pinned first keys; differentiable in q, k and v.

    A query at position p of its row sees the keys at positions k <= p with p - k <= window or k < pinned (all when
    window is None). Query head h reads key/value head h // (H / G). Scores and sums are float32. Gradients are the same
    from run to run.

    Arguments that need a word:

    - k_SGD, v_SGV: keys and values may differ in width.
    - starts_R1: first query of each row, and the end of the last; from 0 to T.
    - key_starts_R1: the same of the keys; a row's queries are the last of its tokens, so it has no more than keys.
    - max_query_len: no row has more queries.
    - pinned: how many of a row's first keys every later query sees.

    Returns:
        [T, H, V] in the dtype of ``q_THD``.
    """
    return _window_attention(q_THD).pinned_window_attention_varlen(
        q_THD,
        k_SGD,
        v_SGV,
        starts_R1=starts_R1,
        key_starts_R1=key_starts_R1,
        max_query_len=max_query_len,
        window=window,
        pinned=pinned,
        scale=scale,
    )


def binary_linear(
    x: torch.Tensor,
    packed_OJ: torch.Tensor,
    scale_I: torch.Tensor,
    shift_I: torch.Tensor,
    zeros_Z2: torch.Tensor | None = None,
) -> torch.Tensor:
    """A linear layer whose matrix is s_i sign(W[o, i]) + b_i, from signs packed one bit each; equations in its folder.

    Source: FBI-Linear (arXiv 2407.07093, Bi-Mamba arXiv 2411.11843), scale and shift by input column. No gradient from
    Triton; the reference has those of x, scale and shift.

    Arguments that need a word:

    - x: [..., I], any strides.
    - packed_OJ: uint8, J = ceil(I / 8); lowest bit first along the input, 1 where W > 0.
    - scale_I: s, in any floating dtype; may be negative or zero.
    - shift_I: b.
    - zeros_Z2: int32 (output, input) of the exact zeros of W, whose bits are 0; a negative output skips the pair.

    Returns:
        [..., O] in the dtype of x.
    """
    return _binary(x).binary_linear(x, packed_OJ, scale_I, shift_I, zeros_Z2)


def normed_binary_linear(
    x: torch.Tensor,
    weight_I: torch.Tensor,
    packed_OJ: torch.Tensor,
    scale_I: torch.Tensor,
    shift_I: torch.Tensor,
    zeros_Z2: torch.Tensor | None = None,
    *,
    eps: float,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``residual + binary_linear(RMSNorm(x * SiLU(gate)))``: what stands around a projection of Bi-Mamba, in one call.

    The norm is over all of the last axis, in float32. No gradient from Triton. With ``weight_I`` 1 in every entry and
    neither gate nor residual it is ``binary_linear`` after a norm without weight.

    Arguments that need a word:

    - x: as in ``binary_linear``, as are the bits and their scales; its norm is taken here.
    - weight_I: of the norm.
    - gate: in the shape of x.
    - residual: [..., O]; also sets the dtype of the result.
    - dtype: of the product, to which scale times x is rounded; x's if None, so name it where x is a float32 stream.

    Returns:
        [..., O] in ``dtype``, or in that of the residual.
    """
    return _binary(x).normed_binary_linear(
        x, weight_I, packed_OJ, scale_I, shift_I, zeros_Z2, eps=eps, gate=gate, residual=residual, dtype=dtype
    )


def latent_linear(
    x: torch.Tensor, weight_OI: torch.Tensor, scale_I: torch.Tensor, shift_I: torch.Tensor
) -> torch.Tensor:
    """The same layer from the latent matrix that trains; differentiable in every argument.

    The gradient passes the sign as if it were the identity, without clipping (straight-through): for g = dL/dW_eff
    that is scale g for the matrix, and sums by column of sign(W) g and of g for scale and shift. Source: as
    ``binary_linear``. The matrix may be float32 where x is not; W_eff is rounded to the dtype of x. Under autocast x is
    brought to its dtype, as a linear layer does.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    return _binary(x).latent_linear(x, weight_OI, scale_I, shift_I)


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
    """Causal differential attention of packed rows, and the norm over each head; differentiable in every tensor.

    ``softmax(scale q1 k1) v - lam softmax(scale q2 k2) v``, then, where ``eps`` is given, each head over its root mean
    square, times ``factor`` and ``weight_W``. Source: Ye et al. 2024, arXiv 2410.05258, equations 1 to 4. Query head h
    reads key/value head h // (H / G); here S packed keys, G their heads, W width of a value.

    Arguments that need a word:

    - k2_SGD: may be ``k1_SGD`` itself, as in V2; it is then read once.
    - lam: a scalar, or one number a token and head, [T, H].
    - starts_R1: first query of each row, and the end of the last.
    - key_starts_R1: the same of the keys; a row's queries are the last of its tokens, so it has no more than keys.
    - max_query_len, max_key_len: no row has more.
    - weight_W: ones when None; not looked at without ``eps``, as ``factor``.

    Returns:
        [T, H, W] in the dtype of ``q1_THD``.
    """
    return select("diff_attention_varlen", q1_THD)(
        q1_THD,
        q2_THD,
        k1_SGD,
        k2_SGD,
        v_SGW,
        lam,
        starts_R1=starts_R1,
        key_starts_R1=key_starts_R1,
        max_query_len=max_query_len,
        max_key_len=max_key_len,
        scale=scale,
        eps=eps,
        weight_W=weight_W,
        factor=factor,
    )


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
    """``diff_attention_varlen`` over a paged cache, for prefill in chunks and for decode; no gradient.

    Arguments that need a word:

    - k1_pages: keys of the first maps [pages, P, G, D], any strides but the last; both maps' keys of a head may lie in
      one cached head of width 2 D. ``k2_pages`` may be the same tensor.
    - v_pages: values [pages, P, G, W].
    - block_table: page of each P tokens of a row, [R, pages per row].
    - lengths_R: tokens of each row in the cache, its queries included; 0 for an unused row.
    - out_THW: where the output is written; tokens of no row are left alone.
    """
    return select("diff_attention_paged", q1_THD)(
        q1_THD,
        q2_THD,
        k1_pages,
        k2_pages,
        v_pages,
        block_table,
        lengths_R,
        starts_R1,
        lam,
        scale=scale,
        out_THW=out_THW,
        max_query_len=max_query_len,
        eps=eps,
        weight_W=weight_W,
        factor=factor,
    )


def residual_step(h_E: torch.Tensor, o_E: torch.Tensor, alpha_E: torch.Tensor) -> torch.Tensor:
    """``unit(A + alpha (unit(o) - A))`` with ``A = unit(h)``: from h towards o along the sphere.

    Source: nGPT (arXiv 2410.01131, section 2). Differentiable in every argument. A zero vector gives NaN in its row.

    Returns:
        In the shape and dtype of ``h_E``.
    """
    return _hypersphere(h_E).residual_step(h_E, o_E, alpha_E)


def qk_step(
    x_HD: torch.Tensor, scale_HD: torch.Tensor, cross_D: torch.Tensor, keep_D: torch.Tensor | None = None
) -> torch.Tensor:
    """``scale * unit(position step of x)`` for each head of queries or keys; differentiable in x and the scale.

    The position step is ``keep * x + cross * swapped(x)``, pairs (2j, 2j+1) swapped; without ``keep_D`` there is no
    first part. Source: nGPT, as ``residual_step``.

    Arguments that need a word:

    - x_HD: heads with adjacent entries are read where they are, others copied.
    - scale_HD: broadcasts; for its gradient in Triton it must be [H, D].
    - cross_D: broadcasts over heads, [..., 1, D]; only the reference gives the gradient of a table.
    - keep_D: as ``cross_D``.
    """
    return _hypersphere(x_HD).qk_step(x_HD, scale_HD, cross_D, keep_D)


def scaled_swiglu(uv_F: torch.Tensor, scale_F: torch.Tensor) -> torch.Tensor:
    """``u * SiLU(v)`` of the halves [u, v] of ``scale * uv``, half as wide as its input; differentiable in both."""
    return _hypersphere(uv_F).scaled_swiglu(uv_F, scale_F)


def normalize_vectors_(matrices: Sequence[torch.Tensor], axes: Sequence[int]) -> None:
    """Divide each matrix, in place, by its lengths along its axis (0: of columns, 1 or -1: of rows); no gradient.

    On a GPU that is one launch for all matrices of one dtype and vector length. Not for matrices that move at every
    call: where they lie is remembered.
    """
    if matrices:
        select("normalize_vectors_", matrices[0])(matrices, axes)


def _binary(tensor: torch.Tensor) -> ModuleType:
    """As ``_hypersphere``."""
    if implementation_for(tensor) == "triton":
        from nlrl_kernels.binary import triton_impl as chosen
    else:
        from nlrl_kernels.binary import reference as chosen
    return chosen


def _window_attention(tensor: torch.Tensor) -> ModuleType:
    """What ``select`` does, by statements that torch.compile follows."""
    if implementation_for(tensor) == "triton":
        from nlrl_kernels.window_attention import triton_impl as chosen
    else:
        from nlrl_kernels.window_attention import reference as chosen
    return chosen


def _hypersphere(tensor: torch.Tensor) -> ModuleType:
    """What ``select`` does, by statements that torch.compile follows."""
    if implementation_for(tensor) == "triton":
        from nlrl_kernels.hypersphere import triton_impl as chosen
    else:
        from nlrl_kernels.hypersphere import reference as chosen
    return chosen
