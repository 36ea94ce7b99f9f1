"""Attention with a window and pinned keys, backward over packed rows, jitted; launched by ``triton_impl``.

With P the weights, recomputed tile by tile from the kept logarithms of their sums, g = dL/do and the scale s:

    dP = g v^T,   delta = row sum of g * o (= of P * dP),   dS = P * (dP - delta)
    dq = s dS k,   dk = s dS^T q,   dv = P^T g

One walk over keys for the queries' gradients and one over queries for those of keys and values: each gradient is
written by one program, in a fixed order, without atomics. Query heads of a group are packed into the rows of a tile, as
in ``kernels``. A pinned key is seen by every later query, however far: its sum is shared out over spans of queries, and
``add_spans`` adds them up.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from nlrl_kernels.window_attention.kernels import find_row, hide, load_rows, place_tile, readable


@triton.jit
def row_sums(
    do_ptr, o_ptr, delta_ptr, tokens, heads,
    GROUP: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_V: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """``delta`` [G, T, GROUP] of ROWS adjacent entries of one key head. Grid: (key heads, parts of T GROUP)."""
    head = tl.program_id(0)
    index, w = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_V)
    inside = (index < tokens * GROUP)[:, None] & (w < WIDTH_V)[None, :]
    at_head = (index // GROUP).to(tl.int64) * heads + head * GROUP + index % GROUP
    at = at_head[:, None] * WIDTH_V + w[None, :]
    do = tl.load(do_ptr + at, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(o_ptr + at, mask=inside, other=0.0).to(tl.float32)
    at_sum = head.to(tl.int64) * tokens * GROUP + index
    tl.store(delta_ptr + at_sum, tl.sum(do * o, axis=1), mask=index < tokens * GROUP)


@triton.jit
def _walk_keys(
    tiles, dq, q, do, lse, delta, position, begin, low, end, pin_end, pin_first, pin_count, front, skip,
    k_ptr, v_ptr, k_t, v_t, scale, window,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_PINNED: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH_K: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the tiles of a walk (see ``kernels.place_tile``) to the gradient of a tile of queries, without its scale."""
    for t in range(tiles):
        is_pinned, start = place_tile(t, begin, pin_first, pin_count, front, skip, BLOCK_N, HAS_PINNED)
        j = start + tl.arange(0, BLOCK_N)
        if MASKED:
            j = readable(start, is_pinned, low, end, pin_end, HAS_PINNED, BLOCK_N)
        k = load_rows(k_ptr + start.to(tl.int64) * k_t + (j - start) * k_t, WIDTH_K, BLOCK_K)
        v = load_rows(v_ptr + start.to(tl.int64) * v_t + (j - start) * v_t, WIDTH_V, BLOCK_V)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            scores = hide(scores, start, is_pinned, position, pin_end, window, 0, HAS_WINDOW, HAS_PINNED, BLOCK_N)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = tl.exp2(scores * scale - lse[:, None]) * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, acc=dq, input_precision=PRECISION)
    return dq


@triton.jit
def queries_backward(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, starts_ptr, key_starts_ptr,
    scale, natural_scale, window, pinned, rows, tokens, heads, q_t, q_h, k_t, k_h, v_t, v_h,
    GROUP: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_PINNED: tl.constexpr, IEEE: tl.constexpr,
    WIDTH_K: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: gradients of a tile of queries. Grid: (key heads, tiles)."""
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    head = tl.program_id(0)
    row, tile = find_row(tl.num_programs(1) - 1 - tl.program_id(1), starts_ptr, rows, GROUP, BLOCK_M)
    if row < 0:
        return
    first, first_key = tl.load(starts_ptr + row), tl.load(key_starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - first
    length = tl.load(key_starts_ptr + row + 1) - first_key
    if tile * BLOCK_M >= count * GROUP:
        return
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = index < count * GROUP
    token, q_head = tl.minimum(index // GROUP, count - 1), head * GROUP + index % GROUP
    position = length - count + token
    earliest = length - count + tile * BLOCK_M // GROUP
    latest = length - count + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, count - 1)
    at64 = (first + token).to(tl.int64)
    q = load_rows(q_ptr + at64 * q_t + q_head * q_h, WIDTH_K, BLOCK_K)
    at_head = at64 * heads + q_head
    do = load_rows(do_ptr + at_head * WIDTH_V, WIDTH_V, BLOCK_V)
    at_sum = head.to(tl.int64) * tokens * GROUP + first * GROUP + tl.minimum(index, count * GROUP - 1)
    lse, delta = tl.load(lse_ptr + at_sum), tl.load(delta_ptr + at_sum)
    k_ptr += first_key.to(tl.int64) * k_t + head * k_h
    v_ptr += first_key.to(tl.int64) * v_t + head * v_h

    low, pin_end, pin_whole = earliest * 0, earliest * 0, earliest * 0
    if HAS_WINDOW:
        low = tl.maximum(0, earliest - window)
    if HAS_PINNED:
        low = tl.maximum(low, pinned)
        pin_end, pin_whole = tl.minimum(pinned, latest + 1), tl.minimum(pinned, earliest + 1) // BLOCK_N
    pin_tiles = tl.cdiv(pin_end, BLOCK_N)
    tiles = tl.cdiv(tl.maximum(latest + 1 - low, 0), BLOCK_N)
    far = tl.minimum(tl.cdiv(tl.maximum(latest - window - low, 0), BLOCK_N), tiles) if HAS_WINDOW else 0
    near = tl.maximum(far, tl.minimum(tl.maximum(earliest + 1 - low, 0) // BLOCK_N, tiles))
    dq = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for whole in tl.static_range(2):
        dq = _walk_keys(
            pin_whole + near - far if whole else pin_tiles - pin_whole + far + tiles - near,
            dq, q, do, lse, delta, position, low, low, latest + 1, pin_end,
            0 if whole else pin_whole, pin_whole if whole else pin_tiles - pin_whole,
            0 if whole else far, far if whole else near - far,
            k_ptr, v_ptr, k_t, v_t, scale, window,
            whole == 0, HAS_WINDOW, HAS_PINNED, precision, WIDTH_K, WIDTH_V, BLOCK_K, BLOCK_V, BLOCK_N,
        )  # fmt: skip
    d = tl.arange(0, BLOCK_K)
    dq_at = dq_ptr + (at_head * WIDTH_K)[:, None] + d[None, :]
    tl.store(dq_at, (dq * natural_scale).to(dq_ptr.dtype.element_ty), mask=in_m[:, None] & (d < WIDTH_K)[None, :])


@triton.jit
def _walk_queries(
    tiles, dk, dv, k, v, j, begin, end, front, skip, head, before, window, first64, heads,
    q_ptr, do_ptr, lse_ptr, delta_ptr, q_t, q_h, scale,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH_K: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add tiles of queries ``begin`` to ``end``, counted with their group, to the gradients of a tile of keys.

    ``lse`` and ``delta`` begin at the row's first query, which is token ``first64``.

    Scores are transposed, keys by queries, so that the products need no transposed weights.
    """
    for t in range(tiles):
        _, start = place_tile(t, begin, 0, 0, front, skip, BLOCK_M, False)
        index = start + tl.arange(0, BLOCK_M)
        if MASKED:
            index = tl.minimum(index, end - 1)
        token, q_head = index // GROUP, head * GROUP + index % GROUP
        at64 = first64 + token
        at_head = at64 * heads + q_head
        q = load_rows(q_ptr + at64 * q_t + q_head * q_h, WIDTH_K, BLOCK_K)
        do = load_rows(do_ptr + at_head * WIDTH_V, WIDTH_V, BLOCK_V)
        lse, delta = tl.load(lse_ptr + index), tl.load(delta_ptr + index)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        if MASKED:
            # A query behind the end has a position before every key: it sees none.
            position = tl.where(start + tl.arange(0, BLOCK_M) < end, before + token, -1)
            after = (position[None, :] - j[:, None]).to(tl.uint32, bitcast=True)
            reach = j * 0 + (window if HAS_WINDOW else 2147483647)
            scores = tl.where(after <= reach.to(tl.uint32, bitcast=True)[:, None], scores, float("-inf"))
        p = tl.exp2(scores * scale - lse[None, :])
        dv = tl.dot(p.to(do.dtype), do, acc=dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, acc=dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def keys_backward(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, starts_ptr, key_starts_ptr,
    scale, natural_scale, window, pinned, rows, tokens, heads, kv_heads, pin_tiles, share,
    q_t, q_h, k_t, k_h, v_t, v_h,
    PINNED: tl.constexpr, GROUP: tl.constexpr, HAS_WINDOW: tl.constexpr, IEEE: tl.constexpr,
    WIDTH_K: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: gradients of a tile of one head's keys and values, over all queries of its group that see them.

    Grid: (key heads, tiles), all keys but the pinned. PINNED: (key heads, spans of ``share`` queries by tiles, rows),
    the pinned keys alone; ``dk`` and ``dv`` then are [spans, rows, pinned, key heads, width] in float32.
    """
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    head = tl.program_id(0)
    if PINNED:
        row, tile, span = tl.program_id(2), tl.program_id(1) % pin_tiles, tl.program_id(1) // pin_tiles
    else:
        row, tile = find_row(tl.program_id(1), key_starts_ptr, rows, 1, BLOCK_N)
        if row < 0:
            return
    first, first_key = tl.load(starts_ptr + row), tl.load(key_starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - first
    length = tl.load(key_starts_ptr + row + 1) - first_key
    before = length - count
    j0, j_end = tile * BLOCK_N, length
    if PINNED:
        j_end = tl.minimum(length, pinned)
    else:
        j0 += pinned
        if j0 >= length:
            return
    j = j0 + tl.arange(0, BLOCK_N)
    known = j < j_end
    token_begin, token_end = tl.maximum(0, j0 - before), count
    if HAS_WINDOW:
        token_end = tl.minimum(count, j0 + BLOCK_N + window - before)
    if PINNED:
        token_begin, token_end = tl.maximum(token_begin, span * share), tl.minimum(count, span * share + share)
    begin, end = token_begin * GROUP, tl.maximum(token_begin, token_end) * GROUP
    tiles = tl.cdiv(end - begin, BLOCK_M)
    near = tl.minimum(tl.cdiv(tl.maximum((j0 + BLOCK_N - 1 - before) * GROUP - begin, 0), BLOCK_M), tiles)
    seen = end
    if HAS_WINDOW:
        seen = tl.minimum(end, (j0 + window + 1 - before) * GROUP)
    far = tl.maximum(near, tl.maximum(seen - begin, 0) // BLOCK_M)

    at = first_key.to(tl.int64) + tl.minimum(j, tl.maximum(j_end, 1) - 1)
    k = load_rows(k_ptr + at * k_t + head * k_h, WIDTH_K, BLOCK_K)
    v = load_rows(v_ptr + at * v_t + head * v_h, WIDTH_V, BLOCK_V)
    at_sum = head.to(tl.int64) * tokens * GROUP + first * GROUP
    dk, dv = tl.zeros((BLOCK_N, BLOCK_K), tl.float32), tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for whole in tl.static_range(2):
        dk, dv = _walk_queries(
            far - near if whole else near + tiles - far, dk, dv, k, v, j, begin, end,
            0 if whole else near, near if whole else far - near, head, before, window, first.to(tl.int64), heads,
            q_ptr, do_ptr, lse_ptr + at_sum, delta_ptr + at_sum, q_t, q_h, scale,
            whole == 0, HAS_WINDOW, GROUP, precision, WIDTH_K, WIDTH_V, BLOCK_K, BLOCK_V, BLOCK_M,
        )  # fmt: skip
    if PINNED:
        known = j < pinned
        at = (span * rows + row).to(tl.int64) * pinned + j
    d, w = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_V)
    dk_at = dk_ptr + ((at * kv_heads + head) * WIDTH_K)[:, None] + d[None, :]
    dv_at = dv_ptr + ((at * kv_heads + head) * WIDTH_V)[:, None] + w[None, :]
    dk = (dk * natural_scale).to(dk_ptr.dtype.element_ty)
    tl.store(dk_at, dk, mask=known[:, None] & (d < WIDTH_K)[None, :])
    tl.store(dv_at, dv.to(dv_ptr.dtype.element_ty), mask=known[:, None] & (w < WIDTH_V)[None, :])


@triton.jit
def add_spans(
    part_ptr, out_ptr, key_starts_ptr, spans, rows, pinned, kv_heads,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of some pinned keys of one row and head, from spans of queries. Grid: (key heads, tiles, rows)."""
    head, row = tl.program_id(0), tl.program_id(2)
    first = tl.load(key_starts_ptr + row)
    length = tl.load(key_starts_ptr + row + 1) - first
    j, d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK)
    inside = (j < tl.minimum(length, pinned))[:, None] & (d < WIDTH)[None, :]
    total = tl.zeros((BLOCK_N, BLOCK), tl.float32)
    for span in range(spans):
        at = (((span * rows + row).to(tl.int64) * pinned + j) * kv_heads + head) * WIDTH
        total += tl.load(part_ptr + at[:, None] + d[None, :], mask=inside, other=0.0)
    at = ((first + j).to(tl.int64) * kv_heads + head) * WIDTH
    tl.store(out_ptr + at[:, None] + d[None, :], total.to(out_ptr.dtype.element_ty), mask=inside)
