"""The public operators around Hymba's scan; the others are in ``ops``, whose axes hold here.

C channels, N states, K convolution width, P what a projection gives for dt, B and C side by side, R rows (in
``selection_norms`` the width of dt).
"""

from types import ModuleType

import torch

from nlrl_kernels.dispatch import implementation_for, select


def selective_scan(
    u_BTC: torch.Tensor,
    delta_BTC: torch.Tensor,
    A_CN: torch.Tensor,
    B_BTN: torch.Tensor,
    C_BTN: torch.Tensor,
    D_C: torch.Tensor | None = None,
    z_BTC: torch.Tensor | None = None,
    start_BCN: torch.Tensor | None = None,
    *,
    bias_C: torch.Tensor | None = None,
    softplus: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mamba-1's scan over whole sequences; differentiable in every tensor argument.

    Source: Gu and Dao 2023, arXiv 2312.00752, section 3.6. Equations: ``mamba_scan/reference.py``.

    Arguments that need a word:

    - delta_BTC: the step size, or what it is the softplus of.
    - A_CN: negative.
    - B_BTN, C_BTN: best in float32, which every lane then reads as it is; other dtypes are converted first.
    - D_C: the share of the input that skips the state; none when None.
    - z_BTC: the output is multiplied by SiLU of this gate, if given.
    - start_BCN: the state before the first token; zeros when None.
    - bias_C: added to ``delta_BTC``.
    - softplus: the step size is ``softplus(delta + bias)``. A step of size 0, which leaves the state alone, is then
      made by a delta of minus infinity.

    Returns:
        y_BTC in the dtype of ``u_BTC`` and the final state [B, C, N] in float32 (float64 for float64 input).
    """
    return select("selective_scan", u_BTC)(
        u_BTC, delta_BTC, A_CN, B_BTN, C_BTN, D_C, z_BTC, start_BCN, bias_C=bias_C, softplus=softplus
    )


def selective_scan_varlen(
    u_TC: torch.Tensor,
    delta_TC: torch.Tensor,
    A_CN: torch.Tensor,
    B_TN: torch.Tensor,
    C_TN: torch.Tensor,
    D_C: torch.Tensor | None,
    *,
    starts_R1: torch.Tensor,
    states_SCN: torch.Tensor,
    slots_R: torch.Tensor,
    has_state_R: torch.Tensor,
    start_CN: torch.Tensor,
    z_TC: torch.Tensor | None = None,
    out_TC: torch.Tensor | None = None,
    bias_C: torch.Tensor | None = None,
    softplus: bool = False,
    longest: int | None = None,
) -> torch.Tensor:
    """The scan over packed rows, each continuing from its slot's state; no gradient, no host synchronisation.

    Arguments that need a word:

    - starts_R1: first token of each row, and the end of the last.
    - states_SCN: states by slot, any strides; rows read theirs and write it back.
    - slots_R: slot of each row; a negative slot skips the row and leaves its output untouched.
    - has_state_R: whether the row's slot holds its state; if not, the row starts from ``start_CN``.
    - out_TC: where to write the output; allocated when None.
    - longest: no row has more tokens; decides only how work is cut up.
    """
    return select("selective_scan_varlen", u_TC)(
        u_TC,
        delta_TC,
        A_CN,
        B_TN,
        C_TN,
        D_C,
        starts_R1=starts_R1,
        states_SCN=states_SCN,
        slots_R=slots_R,
        has_state_R=has_state_R,
        start_CN=start_CN,
        z_TC=z_TC,
        out_TC=out_TC,
        bias_C=bias_C,
        softplus=softplus,
        longest=longest,
    )


def selective_state_update(
    u_RC: torch.Tensor,
    delta_RC: torch.Tensor,
    A_CN: torch.Tensor,
    B_RN: torch.Tensor,
    C_RN: torch.Tensor,
    D_C: torch.Tensor | None,
    *,
    states_SCN: torch.Tensor,
    slots_R: torch.Tensor,
    z_RC: torch.Tensor | None = None,
    out_RC: torch.Tensor | None = None,
    bias_C: torch.Tensor | None = None,
    softplus: bool = False,
) -> torch.Tensor:
    """One token per row: the decode step of ``selective_scan_varlen``, every row continuing from its slot."""
    return select("selective_state_update", u_RC)(
        u_RC,
        delta_RC,
        A_CN,
        B_RN,
        C_RN,
        D_C,
        states_SCN=states_SCN,
        slots_R=slots_R,
        z_RC=z_RC,
        out_RC=out_RC,
        bias_C=bias_C,
        softplus=softplus,
    )


def mean_of_norms(
    x_C: torch.Tensor, z_C: torch.Tensor, x_weight_C: torch.Tensor, z_weight_C: torch.Tensor, eps: float
) -> torch.Tensor:
    """``(rms(x, x_weight) + rms(z, z_weight)) / 2`` over the last axis; differentiable in every tensor argument.

    Source: Hymba (Dong et al. 2024, arXiv 2411.13676, section 2), whose beta vectors are the weights. All arithmetic is
    float32 or wider and the result is rounded once, where the official code also rounds each norm.

    Returns:
        In the shape and dtype of ``x_C``.
    """
    return _hymba_norms(x_C).mean_of_norms(x_C, z_C, x_weight_C, z_weight_C, eps)


def selection_norms(
    x_P: torch.Tensor, dt_weight_R: torch.Tensor, B_weight_N: torch.Tensor, C_weight_N: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The RMS norms of the three things that Hymba's scan selects by; differentiable in every tensor argument.

    Not within the scan: the first goes into a projection, and the others would be repeated by every block of channels.

    Returns:
        dt [..., R] in the dtype of ``x_P``; B and C [..., N] in float32, as scans read them (float64 for float64).
    """
    return _hymba_norms(x_P).selection_norms(x_P, dt_weight_R, B_weight_N, C_weight_N, eps)


def causal_conv1d_varlen(
    x_TC: torch.Tensor,
    weight_CK: torch.Tensor,
    bias_C: torch.Tensor,
    *,
    starts_R1: torch.Tensor,
    states_SKC: torch.Tensor,
    slots_R: torch.Tensor,
    has_state_R: torch.Tensor,
    start_KC: torch.Tensor,
    out_TC: torch.Tensor | None = None,
) -> torch.Tensor:
    """SiLU of the causal depthwise convolution over packed rows; no gradient, no host synchronisation.

    Arguments that need a word:

    - states_SKC: per slot the last K - 1 raw inputs, oldest first, any strides; rows read and write back theirs.
    - start_KC: the K - 1 inputs that stand before a row without a state.

    The other arguments are as in ``selective_scan_varlen``.
    """
    return select("causal_conv1d_varlen", x_TC)(
        x_TC,
        weight_CK,
        bias_C,
        starts_R1=starts_R1,
        states_SKC=states_SKC,
        slots_R=slots_R,
        has_state_R=has_state_R,
        start_KC=start_KC,
        out_TC=out_TC,
    )


def causal_conv1d_update(
    x_RC: torch.Tensor,
    weight_CK: torch.Tensor,
    bias_C: torch.Tensor,
    *,
    states_SKC: torch.Tensor,
    slots_R: torch.Tensor,
    out_RC: torch.Tensor | None = None,
) -> torch.Tensor:
    """One token per row: the decode step of ``causal_conv1d_varlen``, every row continuing from its slot."""
    return select("causal_conv1d_update", x_RC)(
        x_RC, weight_CK, bias_C, states_SKC=states_SKC, slots_R=slots_R, out_RC=out_RC
    )


def _hymba_norms(tensor: torch.Tensor) -> ModuleType:
    """What ``select`` does, by statements that torch.compile follows."""
    if implementation_for(tensor) == "triton":
        from nlrl_kernels.hymba_norms import triton_impl as chosen
    else:
        from nlrl_kernels.hymba_norms import reference as chosen
    return chosen
