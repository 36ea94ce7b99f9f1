"""Hymba's norms in plain torch (Dong et al. 2024, arXiv 2411.13676, section 2): what the Triton kernels are tested by.

    rms(x, w) = w x / sqrt(mean(x^2) + eps)

Arithmetic is float32, or float64 when the input is.
"""

import torch
import torch.nn.functional as F


def mean_of_norms(
    x_C: torch.Tensor, z_C: torch.Tensor, x_weight_C: torch.Tensor, z_weight_C: torch.Tensor, eps: float
) -> torch.Tensor:
    """See ``nlrl_kernels.mean_of_norms``."""
    both = _rms(x_C, x_weight_C, eps) + _rms(z_C, z_weight_C, eps)
    return (both / 2).to(x_C.dtype)


def selection_norms(
    x_P: torch.Tensor, dt_weight_R: torch.Tensor, B_weight_N: torch.Tensor, C_weight_N: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``nlrl_kernels.selection_norms``."""
    weights = (dt_weight_R, B_weight_N, C_weight_N)
    parts = x_P.split([len(weight) for weight in weights], dim=-1)
    dt, B, C = (_rms(part, weight, eps) for part, weight in zip(parts, weights, strict=True))
    return dt.to(x_P.dtype), B, C


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), weight.shape, weight.to(wide), eps)
