"""The matrix that a binary layer trains with: binarised on the way forward, left alone on the way back."""

import torch


class _BinaryWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, scale, shift):  # noqa: ANN001, ANN205  the signature autograd asks for
        ctx.save_for_backward(weight, scale)
        ctx.shift_shape = shift.shape
        return scale * weight.sign() + shift

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001, ANN205
        weight, scale = ctx.saved_tensors
        of_weight, of_scale, of_shift = ctx.needs_input_grad
        return (
            gradient * scale if of_weight else None,
            (gradient * weight.sign()).sum_to_size(scale.shape) if of_scale else None,
            gradient.sum_to_size(ctx.shift_shape) if of_shift else None,
        )


def binary_weight(weight_OI: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """``scale * sign(weight) + shift``, with the straight-through gradient of the sign: the identity, not clipped.

    For g = dL/dW_eff: dL/dweight = scale g, dL/dscale = sum of sign(weight) g and dL/dshift = sum of g, each sum over
    the axes that were broadcast. Official scripts scale by input column, [1, I]; [O, 1] and [1] work as well.
    """
    return _BinaryWeight.apply(weight_OI, scale, shift)  # type: ignore[return-value]
