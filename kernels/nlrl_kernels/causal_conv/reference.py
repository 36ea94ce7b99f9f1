"""The short causal depthwise convolution in plain torch, over packed rows with states.

    y_t = SiLU(bias + sum_{k < K} weight_k x_{t - K + 1 + k})

where x before the row's first token is its state: the last K - 1 raw inputs, oldest first. Arithmetic is float32 or
wider. Axes: T packed tokens, C channels, K width (states: K - 1), R rows, S slots.
"""

import torch
import torch.nn.functional as F


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
    """See ``nlrl_kernels.causal_conv1d_varlen``."""
    out = torch.empty_like(x_TC) if out_TC is None else out_TC
    starts, slots, has_state = starts_R1.tolist(), slots_R.tolist(), has_state_R.tolist()
    for row, slot in enumerate(slots):
        span = slice(starts[row], starts[row + 1])
        if slot < 0 or span.start == span.stop:
            continue
        past_KC = states_SKC[slot] if has_state[row] else start_KC
        y, raw = _convolve(x_TC[None, span], past_KC[None], weight_CK, bias_C)
        out[span] = y[0]
        states_SKC[slot] = raw[0, len(raw[0]) - len(past_KC) :].to(states_SKC.dtype)
    return out


def causal_conv1d_update(
    x_RC: torch.Tensor,
    weight_CK: torch.Tensor,
    bias_C: torch.Tensor,
    *,
    states_SKC: torch.Tensor,
    slots_R: torch.Tensor,
    out_RC: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.causal_conv1d_update``."""
    out = torch.empty_like(x_RC) if out_RC is None else out_RC
    live = (slots_R >= 0).nonzero()[:, 0]
    slots = slots_R[live].long()
    y, raw = _convolve(x_RC[live, None], states_SKC[slots], weight_CK, bias_C)
    out[live] = y[:, 0]
    states_SKC[slots] = raw[:, 1:].to(states_SKC.dtype)
    return out


def _convolve(
    x_BTC: torch.Tensor, past_BKC: torch.Tensor, weight_CK: torch.Tensor, bias_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [B, T, C] and the raw inputs it saw [B, K - 1 + T, C]."""
    wide = torch.promote_types(x_BTC.dtype, torch.float32)
    raw = torch.cat([past_BKC.to(wide), x_BTC.to(wide)], dim=1)
    y = F.conv1d(raw.transpose(1, 2), weight_CK[:, None].to(wide), bias_C.to(wide), groups=len(weight_CK))
    return F.silu(y).transpose(1, 2).to(x_BTC.dtype), raw
