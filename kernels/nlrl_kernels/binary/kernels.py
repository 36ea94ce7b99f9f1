"""The kernels that serve the binary layer; equations and bits in ``reference.py``, launches in ``triton_impl.py``.

How a product reads bits. A packed row is taken as 16-bit words; word q holds the signs of inputs 16 q to 16 q + 15. Bit
j of a tile of words, moved to the top of its word and joined with the bits of 1.0, is a tile of signs as numbers: a
shift and a logical operation for two weights, in the registers where the tensor core takes its left operand. No sign
is ever stored. So the inputs of a block of 128 (8 words) come in the order j, then q: at place 8 j + q lies input
16 q + j. What a product calls its right operand is put into that order. ``few_digits`` does the same with bytes.

Axes: T rows, O outputs, I inputs, Q words, J bits of a word, S slices of the inputs.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN201, ANN202, SIM300
# pyright: reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

WORDS: tl.constexpr = tl.constexpr(8)
"""16-bit words of a block of 128 inputs: what the four lanes of a row give one instruction of a tensor core."""


@triton.jit
def _plane(words, UP: tl.constexpr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """1.0 where bit 15 - UP is set, -1.0 where it is not."""
    if ASSEMBLY and DTYPE == tl.bfloat16:  # two weights at once; the compiler would take 16-bit numbers one by one
        bf16: tl.constexpr = f"{{ .reg .b32 t; shl.b32 t, $1, {UP}; lop3.b32 $0, t, 0x80008000, 0x3f803f80, 0xae; }}"
        return tl.inline_asm_elementwise(bf16, "=r,r", [words], dtype=tl.bfloat16, is_pure=True, pack=2)
    if ASSEMBLY and DTYPE == tl.float16:
        fp16: tl.constexpr = f"{{ .reg .b32 t; shl.b32 t, $1, {UP}; lop3.b32 $0, t, 0x80008000, 0x3c003c00, 0xae; }}"
        return tl.inline_asm_elementwise(fp16, "=r,r", [words], dtype=tl.float16, is_pure=True, pack=2)
    return tl.where((words.to(tl.int32) & (1 << (15 - UP))) != 0, 1.0, -1.0).to(DTYPE)


@triton.jit
def _four(words, UP: tl.constexpr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Bits j, j + 8, j + 4 and j + 12 of j = 15 - UP."""
    low = tl.join(_plane(words, UP, DTYPE, ASSEMBLY), _plane(words, UP - 8, DTYPE, ASSEMBLY))
    high = tl.join(_plane(words, UP - 4, DTYPE, ASSEMBLY), _plane(words, UP - 12, DTYPE, ASSEMBLY))
    return tl.join(low, high)


@triton.jit
def _signs(words, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """The signs of words [M, Q] as numbers [M, 16 Q], a row in the order bit, then word.

    Joined rather than computed with a range of shifts: the compiler moves the layout that the product asks for up
    through joins, to the words, but not through a range.
    """
    even = tl.join(_four(words, 15, DTYPE, ASSEMBLY), _four(words, 13, DTYPE, ASSEMBLY))
    odd = tl.join(_four(words, 14, DTYPE, ASSEMBLY), _four(words, 12, DTYPE, ASSEMBLY))
    bits = tl.permute(tl.join(even, odd), (0, 2, 3, 4, 5, 1))
    return tl.reshape(bits, (words.shape[0], 16 * words.shape[1]))


@triton.jit
def _words(packed_ptr, row, word, mask, width, ALIGNED: tl.constexpr):
    """16-bit words of rows of ``width`` words; of ``width`` bytes, read one by one, where that number may be odd."""
    row = row.to(tl.int64)
    if ALIGNED:
        return tl.load(packed_ptr + row * width + word, mask=mask & (word < width), other=0)
    at = packed_ptr + row * width + 2 * word
    low = tl.load(at, mask=mask & (2 * word < width), other=0).to(tl.int32)
    high = tl.load(at + 1, mask=mask & (2 * word + 1 < width), other=0).to(tl.int32)
    return (low | (high << 8)).to(tl.int16)


@triton.jit
def _place(i):
    """Where input i lies among those of a product."""
    return i // (16 * WORDS) * (16 * WORDS) + i % 16 * WORDS + i % (16 * WORDS) // 16


@triton.jit
def _ask(packed_ptr, first, outputs, row_bytes, BLOCK_O: tl.constexpr, SECTORS: tl.constexpr):
    """Have the bits of BLOCK_O outputs brought into the cache that all multiprocessors share."""
    row_bytes = row_bytes.to(tl.int64)
    sector = first * row_bytes + tl.minimum(tl.arange(0, SECTORS) * 32, BLOCK_O * row_bytes - 1)
    address = packed_ptr.to(tl.int64) + tl.minimum(sector, outputs * row_bytes - 1)
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address], tl.int32, False, 1)


@triton.jit
def few_rows(
    x_ptr, packed_ptr, scale_ptr, shift_ptr, zeros_ptr, residual_ptr, out_ptr,
    rows, inputs, outputs, width, zeros, x_t, residual_t, out_t,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr, EARLY: tl.constexpr,
    ADD: tl.constexpr,
    ROWS: tl.constexpr, SLICES: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """A block of outputs of all rows, ROWS >= rows, from x itself.

    With one row a tensor core would multiply by columns that are nothing but padding. So the inputs are dealt out,
    block by block, to SLICES slices: the left operand has a row for each (output, slice), the right one a column for
    each (row, slice), and of the product counts what has the same slice on both sides. More rows of signs for each
    program at the same bytes, fewer columns of padding, all of the inputs in one pass.

    ADD adds to a residual stream. EARLY > 0 asks for the bits, in so many sectors of 32 bytes, before the previous
    kernel of the stream has ended: it makes x, but not them.
    """
    block: tl.constexpr = 16 * WORDS
    step: tl.constexpr = SLICES * block
    columns: tl.constexpr = ROWS * SLICES
    first = tl.program_id(0) * BLOCK_O
    m, n = tl.arange(0, BLOCK_O * SLICES), tl.arange(0, columns)
    o, left = first + m // SLICES, m % SLICES
    word = tl.arange(0, WORDS)
    t, s = tl.arange(0, ROWS), tl.arange(0, SLICES)
    in_t = t < rows
    if EARLY:
        _ask(packed_ptr, first, outputs, width * (2 if ALIGNED else 1), BLOCK_O, EARLY)
        gdc_wait()
    within = (s[:, None, None] * block + word[None, :, None] * 16) + tl.arange(0, 16)[None, None, :]
    shared = tl.zeros((ROWS, SLICES, WORDS, 16), tl.float32)
    shift = tl.load(shift_ptr + within, mask=within < inputs, other=0.0).to(tl.float32)
    y = tl.zeros((BLOCK_O * SLICES, columns), tl.float32)
    for begin in range(0, inputs, step):
        q = begin // 16 + left[:, None] * WORDS + word[None, :]
        words = _words(packed_ptr, o[:, None], q, (o < outputs)[:, None], width, ALIGNED)
        i = begin + within
        mask = in_t[:, None, None, None] & (i < inputs)[None]
        x = tl.load(x_ptr + t[:, None, None, None] * x_t + i[None], mask=mask, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + i, mask=i < inputs, other=0.0).to(tl.float32)
        shared += x * shift[None]
        # For the next block: what no product takes is not loaded ahead by the compiler.
        shift = tl.load(shift_ptr + step + i, mask=step + i < inputs, other=0.0).to(tl.float32)
        right = tl.reshape(tl.permute((x * scale[None]).to(DTYPE), (3, 2, 0, 1)), (block, columns))
        y = tl.dot(_signs(words, DTYPE, ASSEMBLY), right, acc=y, input_precision="ieee")
    y = tl.where(left[:, None] == (n % SLICES)[None, :], y, 0.0)
    y = tl.sum(tl.reshape(y, (BLOCK_O, SLICES, columns)), axis=1)
    y = tl.sum(tl.reshape(y, (BLOCK_O, ROWS, SLICES)), axis=2)
    y += tl.sum(tl.sum(tl.sum(shared, axis=3), axis=2), axis=1)[None, :]
    o = first + tl.arange(0, BLOCK_O)
    for z in range(zeros):
        zero = tl.load(zeros_ptr + 2 * z)
        column = tl.load(zeros_ptr + 2 * z + 1)
        if (zero >= first) & (zero < first + BLOCK_O):
            x = tl.load(x_ptr + t * x_t + column, mask=in_t, other=0.0).to(tl.float32)
            x = (x * tl.load(scale_ptr + column).to(tl.float32)).to(DTYPE).to(tl.float32)
            y += tl.where(o[:, None] == zero, x[None, :], 0.0)
    mask = (o < outputs)[:, None] & in_t[None, :]
    if ADD:
        y += tl.load(residual_ptr + t[None, :] * residual_t + o[:, None], mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + t[None, :] * out_t + o[:, None], y, mask=mask)


@triton.jit
def _byte_plane(bits, UP: tl.constexpr, ASSEMBLY: tl.constexpr):
    """64 where bit 7 - UP is set, -64 where it is not: the two bytes that differ in their top bit alone."""
    if ASSEMBLY:  # four weights at once
        code: tl.constexpr = f"{{ .reg .b32 t; shl.b32 t, $1, {UP}; lop3.b32 $0, t, 0x80808080, 0x40404040, 0xae; }}"
        return tl.inline_asm_elementwise(code, "=r,r", [bits], dtype=tl.int8, is_pure=True, pack=4)
    return tl.where((bits.to(tl.int32) & (1 << (7 - UP))) != 0, 64, -64).to(tl.int8)


@triton.jit
def _byte_signs(bits, ASSEMBLY: tl.constexpr):
    """64 times the signs of bytes [M, 16], as numbers [M, 128], a row in the order bit, then byte."""
    low = tl.join(_byte_plane(bits, 7, ASSEMBLY), _byte_plane(bits, 3, ASSEMBLY))
    even = tl.join(low, tl.join(_byte_plane(bits, 5, ASSEMBLY), _byte_plane(bits, 1, ASSEMBLY)))
    low = tl.join(_byte_plane(bits, 6, ASSEMBLY), _byte_plane(bits, 2, ASSEMBLY))
    odd = tl.join(low, tl.join(_byte_plane(bits, 4, ASSEMBLY), _byte_plane(bits, 0, ASSEMBLY)))
    return tl.reshape(tl.permute(tl.join(even, odd), (0, 2, 3, 4, 1)), (bits.shape[0], 8 * bits.shape[1]))


@triton.jit
def few_digits(
    digits_ptr, unit_ptr, shared_ptr, packed_ptr, zeros_ptr, residual_ptr, out_ptr,
    rows, inputs, outputs, width, zeros, digits_t, residual_t, out_t,
    ASSEMBLY: tl.constexpr, EARLY: tl.constexpr, ADD: tl.constexpr,
    ROWS: tl.constexpr, SLICES: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """As ``few_rows``, from what ``prepare_digits`` wrote: products and sums of integers, which are exact.

    Half the instructions of ``few_rows`` for each weight, for a register takes four bytes. The four digits of a row
    are as many columns of the product, where few rows would leave padding.
    """
    block: tl.constexpr = 128
    columns: tl.constexpr = ROWS * 4 * SLICES
    first = tl.program_id(0) * BLOCK_O
    m, n = tl.arange(0, BLOCK_O * SLICES), tl.arange(0, columns)
    o, left = first + m // SLICES, m % SLICES
    byte, place = tl.arange(0, 16), tl.arange(0, block)
    t = tl.arange(0, ROWS)
    in_t = t < rows
    if EARLY:
        _ask(packed_ptr, first, outputs, width, BLOCK_O, EARLY)
        gdc_wait()
    y = tl.zeros((BLOCK_O * SLICES, columns), tl.int32)
    at = n // SLICES * digits_t + n % SLICES * block
    packed_ptr += o[:, None].to(tl.int64) * width
    for begin in range(0, inputs, SLICES * block):
        j = begin // 8 + left[:, None] * 16 + byte[None, :]
        bits = tl.load(packed_ptr + j, mask=(o < outputs)[:, None] & (j < width), other=0)
        right = tl.load(
            digits_ptr + at[None, :] + (begin + place)[:, None], mask=(n < 4 * SLICES * rows)[None, :], other=0
        )
        y = tl.dot(_byte_signs(bits, ASSEMBLY), right, acc=y, out_dtype=tl.int32)
    y = tl.where(left[:, None] == (n % SLICES)[None, :], y, 0)
    y = tl.sum(tl.reshape(y, (BLOCK_O, SLICES, columns)), axis=1)
    y = tl.sum(tl.reshape(y, (BLOCK_O, ROWS * 4, SLICES)), axis=2).to(tl.float32)
    # 256^d over the 64 of the signs, as the bits of a float32.
    worth = ((127 - 6 + 8 * tl.arange(0, 4)) << 23).to(tl.float32, bitcast=True)
    y = tl.sum(tl.reshape(y, (BLOCK_O, ROWS, 4)) * worth[None, None, :], axis=2)
    o = first + tl.arange(0, BLOCK_O)
    for z in range(zeros):
        zero = tl.load(zeros_ptr + 2 * z)
        column = tl.load(zeros_ptr + 2 * z + 1)
        if (zero >= first) & (zero < first + BLOCK_O):
            lies = column // block * block + column % 8 * 16 + column % block // 8
            digit = (t[:, None] * 4 + tl.arange(0, 4)[None, :]) * digits_t + lies
            x = tl.load(digits_ptr + digit, mask=in_t[:, None], other=0).to(tl.float32) * worth[None, :] * 64.0
            y += tl.where(o[:, None] == zero, tl.sum(x, axis=1)[None, :], 0.0)
    unit = tl.load(unit_ptr + t, mask=in_t, other=0.0)
    shared = tl.load(shared_ptr + t, mask=in_t, other=0.0)
    y = y * unit[None, :] + shared[None, :]
    mask = (o < outputs)[:, None] & in_t[None, :]
    if ADD:
        y += tl.load(residual_ptr + t[None, :] * residual_t + o[:, None], mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + t[None, :] * out_t + o[:, None], y, mask=mask)


@triton.jit
def _row(
    x_ptr, gate_ptr, weight_ptr, row, i, inputs, x_t, gate_t, eps, NORM: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """A row in float32, after its gate and its norm; 0 past the inputs."""
    in_i = i < inputs
    x = tl.load(x_ptr + row * x_t + i, mask=in_i, other=0.0).to(tl.float32)
    if GATE:
        gate = tl.load(gate_ptr + row * gate_t + i, mask=in_i, other=0.0).to(tl.float32)
        x = x * gate * tl.sigmoid(gate)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / inputs + eps)
        x = x * tl.load(weight_ptr + i, mask=in_i, other=0.0).to(tl.float32)
    return x


@triton.jit
def prepare_digits(
    x_ptr, scale_ptr, shift_ptr, gate_ptr, weight_ptr, digits_ptr, unit_ptr, shared_ptr,
    inputs, x_t, gate_t, digits_t, eps,
    NORM: tl.constexpr, GATE: tl.constexpr, EARLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: scale times x as four digits of base 256, what their unit is worth, and what all outputs share.

    The unit is a power of two, 2^-30 of what the largest entry is below: an entry of more than 2^-6 of the largest
    keeps all of its 24 bits, any other an error of less than 2^-31 of the largest. Digits are from -128 to 127 and
    have a row each; in a block of 128 inputs, input 8 j + b of byte j lies at place 16 b + j.
    """
    if EARLY:
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    in_i = i < inputs
    x = _row(x_ptr, gate_ptr, weight_ptr, row, i, inputs, x_t, gate_t, eps, NORM, GATE)
    tl.store(shared_ptr + row, tl.sum(x * tl.load(shift_ptr + i, mask=in_i, other=0.0).to(tl.float32), axis=0))
    x = x * tl.load(scale_ptr + i, mask=in_i, other=0.0).to(tl.float32)
    # What is below 2^-90, and not finite, cannot be told apart by digits; the shared number takes NaN to every output.
    largest = tl.minimum(tl.maximum(tl.max(tl.abs(x), axis=0), 8.1e-28), 1.6e38)
    power = largest.to(tl.int32, bitcast=True) & 0x7F800000
    unit = (power - (29 << 23)).to(tl.float32, bitcast=True)
    tl.store(unit_ptr + row, unit)
    x = x / unit
    left = tl.where(tl.abs(x) < 4194304.0, tl.floor(x + 0.5), x).to(tl.int32)  # from 2^23 on they are whole
    for digit in tl.static_range(4):  # type: ignore[misc]
        low = ((left + 128) & 255) - 128
        left = (left - low) >> 8
        placed = tl.permute(tl.reshape(low.to(tl.int8), (BLOCK // 128, 16, 8)), (0, 2, 1))
        tl.store(digits_ptr + (row * 4 + digit) * digits_t + i, tl.reshape(placed, (BLOCK,)), mask=i < digits_t)


@triton.jit
def prepare_rows(
    x_ptr, scale_ptr, shift_ptr, gate_ptr, weight_ptr, ready_ptr, shared_ptr,
    inputs, x_t, gate_t, ready_t, eps,
    NORM: tl.constexpr, GATE: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: scale times x as the right operand, rounded once, and the number that all its outputs share.

    For bits the inputs of each block of 128 change places, and those past the last are 0. For a DENSE product they
    stay, and three entries behind them add up to the shared number to 24 bits: the matrix has 1 there.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    in_i = i < inputs
    x = _row(x_ptr, gate_ptr, weight_ptr, row, i, inputs, x_t, gate_t, eps, NORM, GATE)
    dtype = ready_ptr.dtype.element_ty
    shared = tl.sum(x * tl.load(shift_ptr + i, mask=in_i, other=0.0).to(tl.float32), axis=0)
    x = (x * tl.load(scale_ptr + i, mask=in_i, other=0.0).to(tl.float32)).to(dtype)
    if DENSE:
        high = shared.to(dtype)
        middle = (shared - high.to(tl.float32)).to(dtype)
        low = (shared - high.to(tl.float32) - middle.to(tl.float32)).to(dtype)
        x = tl.where(i == inputs, high, x)
        x = tl.where(i == inputs + 1, middle, x)
        x = tl.where(i == inputs + 2, low, x)
    else:
        tl.store(shared_ptr + row, shared)
        x = tl.permute(tl.reshape(x, (BLOCK // (16 * WORDS), WORDS, 16)), (0, 2, 1))
        x = tl.reshape(x, (BLOCK,))
    tl.store(ready_ptr + row * ready_t + i, x, mask=i < ready_t)


@triton.jit
def many_rows(
    ready_ptr, shared_ptr, packed_ptr, zeros_ptr, residual_ptr, out_ptr,
    rows, outputs, width, zeros, ready_t, residual_t, out_t,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, ASSEMBLY: tl.constexpr, ADD: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """A tile of outputs and rows, from what ``prepare_rows`` wrote for bits."""
    first = tl.program_id(0) * BLOCK_O
    o = first + tl.arange(0, BLOCK_O)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    in_o, in_t = o < outputs, t < rows
    word, place = tl.arange(0, WORDS), tl.arange(0, 16 * WORDS)
    # Rows and outputs past the last read the last once more: loads without a mask, and what they give is not stored.
    ready_ptr += tl.minimum(t, rows - 1).to(tl.int64) * ready_t
    y = tl.zeros((BLOCK_O, BLOCK_T), tl.float32)
    for begin in range(0, ready_t, 16 * WORDS):
        q = begin // 16 + word[None, :]
        words = _words(packed_ptr, tl.minimum(o, outputs - 1)[:, None], q, True, width, ALIGNED)
        x = tl.load(ready_ptr[None, :] + (begin + place)[:, None])
        y = tl.dot(_signs(words, DTYPE, ASSEMBLY), x, acc=y, input_precision="ieee")
    y += tl.load(shared_ptr + t, mask=in_t, other=0.0)[None, :]
    for z in range(zeros):
        zero = tl.load(zeros_ptr + 2 * z)
        column = tl.load(zeros_ptr + 2 * z + 1)
        if (zero >= first) & (zero < first + BLOCK_O):
            x = tl.load(ready_ptr + _place(column), mask=in_t, other=0.0).to(tl.float32)
            y += tl.where(o[:, None] == zero, x[None, :], 0.0)
    t = t.to(tl.int64)
    mask = in_o[:, None] & in_t[None, :]
    if ADD:
        y += tl.load(residual_ptr + t[None, :] * residual_t + o[:, None], mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + t[None, :] * out_t + o[:, None], y, mask=mask)


@triton.jit
def unpack_rows(
    packed_ptr, zeros_ptr, dense_ptr, inputs, outputs, width, zeros, dense_o,
    ALIGNED: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Signs as numbers [O, dense_o], then 1 in each entry past the inputs, for ``prepare_rows`` with DENSE."""
    first = tl.program_id(0) * BLOCK_O
    o = first + tl.arange(0, BLOCK_O)
    q = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    i = q[:, None] * 16 + tl.arange(0, 16)[None, :]
    words = _words(packed_ptr, o[:, None], q[None, :], (o < outputs)[:, None], width, ALIGNED).to(tl.int32)
    signs = ((words[:, :, None] >> tl.arange(0, 16)[None, None, :]) & 1) * 2 - 1
    signs = tl.where((i < inputs)[None], signs, 1)
    for z in range(zeros):
        zero = tl.load(zeros_ptr + 2 * z)
        column = tl.load(zeros_ptr + 2 * z + 1)
        if (zero >= first) & (zero < first + BLOCK_O):
            signs = tl.where((o[:, None, None] == zero) & (i == column)[None], 0, signs)
    at = o.to(tl.int64)[:, None, None] * dense_o + i[None]
    mask = (o < outputs)[:, None, None] & (i < dense_o)[None]
    tl.store(dense_ptr + at, signs.to(dense_ptr.dtype.element_ty), mask=mask)
