"""The jitted kernels of nGPT's steps; launched by ``triton_impl``, defined by ``reference``.

All of them are bound by memory. A row is read once, stays in registers through its reductions, and is written once.
Backward kernels go over many rows each; STAGES of them are on their way from memory at a time (copied to shared memory
while earlier ones are worked on). They recompute what the forward pass had in registers: to keep it would cost more
traffic than the few instructions. Sums over rows (gradients of scales) go to one line a program, added up outside in a
fixed order, so that results are the same every time. WIDE is the type of the arithmetic.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def _inverse_length(x):
    """1 / ||x|| of a row; infinite for a zero row, so that its entries become NaN."""
    return 1.0 / tl.sqrt(tl.sum(x * x, axis=0))


@triton.jit
def _sums(x, y):
    """The sums of two rows, in one exchange between the threads."""
    return tl.split(tl.sum(tl.join(x, y), axis=0))


@triton.jit
def residual_forward(
    h_ptr, o_ptr, alpha_ptr, y_ptr, width, h_row, o_row,
    WIDE: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    inside = e < width
    h = tl.load(h_ptr + row * h_row + e, mask=inside, other=0.0).to(WIDE)
    o = tl.load(o_ptr + row * o_row + e, mask=inside, other=0.0).to(WIDE)
    alpha = tl.load(alpha_ptr + e, mask=inside, other=0.0).to(WIDE)
    squares_h, squares_o = _sums(h * h, o * o)
    a, b = h * (1.0 / tl.sqrt(squares_h)), o * (1.0 / tl.sqrt(squares_o))
    moved = tl.where(inside, a + alpha * (b - a), 0.0)
    tl.store(y_ptr + row * width + e, moved * _inverse_length(moved), mask=inside)


@triton.jit
def residual_backward(
    h_ptr, o_ptr, alpha_ptr, dy_ptr, dh_ptr, do_ptr, dalpha_ptr,
    rows, width, h_row, o_row,
    WIDE: tl.constexpr, BLOCK_E: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: every so many-th row, with its part of the gradient of alpha in registers."""
    e = tl.arange(0, BLOCK_E)
    inside = e < width
    alpha = tl.load(alpha_ptr + e, mask=inside, other=0.0).to(WIDE)
    dalpha = tl.zeros((BLOCK_E,), WIDE)
    for i in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(i, tl.int64)
        h = tl.load(h_ptr + row * h_row + e, mask=inside, other=0.0).to(WIDE)
        o = tl.load(o_ptr + row * o_row + e, mask=inside, other=0.0).to(WIDE)
        dy = tl.load(dy_ptr + row * width + e, mask=inside, other=0.0).to(WIDE)
        squares_h, squares_o = _sums(h * h, o * o)
        inverse_h, inverse_o = 1.0 / tl.sqrt(squares_h), 1.0 / tl.sqrt(squares_o)
        a, b = h * inverse_h, o * inverse_o
        moved = a + alpha * (b - a)
        squares, along = _sums(moved * moved, moved * dy)
        inverse = 1.0 / tl.sqrt(squares)
        y = moved * inverse
        dmoved = (dy - y * (along * inverse)) * inverse
        dalpha += dmoved * (b - a)
        db = dmoved * alpha
        da = dmoved - db
        along_a, along_b = _sums(a * da, b * db)
        tl.store(dh_ptr + row * width + e, (da - a * along_a) * inverse_h, mask=inside)
        tl.store(do_ptr + row * width + e, (db - b * along_b) * inverse_o, mask=inside)
    tl.store(dalpha_ptr + tl.program_id(0).to(tl.int64) * width + e, dalpha, mask=inside)


@triton.jit
def _pairs(x, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The even and the odd entries of each row."""
    return tl.split(tl.reshape(x, (ROWS, BLOCK_D // 2, 2)))


@triton.jit
def _cross_pairs(x, table, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The entries of each pair exchanged, then multiplied by the table."""
    even, odd = _pairs(x, ROWS, BLOCK_D)
    return tl.reshape(tl.join(odd, even), (ROWS, BLOCK_D)) * table


@triton.jit
def _place(row, n1, n2, s0, s1, s2):
    """Offset of a row whose three leading indices have these sizes (of the last two) and strides."""
    i2 = row % n2
    rest = row // n2
    return (rest // n1).to(tl.int64) * s0 + (rest % n1).to(tl.int64) * s1 + i2 * s2


@triton.jit
def qk_forward(
    x_ptr, scale_ptr, cross_ptr, keep_ptr, y_ptr,
    rows, n1, n2, x_0, x_1, x_2, scale_0, scale_1, scale_2, cross_0, cross_1, cross_2, keep_0, keep_1, keep_2,
    WIDTH: tl.constexpr, HAS_KEEP: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: ROWS heads, which may belong to several tokens."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < rows)[:, None] & (d < WIDTH)
    x_at = _place(row, n1, n2, x_0, x_1, x_2)[:, None] + d
    scale_at = _place(row, n1, n2, scale_0, scale_1, scale_2)[:, None] + d
    cross_at = _place(row, n1, n2, cross_0, cross_1, cross_2)[:, None] + d
    x = tl.load(x_ptr + x_at, mask=inside, other=0.0).to(WIDE)
    scale = tl.load(scale_ptr + scale_at, mask=inside, other=0.0).to(WIDE)
    cross = tl.load(cross_ptr + cross_at, mask=inside, other=0.0).to(WIDE)
    moved = _cross_pairs(x, cross, ROWS, BLOCK_D)
    if HAS_KEEP:
        keep_at = _place(row, n1, n2, keep_0, keep_1, keep_2)[:, None] + d
        moved += x * tl.load(keep_ptr + keep_at, mask=inside, other=0.0).to(WIDE)
    inverse = 1.0 / tl.sqrt(tl.sum(moved * moved, axis=1))
    tl.store(y_ptr + row.to(tl.int64)[:, None] * WIDTH + d, moved * inverse[:, None] * scale, mask=inside)


@triton.jit
def qk_backward(
    x_ptr, scale_ptr, cross_ptr, keep_ptr, dy_ptr, dx_ptr, dscale_ptr,
    tokens, heads, n1, x_0, x_1, x_2, cross_0, cross_1, cross_2, keep_0, keep_1, keep_2,
    WIDTH: tl.constexpr, HAS_KEEP: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One program: a block of heads of every so many-th token, with their part of the gradient of the scale.

    ``n1`` is the second leading size of x, whose third is ``heads``; the scale is [heads, WIDTH].
    """
    head = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = (head < heads)[:, None] & (d < WIDTH)
    of_head = head[:, None] * WIDTH + d
    scale = tl.load(scale_ptr + of_head, mask=inside, other=0.0).to(WIDE)
    dscale = tl.zeros((ROWS, BLOCK_D), WIDE)
    for i in tl.range(tl.program_id(0), tokens, tl.num_programs(0), num_stages=STAGES):
        token = tl.cast(i, tl.int64)
        i0, i1 = token // n1, token % n1
        out_at = token * heads * WIDTH + of_head
        x = tl.load(x_ptr + i0 * x_0 + i1 * x_1 + head[:, None] * x_2 + d, mask=inside, other=0.0).to(WIDE)
        dy = tl.load(dy_ptr + out_at, mask=inside, other=0.0).to(WIDE)
        cross_at = i0 * cross_0 + i1 * cross_1 + head[:, None] * cross_2 + d
        cross = tl.load(cross_ptr + cross_at, mask=inside, other=0.0).to(WIDE)
        moved = _cross_pairs(x, cross, ROWS, BLOCK_D)
        if HAS_KEEP:
            keep_at = i0 * keep_0 + i1 * keep_1 + head[:, None] * keep_2 + d
            keep = tl.load(keep_ptr + keep_at, mask=inside, other=0.0).to(WIDE)
            moved += x * keep
        squares = tl.sum(moved * moved, axis=1)
        # Heads beyond the last would otherwise add 0 * inf to nothing that is stored, and slow the division down.
        inverse = 1.0 / tl.sqrt(tl.where(head < heads, squares, 1.0))
        unit = moved * inverse[:, None]
        dscale += dy * unit
        dunit = dy * scale
        dmoved = (dunit - unit * tl.sum(unit * dunit, axis=1)[:, None]) * inverse[:, None]
        # The entries that the forward pass exchanged go back where they came from.
        even, odd = _pairs(dmoved * cross, ROWS, BLOCK_D)
        dx = tl.reshape(tl.join(odd, even), (ROWS, BLOCK_D))
        if HAS_KEEP:
            dx += dmoved * keep
        tl.store(dx_ptr + out_at, dx, mask=inside)
    tl.store(dscale_ptr + tl.program_id(0).to(tl.int64) * heads * WIDTH + of_head, dscale, mask=inside)


@triton.jit
def swiglu_forward(
    uv_ptr, scale_ptr, y_ptr, width, uv_row,
    WIDE: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One program: a block of one row of the result; ``width`` is that of the result."""
    row = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = f < width
    u = tl.load(uv_ptr + row * uv_row + f, mask=inside, other=0.0).to(WIDE)
    v = tl.load(uv_ptr + row * uv_row + width + f, mask=inside, other=0.0).to(WIDE)
    u *= tl.load(scale_ptr + f, mask=inside, other=0.0).to(WIDE)
    v *= tl.load(scale_ptr + width + f, mask=inside, other=0.0).to(WIDE)
    tl.store(y_ptr + row * width + f, u * v / (1.0 + tl.exp(-v)), mask=inside)


@triton.jit
def swiglu_backward(
    uv_ptr, scale_ptr, dy_ptr, duv_ptr, dscale_ptr, rows, width, uv_row,
    WIDE: tl.constexpr, BLOCK_F: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: a block of every so many-th row, with its part of the gradient of the scale."""
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = f < width
    scale_u = tl.load(scale_ptr + f, mask=inside, other=0.0).to(WIDE)
    scale_v = tl.load(scale_ptr + width + f, mask=inside, other=0.0).to(WIDE)
    dscale_u, dscale_v = tl.zeros((BLOCK_F,), WIDE), tl.zeros((BLOCK_F,), WIDE)
    for i in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(i, tl.int64)
        u = tl.load(uv_ptr + row * uv_row + f, mask=inside, other=0.0).to(WIDE)
        v = tl.load(uv_ptr + row * uv_row + width + f, mask=inside, other=0.0).to(WIDE)
        dy = tl.load(dy_ptr + row * width + f, mask=inside, other=0.0).to(WIDE)
        scaled = v * scale_v
        sigmoid = 1.0 / (1.0 + tl.exp(-scaled))
        du = dy * scaled * sigmoid
        dv = dy * u * scale_u * sigmoid * (1.0 + scaled * (1.0 - sigmoid))
        dscale_u += du * u
        dscale_v += dv * v
        tl.store(duv_ptr + row * 2 * width + f, du * scale_u, mask=inside)
        tl.store(duv_ptr + row * 2 * width + width + f, dv * scale_v, mask=inside)
    partial = dscale_ptr + tl.program_id(0).to(tl.int64) * 2 * width + f
    tl.store(partial, dscale_u, mask=inside)
    tl.store(partial + width, dscale_v, mask=inside)


@triton.jit
def _normalize_rows(
    matrix, count, length, first,
    WIDE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_X: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``first + ROWS`` of a matrix [count, length]: BLOCK_E entries, then BLOCK_X, maybe too many.

    A length between two powers of two would leave up to half of one block's registers empty.
    """
    row = first + tl.arange(0, ROWS)[:, None]
    start = matrix + row.to(tl.int64) * length
    e, x = tl.arange(0, BLOCK_E)[None, :], BLOCK_E + tl.arange(0, max(BLOCK_X, 1))[None, :]
    inside, inside_x = row < count, (row < count) & (x < length)
    entries = tl.load(start + e, mask=inside, other=0.0).to(WIDE)
    squares = tl.sum(entries * entries, axis=1)
    if BLOCK_X:
        others = tl.load(start + x, mask=inside_x, other=0.0).to(WIDE)
        squares += tl.sum(others * others, axis=1)
    inverse = (1.0 / tl.sqrt(squares))[:, None]
    tl.store(start + e, entries * inverse, mask=inside)
    if BLOCK_X:
        tl.store(start + x, others * inverse, mask=inside_x)


@triton.jit
def _normalize_columns(
    matrix, count, length, first,
    WIDE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_X: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Columns ``first`` to ``first + COLUMNS`` of a matrix [length, count], in two blocks like rows."""
    column = first + tl.arange(0, COLUMNS)[None, :]
    e, x = tl.arange(0, BLOCK_E)[:, None], BLOCK_E + tl.arange(0, max(BLOCK_X, 1))[:, None]
    at, at_x = matrix + e.to(tl.int64) * count + column, matrix + x.to(tl.int64) * count + column
    inside, inside_x = column < count, (x < length) & (column < count)
    entries = tl.load(at, mask=inside, other=0.0).to(WIDE)
    squares = tl.sum(entries * entries, axis=0)
    if BLOCK_X:
        others = tl.load(at_x, mask=inside_x, other=0.0).to(WIDE)
        squares += tl.sum(others * others, axis=0)
    inverse = (1.0 / tl.sqrt(squares))[None, :]
    tl.store(at, entries * inverse, mask=inside)
    if BLOCK_X:
        tl.store(at_x, others * inverse, mask=inside_x)


@triton.jit
def normalize_all(
    owner_ptr, table_ptr, like_ptr, length,
    BY_COLUMN: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_X: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """One program: COUNT vectors of ``length`` entries, rows or columns, of one of many matrices, in place.

    Which matrix a program works on stands in ``owner_ptr``; a matrix has three numbers in ``table_ptr``: its address,
    how many vectors it has, and its first program. ``like_ptr`` only lends its type.
    ALIGNED: addresses are multiples of 16 bytes, and numbers of columns of 16, which no compiler can see in a table.
    """
    entry = table_ptr + tl.load(owner_ptr + tl.program_id(0)).to(tl.int64) * 3
    matrix = tl.load(entry).to(tl.pointer_type(like_ptr.dtype.element_ty))
    count = tl.load(entry + 1)
    first = (tl.program_id(0) - tl.load(entry + 2)) * COUNT
    if ALIGNED:
        matrix = tl.multiple_of(matrix, 16)
    if BY_COLUMN:
        if ALIGNED:
            count = tl.multiple_of(count, 16)
        _normalize_columns(matrix, count, length, first, WIDE, BLOCK_E, BLOCK_X, COUNT)
    else:
        _normalize_rows(matrix, count, length, first, WIDE, BLOCK_E, BLOCK_X, COUNT)
