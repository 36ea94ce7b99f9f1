"""The jitted kernels of Hymba's norms; launched by ``triton_impl``, defined by ``reference``.

Bound by memory: a row is read once, stays in registers, and is written once. Gradients of weights are added up over the
rows of a program and written, one line a program, to be added up outside in a fixed order.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def _inverse_rms(x, width, eps):
    """1 / sqrt(mean(x^2) + eps) of each row, whose entries outside are 0."""
    return 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / width + eps)


@triton.jit
def _row_gradient(normed, inverse, dnormed, width):
    """Gradient of rows whose normed entries, without weight, have this gradient."""
    return (dnormed - normed * (tl.sum(normed * dnormed, axis=1) / width)[:, None]) * inverse[:, None]


@triton.jit
def mean_forward(
    x_ptr, z_ptr, x_weight_ptr, z_weight_ptr, y_ptr, width, eps, x_row, z_row,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_C)[None, :]
    inside = c < width
    x = tl.load(x_ptr + row * x_row + c, mask=inside, other=0.0).to(WIDE)
    z = tl.load(z_ptr + row * z_row + c, mask=inside, other=0.0).to(WIDE)
    x_weight = tl.load(x_weight_ptr + c, mask=inside, other=0.0).to(WIDE)
    z_weight = tl.load(z_weight_ptr + c, mask=inside, other=0.0).to(WIDE)
    x_half, z_half = 0.5 * _inverse_rms(x, width, eps)[:, None], 0.5 * _inverse_rms(z, width, eps)[:, None]
    tl.store(y_ptr + row * width + c, x * x_half * x_weight + z * z_half * z_weight, mask=inside)


@triton.jit
def mean_backward(
    x_ptr, z_ptr, x_weight_ptr, z_weight_ptr, dy_ptr, dx_ptr, dz_ptr, dx_weight_ptr, dz_weight_ptr,
    rows, width, eps, x_row, z_row, WIDE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: every so many-th row."""
    c = tl.arange(0, BLOCK_C)[None, :]
    inside = c < width
    x_weight = tl.load(x_weight_ptr + c, mask=inside, other=0.0).to(WIDE)
    z_weight = tl.load(z_weight_ptr + c, mask=inside, other=0.0).to(WIDE)
    dx_weight, dz_weight = tl.zeros((1, BLOCK_C), WIDE), tl.zeros((1, BLOCK_C), WIDE)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        x = tl.load(x_ptr + row * x_row + c, mask=inside, other=0.0).to(WIDE)
        z = tl.load(z_ptr + row * z_row + c, mask=inside, other=0.0).to(WIDE)
        half = 0.5 * tl.load(dy_ptr + row * width + c, mask=inside, other=0.0).to(WIDE)
        inverse_x, inverse_z = _inverse_rms(x, width, eps), _inverse_rms(z, width, eps)
        x, z = x * inverse_x[:, None], z * inverse_z[:, None]
        dx_weight += half * x
        dz_weight += half * z
        tl.store(dx_ptr + row * width + c, _row_gradient(x, inverse_x, half * x_weight, width), mask=inside)
        tl.store(dz_ptr + row * width + c, _row_gradient(z, inverse_z, half * z_weight, width), mask=inside)
    line = tl.program_id(0).to(tl.int64) * width + c
    tl.store(dx_weight_ptr + line, dx_weight, mask=inside)
    tl.store(dz_weight_ptr + line, dz_weight, mask=inside)


@triton.jit
def _norm_part(x_ptr, weight_ptr, y_ptr, row, in_r, x_row, width, eps, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)[None, :]
    inside = in_r & (i < width)
    x = tl.load(x_ptr + row * x_row + i, mask=inside, other=0.0).to(WIDE)
    weight = tl.load(weight_ptr + i, mask=i < width, other=0.0).to(WIDE)
    tl.store(y_ptr + row * width + i, x * _inverse_rms(x, width, eps)[:, None] * weight, mask=inside)


@triton.jit
def selection_forward(
    x_ptr, dt_weight_ptr, B_weight_ptr, C_weight_ptr, dt_ptr, B_ptr, C_ptr, rows, rank, states, eps, x_row,
    WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: ROWS tokens, the three parts of each."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    in_r = row < rows
    _norm_part(x_ptr, dt_weight_ptr, dt_ptr, row, in_r, x_row, rank, eps, WIDE, BLOCK_R)
    _norm_part(x_ptr + rank, B_weight_ptr, B_ptr, row, in_r, x_row, states, eps, WIDE, BLOCK_N)
    _norm_part(x_ptr + rank + states, C_weight_ptr, C_ptr, row, in_r, x_row, states, eps, WIDE, BLOCK_N)


@triton.jit
def _part_backward(
    x_ptr, weight_ptr, dy_ptr, dx_ptr, dweight, row, in_r, x_row, dx_row, width, eps,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one part of ROWS tokens; returns the gradient of its weight, with theirs added."""
    i = tl.arange(0, BLOCK)[None, :]
    inside = in_r & (i < width)
    x = tl.load(x_ptr + row * x_row + i, mask=inside, other=0.0).to(WIDE)
    dy = tl.load(dy_ptr + row * width + i, mask=inside, other=0.0).to(WIDE)
    weight = tl.load(weight_ptr + i, mask=i < width, other=0.0).to(WIDE)
    inverse = _inverse_rms(x, width, eps)
    x = x * inverse[:, None]
    tl.store(dx_ptr + row * dx_row + i, _row_gradient(x, inverse, dy * weight, width), mask=inside)
    return dweight + tl.sum(dy * x, axis=0)


@triton.jit
def selection_backward(
    x_ptr, dt_weight_ptr, B_weight_ptr, C_weight_ptr, ddt_ptr, dB_ptr, dC_ptr, dx_ptr, dweights_ptr,
    rows, rank, states, eps, x_row,
    WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: every so many-th ROWS tokens."""
    width = rank + 2 * states
    of_dt, of_B, of_C = tl.zeros((BLOCK_R,), WIDE), tl.zeros((BLOCK_N,), WIDE), tl.zeros((BLOCK_N,), WIDE)
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = (block * ROWS + tl.arange(0, ROWS))[:, None]
        in_r = row < rows
        of_dt = _part_backward(
            x_ptr, dt_weight_ptr, ddt_ptr, dx_ptr, of_dt, row, in_r, x_row, width, rank, eps, WIDE, BLOCK_R
        )
        of_B = _part_backward(
            x_ptr + rank, B_weight_ptr, dB_ptr, dx_ptr + rank, of_B, row, in_r, x_row, width, states, eps, WIDE, BLOCK_N
        )
        of_C = _part_backward(
            x_ptr + rank + states, C_weight_ptr, dC_ptr, dx_ptr + rank + states, of_C, row, in_r, x_row, width, states,
            eps, WIDE, BLOCK_N,
        )  # fmt: skip
    line = dweights_ptr + tl.program_id(0).to(tl.int64) * width
    r, n = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_N)
    tl.store(line + r, of_dt, mask=r < rank)
    tl.store(line + rank + n, of_B, mask=n < states)
    tl.store(line + rank + states + n, of_C, mask=n < states)
