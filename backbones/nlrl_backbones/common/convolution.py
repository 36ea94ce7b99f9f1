"""The short causal depthwise convolution of Mamba layers, as training wants it."""

import torch
import torch.nn.functional as F


def shifted_convolution(raw_BSC: torch.Tensor, weight_CK: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
    """``SiLU(bias + sum_k weight_k x_{t - K + 1 + k})`` as a sum of shifted inputs.

    No transposes, and a backward pass of plain sums: libraries' depthwise convolutions are slow backwards.

    Args:
        raw_BSC: the K - 1 inputs before the first token, then the tokens: S = K - 1 + T.
        weight_CK: one filter a channel, the newest input's weight last.
        bias_C: one number a channel.

    Returns:
        [B, T, C].
    """
    taps = weight_CK.unbind(dim=-1)
    length = raw_BSC.shape[1] - len(taps) + 1
    y_BTC = bias_C + taps[0] * raw_BSC[:, :length]
    for k, tap in enumerate(taps[1:], start=1):
        y_BTC = y_BTC + tap * raw_BSC[:, k : k + length]
    return F.silu(y_BTC)
