"""The two forms of a binarised projection: latent, which trains, and packed, which keeps one bit a weight.

Both compute x W_eff^T with W_eff = wscale * sign(W) + wbias by input column (arXiv 2411.11843, section 3.2).
"""

import torch
from torch import nn

from nlrl_kernels import binary_linear, latent_linear
from nlrl_kernels.binary.reference import multiply_signs, unpack_signs


class LatentLinear(nn.Module):
    """Real numbers whose signs count; the gradient passes the sign unchanged. W [O, I], wscale and wbias [1, I]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.wscale = nn.Parameter(torch.empty(1, inputs))
        self.wbias = nn.Parameter(torch.empty(1, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., I] to [..., O]."""
        return latent_linear(x, self.weight, self.wscale[0], self.wbias[0])


class PackedLinear(nn.Module):
    """Signs as bits (buffers), with scales and shifts that still have gradients."""

    weight_zeros: torch.Tensor | None

    def __init__(self, inputs: int, outputs: int, zeros: int) -> None:
        super().__init__()
        self.register_buffer("weight_packed", torch.empty(outputs, -(-inputs // 8), dtype=torch.uint8))
        self.register_buffer("weight_zeros", torch.empty(zeros, 2, dtype=torch.int32) if zeros else None)
        self.wscale = nn.Parameter(torch.empty(1, inputs))
        self.wbias = nn.Parameter(torch.empty(1, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., I] to [..., O]."""
        scale, shift = self.wscale[0], self.wbias[0]
        assert isinstance(self.weight_packed, torch.Tensor)
        if torch.is_grad_enabled() or x.dtype == torch.float64:  # the kernel has no gradient and no float64
            signs = unpack_signs(self.weight_packed, x.shape[-1], self.weight_zeros, dtype=x.dtype)
            return multiply_signs(x, signs, scale, shift)
        return binary_linear(x, self.weight_packed, scale, shift, self.weight_zeros)
