"""The binary linear layer in plain torch, and the packing of its signs.

FBI-Linear (Ma et al. 2024, arXiv 2407.07093; Bi-Mamba, Tang et al. 2024, arXiv 2411.11843) scales and shifts the signs
of a latent matrix W by input column, W_eff[o, i] = s_i sign(W[o, i]) + b_i, so that

    y_o = sum_i sign(W[o, i]) (s_i x_i) + sum_i b_i x_i:

one product with a matrix of signs, and one number a token that every output shares. sign(0) = 0, of -0 too: such an
entry of W_eff is b_i alone. A bit cannot say that, so zeros are listed apart.

A packed row holds its signs in bytes along the input axis, lowest bit first, 1 where W > 0; bits past the last input
are 0. Axes: O outputs, I inputs, J bytes of a row, Z zeros; x may have any number of leading axes.
"""

import torch
import torch.nn.functional as F

from nlrl_kernels.binary.straight_through import binary_weight

_BITS = 8


def binary_linear(
    x: torch.Tensor,
    packed_OJ: torch.Tensor,
    scale_I: torch.Tensor,
    shift_I: torch.Tensor,
    zeros_Z2: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.binary_linear``. Differentiable in x, scale and shift."""
    wide = torch.promote_types(x.dtype, torch.float32)
    signs_OI = unpack_signs(packed_OJ, x.shape[-1], zeros_Z2, dtype=wide)
    return multiply_signs(x, signs_OI, scale_I, shift_I)


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
    """See ``nlrl_kernels.normed_binary_linear``."""
    wide = torch.promote_types(x.dtype, torch.float32)
    normed = x.to(wide) if gate is None else x.to(wide) * F.silu(gate.to(wide))
    normed = normed * torch.rsqrt(normed.square().mean(dim=-1, keepdim=True) + eps) * weight_I
    y = binary_linear(normed, packed_OJ, scale_I, shift_I, zeros_Z2)
    return y.to(dtype or x.dtype) if residual is None else (residual + y).to(residual.dtype)


def latent_linear(
    x: torch.Tensor, weight_OI: torch.Tensor, scale_I: torch.Tensor, shift_I: torch.Tensor
) -> torch.Tensor:
    """See ``nlrl_kernels.latent_linear``."""
    return F.linear(x, binary_weight(weight_OI, scale_I, shift_I).to(x.dtype))


def multiply_signs(
    x: torch.Tensor, signs_OI: torch.Tensor, scale_I: torch.Tensor, shift_I: torch.Tensor
) -> torch.Tensor:
    """The layer from a dense matrix of signs -1, 0, 1, in whose dtype the product is formed.

    Where memory is no matter this is the faster form on a CPU; shapes as in ``binary_linear``.
    """
    scaled = (x * scale_I).to(signs_OI.dtype)
    shared = (x.to(signs_OI.dtype) * shift_I).sum(dim=-1, keepdim=True)
    return (F.linear(scaled, signs_OI) + shared).to(x.dtype)


def pack_signs(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Bits [O, J] (uint8) and the (output, input) of exact zeros [Z, 2] (int32) of a matrix of any real numbers.

    Raises:
        ValueError: an entry is not finite.
    """
    if not bool(torch.isfinite(weight_OI).all()):
        raise ValueError("A matrix with entries that are not finite has no signs: train or fetch the weights again.")
    outputs, inputs = weight_OI.shape
    bits = F.pad((weight_OI > 0).to(torch.uint8), (0, -inputs % _BITS)).view(outputs, -1, _BITS)
    powers = 1 << torch.arange(_BITS, dtype=torch.uint8, device=weight_OI.device)
    return (bits * powers).sum(dim=-1, dtype=torch.uint8), (weight_OI == 0).nonzero().to(torch.int32)


def unpack_signs(
    packed_OJ: torch.Tensor, inputs: int, zeros_Z2: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The matrix of signs -1, 0, 1 [O, I] that ``pack_signs`` was given; magnitudes are gone."""
    shifts = torch.arange(_BITS, dtype=torch.uint8, device=packed_OJ.device)
    bits_OI = ((packed_OJ[..., None] >> shifts) & 1).flatten(1)[:, :inputs]
    signs_OI = bits_OI.to(dtype).mul_(2).sub_(1)
    if zeros_Z2 is not None and len(zeros_Z2):
        rows, columns = zeros_Z2.long().unbind(dim=1)
        # A zero of another shard (row -1) changes nothing; it adds 0 to the first row instead of 1 to its own.
        here = (rows >= 0).to(dtype)
        signs_OI.index_put_((rows.clamp(min=0), columns), here, accumulate=True)
    return signs_OI
