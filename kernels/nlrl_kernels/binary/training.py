"""The binary layer that trains, from a latent matrix, as operations that torch.compile takes whole.

Forward, one launch binarises the matrix straight into the dtype of the product, which a dense library multiplies.
Backward, it is binarised anew rather than kept (two bytes a weight over all of the layers, against one pass over the
latent matrix), and one launch turns the gradient of the effective matrix into those of matrix, scale and shift. Sums
over columns are partial sums of blocks of rows, added in one order.
"""

# Triton types neither launches nor its own helpers, and arguments of a kernel are pointers and scalars:
# ruff: noqa: ANN001, ANN201
# pyright: reportCallIssue=false, reportArgumentType=false

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

_BLOCK = {"BLOCK_O": 16, "BLOCK_I": 128}
_ROWS = 128
"""Outputs of a program of the backward pass, in blocks."""


@triton.jit
def binarize(
    weight_ptr, scale_ptr, shift_ptr, dense_ptr, outputs, inputs,
    WIDE: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """``scale * sign(weight) + shift`` of a tile, rounded once."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    in_i = i < inputs
    at, mask = o.to(tl.int64)[:, None] * inputs + i[None, :], (o < outputs)[:, None] & in_i[None, :]
    weight = tl.load(weight_ptr + at, mask=mask, other=0.0)
    scale = tl.load(scale_ptr + i, mask=in_i, other=0.0).to(WIDE)[None, :]
    shift = tl.load(shift_ptr + i, mask=in_i, other=0.0).to(WIDE)[None, :]
    signed = tl.where(weight > 0, scale, tl.where(weight < 0, -scale, 0.0))
    tl.store(dense_ptr + at, signed + shift, mask=mask)


@triton.jit
def straight_through(
    gradient_ptr, weight_ptr, scale_ptr, dweight_ptr, dscale_ptr, dshift_ptr, outputs, inputs, ROWS,
    WIDE: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """From the gradient g of the effective matrix: scale g, and sums of sign(weight) g and of g over ROWS outputs."""
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    in_i = i < inputs
    scale = tl.load(scale_ptr + i, mask=in_i, other=0.0).to(WIDE)[None, :]
    dscale, dshift = tl.zeros((BLOCK_O, BLOCK_I), WIDE), tl.zeros((BLOCK_O, BLOCK_I), WIDE)
    begin = tl.program_id(0) * ROWS
    for first in range(begin, begin + ROWS, BLOCK_O):
        o = first + tl.arange(0, BLOCK_O)
        at, mask = o.to(tl.int64)[:, None] * inputs + i[None, :], (o < outputs)[:, None] & in_i[None, :]
        weight = tl.load(weight_ptr + at, mask=mask, other=0.0)
        gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0).to(WIDE)
        dscale += tl.where(weight > 0, gradient, tl.where(weight < 0, -gradient, 0.0))
        dshift += gradient
        tl.store(dweight_ptr + at, scale * gradient, mask=mask)
    at = tl.program_id(0) * inputs + i
    tl.store(dscale_ptr + at, tl.sum(dscale, axis=0), mask=in_i)
    tl.store(dshift_ptr + at, tl.sum(dshift, axis=0), mask=in_i)


def latent_linear(
    x: torch.Tensor, weight_OI: torch.Tensor, scale_I: torch.Tensor, shift_I: torch.Tensor
) -> torch.Tensor:
    """See ``nlrl_kernels.latent_linear``."""
    return _latent(x, weight_OI, scale_I, shift_I)


def _effective(weight: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    outputs, inputs = weight.shape
    dense_OI = torch.empty(outputs, inputs, dtype=dtype, device=weight.device)
    grid = (triton.cdiv(outputs, _BLOCK["BLOCK_O"]), triton.cdiv(inputs, _BLOCK["BLOCK_I"]))
    binarize[grid](
        weight.contiguous(), scale.contiguous(), shift.contiguous(), dense_OI, outputs, inputs,
        WIDE=_wide(dtype), **_BLOCK, num_warps=4,
    )  # fmt: skip
    return dense_OI


def _wide(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


@torch.library.custom_op("nlrl_kernels::latent_linear", mutates_args=())
def _latent(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return F.linear(x, _effective(weight, scale, shift, x.dtype))


@_latent.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("nlrl_kernels::latent_linear_backward", mutates_args=())
def _latent_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    outputs, inputs = weight.shape
    dy_TO, x_TI = dy.reshape(-1, outputs), x.reshape(-1, inputs)
    dx = torch.mm(dy_TO, _effective(weight, scale, shift, dy.dtype)).view(x.shape)
    gradient_OI = torch.mm(dy_TO.T, x_TI)
    parts = triton.cdiv(outputs, _ROWS)
    dweight = torch.empty(outputs, inputs, dtype=weight.dtype, device=weight.device)
    wide = torch.promote_types(dy.dtype, torch.float32)
    sums = [torch.empty(parts, inputs, dtype=wide, device=weight.device) for _ in range(2)]
    straight_through[(parts, triton.cdiv(inputs, _BLOCK["BLOCK_I"]))](
        gradient_OI, weight.contiguous(), scale.contiguous(), dweight, *sums, outputs, inputs, _ROWS,
        WIDE=_wide(dy.dtype), **_BLOCK, num_warps=4,
    )  # fmt: skip
    return dx, dweight, sums[0].sum(0).to(scale.dtype), sums[1].sum(0).to(shift.dtype)


@_latent_backward.register_fake
def _(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dx, dweight, dscale, dshift = (tensor.new_empty(tensor.shape) for tensor in (x, weight, scale, shift))
    return dx, dweight, dscale, dshift


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


_latent.register_autograd(
    lambda ctx, dy: _latent_backward(dy, *ctx.saved_tensors),
    setup_context=_keep,
)
