"""The binary linear layer in Triton; equations and axes in ``reference.py``.

Both kernels read packed bytes and form the signs in registers: the dense matrix never exists in memory. Up to
``_FEW`` rows are a matrix-vector product in float32 on the ordinary cores, since reading the bits is what costs; more
rows use the tensor cores. Zeros are looked up by each block of outputs among all of them: there are a few in a matrix
or none, and none cost nothing.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl

_FEW = 8
_BLOCK_FEW = {"BLOCK_O": 16, "BLOCK_J": 32}
_BLOCK_MANY = {"BLOCK_O": 64, "BLOCK_J": 8}


@triton.jit
def _few_rows(
    x_ptr, packed_ptr, scale_ptr, shift_ptr, zeros_ptr, out_ptr,
    rows, inputs, outputs, zeros, x_t, out_t,
    ROWS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """One program: a block of outputs of every row. ROWS >= rows is a power of two."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_o = o < outputs
    width = tl.cdiv(inputs, 8)
    bit = tl.arange(0, 8)[None, :]
    t = tl.arange(0, ROWS)
    y = tl.zeros((ROWS, BLOCK_O), tl.float32)
    for begin in range(0, width, BLOCK_J):
        j = begin + tl.arange(0, BLOCK_J)
        i = j[:, None] * 8 + bit
        in_i = i < inputs
        scale = tl.load(scale_ptr + i, mask=in_i, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + i, mask=in_i, other=0.0).to(tl.float32)
        at = o[:, None].to(tl.int64) * width + j[None, :]
        packed = tl.load(packed_ptr + at, mask=in_o[:, None] & (j < width)[None, :], other=0).to(tl.int32)
        signs = (((packed[:, :, None] >> bit[None, :, :]) & 1) * 2 - 1).to(tl.float32)
        for row in tl.static_range(ROWS):  # type: ignore[misc]
            x = tl.load(x_ptr + row * x_t + i, mask=in_i & (row < rows), other=0.0).to(tl.float32)
            part = tl.sum(tl.sum(signs * (x * scale)[None, :, :], axis=2), axis=1)
            part += tl.sum(tl.sum(x * shift, axis=1), axis=0)
            y += tl.where(t[:, None] == row, part[None, :], 0.0)
    for z in range(zeros):
        zero = tl.load(zeros_ptr + 2 * z)
        column = tl.load(zeros_ptr + 2 * z + 1)
        if (zero >= tl.program_id(0) * BLOCK_O) & (zero < (tl.program_id(0) + 1) * BLOCK_O):
            x = tl.load(x_ptr + t * x_t + column, mask=t < rows, other=0.0).to(tl.float32)
            x = x * tl.load(scale_ptr + column).to(tl.float32)
            y += tl.where(o[None, :] == zero, x[:, None], 0.0)
    tl.store(out_ptr + t[:, None] * out_t + o[None, :], y, mask=(t < rows)[:, None] & in_o[None, :])


@triton.jit
def _many_rows(
    x_ptr, packed_ptr, scale_ptr, shift_ptr, zeros_ptr, out_ptr,
    rows, inputs, outputs, zeros, x_t, out_t,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """One program: a tile of rows and outputs."""
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    in_t, in_o = t < rows, o < outputs
    width = tl.cdiv(inputs, 8)
    x_ptr += t.to(tl.int64) * x_t
    bit = tl.arange(0, 8)
    dtype = x_ptr.dtype.element_ty
    y = tl.zeros((BLOCK_T, BLOCK_O), tl.float32)
    shared = tl.zeros((BLOCK_T,), tl.float32)
    for begin in range(0, width, BLOCK_J):
        i = begin * 8 + tl.arange(0, BLOCK_J * 8)
        in_i = i < inputs
        x = tl.load(x_ptr[:, None] + i[None, :], mask=in_t[:, None] & in_i[None, :], other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + i, mask=in_i, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + i, mask=in_i, other=0.0).to(tl.float32)
        shared += tl.sum(x * shift[None, :], axis=1)
        j = begin + tl.arange(0, BLOCK_J)
        at = o[None, :].to(tl.int64) * width + j[:, None]
        packed = tl.load(packed_ptr + at, mask=(j < width)[:, None] & in_o[None, :], other=0).to(tl.int32)
        signs = ((packed[:, None, :] >> bit[None, :, None]) & 1) * 2 - 1
        signs = tl.reshape(signs, (BLOCK_J * 8, BLOCK_O)).to(dtype)
        y = tl.dot((x * scale[None, :]).to(dtype), signs, acc=y, input_precision="ieee")
    for z in range(zeros):
        zero = tl.load(zeros_ptr + 2 * z)
        column = tl.load(zeros_ptr + 2 * z + 1)
        if (zero >= tl.program_id(0) * BLOCK_O) & (zero < (tl.program_id(0) + 1) * BLOCK_O):
            x = tl.load(x_ptr + column, mask=in_t, other=0.0).to(tl.float32)
            x = (x * tl.load(scale_ptr + column).to(tl.float32)).to(dtype).to(tl.float32)
            y += tl.where(o[None, :] == zero, x[:, None], 0.0)
    out = out_ptr + t.to(tl.int64)[:, None] * out_t + o[None, :]
    tl.store(out, y + shared[:, None], mask=in_t[:, None] & in_o[None, :])


def binary_linear(
    x: torch.Tensor,
    packed_OJ: torch.Tensor,
    scale_I: torch.Tensor,
    shift_I: torch.Tensor,
    zeros_Z2: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.binary_linear``."""
    inputs, outputs = x.shape[-1], len(packed_OJ)
    x_TI = x.reshape(-1, inputs)
    x_TI = x_TI if x_TI.stride(-1) == 1 else x_TI.contiguous()
    out_TO = torch.empty(len(x_TI), outputs, dtype=x.dtype, device=x.device)
    rows = len(x_TI)
    if rows:
        zeros = 0 if zeros_Z2 is None else len(zeros_Z2)
        arguments = (
            x_TI, packed_OJ.contiguous(), scale_I.contiguous(), shift_I.contiguous(),
            packed_OJ if zeros_Z2 is None else zeros_Z2.contiguous(), out_TO,
            rows, inputs, outputs, zeros, x_TI.stride(0), out_TO.stride(0),
        )  # fmt: skip
        if rows <= _FEW:
            grid = (triton.cdiv(outputs, _BLOCK_FEW["BLOCK_O"]),)
            _few_rows[grid](*arguments, ROWS=triton.next_power_of_2(rows), **_BLOCK_FEW, num_warps=4)
        else:
            block = 16 if rows <= 16 else 64
            grid = (triton.cdiv(outputs, _BLOCK_MANY["BLOCK_O"]), triton.cdiv(rows, block))
            _many_rows[grid](*arguments, BLOCK_T=block, **_BLOCK_MANY, num_warps=4)
    return out_TO.view(*x.shape[:-1], outputs)
