"""Selective scan in plain torch: the definition that the Triton kernels are tested against.

For each channel c and state n, with step size delta > 0 (Gu and Dao 2023, arXiv 2312.00752, section 3.2 and 3.6):

    S_t = exp(delta_t A) S_{t-1} + delta_t B_t u_t        y_t = sum_n C_t S_t + D u_t        y_t *= SiLU(z_t)

With ``softplus`` the step size is ``softplus(delta + bias)``, else ``delta + bias``.

Arithmetic is float32, or float64 when the input is. Axes: B batch, T time, C channels, N states, R rows, S slots.
"""

import torch
import torch.nn.functional as F


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
    """See ``nlrl_kernels.selective_scan``."""
    wide = torch.promote_types(u_BTC.dtype, torch.float32)
    u, delta, B, C = (x.to(wide) for x in (u_BTC, delta_BTC, B_BTN, C_BTN))
    A = A_CN.to(wide)
    delta = delta if bias_C is None else delta + bias_C.to(wide)
    delta = F.softplus(delta) if softplus else delta
    state = torch.zeros(len(u), *A.shape, dtype=wide, device=u.device) if start_BCN is None else start_BCN.to(wide)
    drive = delta * u
    ys = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = torch.addcmul(drive[:, t, :, None] * B[:, t, None, :], state, decay)
        ys.append(torch.matmul(state, C[:, t, :, None])[..., 0])
    y = torch.stack(ys, dim=1) if ys else torch.zeros_like(u)
    y = y if D_C is None else y + D_C.to(wide) * u
    if z_BTC is not None:
        y = y * F.silu(z_BTC.to(wide))
    return y.to(u_BTC.dtype), state


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
    """See ``nlrl_kernels.selective_scan_varlen``."""
    out = torch.empty_like(u_TC) if out_TC is None else out_TC
    starts, slots, has_state = starts_R1.tolist(), slots_R.tolist(), has_state_R.tolist()
    for row, slot in enumerate(slots):
        span = slice(starts[row], starts[row + 1])
        if slot < 0 or span.start == span.stop:
            continue
        y, final = selective_scan(
            u_TC[None, span],
            delta_TC[None, span],
            A_CN,
            B_TN[None, span],
            C_TN[None, span],
            D_C,
            None if z_TC is None else z_TC[None, span],
            states_SCN[None, slot] if has_state[row] else start_CN[None],
            bias_C=bias_C,
            softplus=softplus,
        )
        out[span] = y[0]
        states_SCN[slot] = final[0].to(states_SCN.dtype)
    return out


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
    """See ``nlrl_kernels.selective_state_update``."""
    out = torch.empty_like(u_RC) if out_RC is None else out_RC
    live = (slots_R >= 0).nonzero()[:, 0]
    slots = slots_R[live].long()
    y, final = selective_scan(
        u_RC[live, None],
        delta_RC[live, None],
        A_CN,
        B_RN[live, None],
        C_RN[live, None],
        D_C,
        None if z_RC is None else z_RC[live, None],
        states_SCN[slots],
        bias_C=bias_C,
        softplus=softplus,
    )
    out[live] = y[:, 0]
    states_SCN[slots] = final.to(states_SCN.dtype)
    return out
