"""Differential attention forward, jitted: whole rows or a paged cache, one kernel; launched by ``triton_impl``.

One program computes a tile of queries of one row and one cached head, for both maps at once. All query heads of the
group are packed into the rows of the tile, so that a key or value is fetched once for the group and both its maps.
Softmax is accumulated as in Milakov and Gimelshein 2018 (arXiv 1805.02867), in powers of two.

The two maps have two running sums, so their products with the values cannot be subtracted before the last key. There
are three WAYs around that; for values twice as wide as keys they cost the same multiplications:

- "together": one walk over the keys with two accumulators. Every key and value is read once: for decode, and for values
  so narrow that two accumulators fit into the registers of a large tile.
- "in_turn": a walk for either map, each with one accumulator. The first map's result waits in memory, as the sum of two
  numbers of the output's dtype: ``out`` itself and ``rest``. Values are fetched twice, half as many exponentials are
  taken as in "sums_first", and two groups of warps can take turns on the tensor cores.
- "sums_first": a walk over the keys alone finds the sums, a second one has one accumulator for the difference.

With SPLITS > 1 the keys of a row are shared out over programs, and ``combine`` adds up what they found.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def locate(
    start, j, known, table_ptr, first_key, page_stride, stride,
    PAGE: tl.constexpr, MASKED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Offsets of the keys j = ``start`` ... of a row, one [N] for a cache with pages of PAGE keys (0: no pages)."""
    if PAGE == 0:
        return (first_key + j).to(tl.int64) * stride
    elif PAGE % BLOCK_N == 0:  # a tile lies in one page
        page = tl.load(table_ptr + start // PAGE).to(tl.int64)
        return page * page_stride + (start % PAGE + tl.arange(0, BLOCK_N)) * stride
    else:
        if MASKED:
            page = tl.load(table_ptr + j // PAGE, mask=known, other=0).to(tl.int64)
        else:
            page = tl.load(table_ptr + j // PAGE).to(tl.int64)
        return page * page_stride + j % PAGE * stride


@triton.jit
def load_rows(ptr, offset_N, PADDED: tl.constexpr, inside_N, d, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """[N, PADDED] of rows at these offsets, with zeros behind WIDTH; only as much masking as is needed."""
    at = ptr + offset_N[:, None] + d[None, :]
    if MASKED:
        return tl.load(at, mask=inside_N[:, None] & (d < WIDTH)[None, :], other=0.0)
    elif WIDTH != PADDED:
        return tl.load(at, mask=(d < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _weigh(scores, best, scale):
    """Weights of a tile of scores, the new row maxima, and by how much what was summed before shrinks.

    ``scale`` is positive and joins the exponent's subtraction in one instruction; the maxima include it.
    """
    best_new = tl.maximum(best, tl.max(scores, axis=1) * scale)
    # Rows that have seen no key yet keep weights of 0 instead of exp(-inf + inf).
    shift = tl.where(best_new == float("-inf"), 0.0, best_new)
    return tl.exp2(scores * scale - shift[:, None]), best_new, tl.exp2(best - shift)


@triton.jit
def _scores(q, k, visible, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    return scores


@triton.jit
def _walk_one(
    begin, end, q, best, total, acc, position,
    k_ptr, v_ptr, table_ptr, first_key, length, scale, d, w, k_b, k_p, v_b, v_p,
    PAGE: tl.constexpr, ALIKE: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Walk over keys ``begin`` to ``end`` with one map: its sums, and the values under it."""
    for start in range(begin, end, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        known = j < length
        k_at = locate(start, j, known, table_ptr, first_key, k_b, k_p, PAGE, MASKED, BLOCK_N)
        v_at = k_at
        if not ALIKE:
            v_at = locate(start, j, known, table_ptr, first_key, v_b, v_p, PAGE, MASKED, BLOCK_N)
        k = load_rows(k_ptr, k_at, BLOCK_D, known, d, WIDTH, MASKED)
        scores = _scores(q, k, known[None, :] & (j[None, :] <= position[:, None]), MASKED, PRECISION)
        weights, best, rescale = _weigh(scores, best, scale)
        total = total * rescale + tl.sum(weights, axis=1)
        v = load_rows(v_ptr, v_at, BLOCK_W, known, w, WIDTH_V, MASKED)
        acc = tl.dot(weights.to(v.dtype), v, acc=acc * rescale[:, None], input_precision=PRECISION)
    return best, total, acc


@triton.jit
def _one_map(
    q_ptr, at, k_ptr, k_b, k_p, begin, whole, end, in_m, position,
    v_ptr, v_b, v_p, table_ptr, first_key, length, scale, d, w,
    PAGE: tl.constexpr, ALIKE: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Values under one map [M, W], and the logarithms of its sums: plain attention of a tile of queries."""
    q = load_rows(q_ptr, at, BLOCK_D, in_m, d, WIDTH, True)
    best, total = tl.full((BLOCK_M,), float("-inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_W), tl.float32)
    for part in tl.static_range(2):  # keys that every query of the tile sees, then the rest
        best, total, acc = _walk_one(
            begin if part == 0 else whole, whole if part == 0 else end, q, best, total, acc, position,
            k_ptr, v_ptr, table_ptr, first_key, length, scale, d, w, k_b, k_p, v_b, v_p,
            PAGE, ALIKE, part == 1, PRECISION, WIDTH, WIDTH_V, BLOCK_D, BLOCK_W, BLOCK_N,
        )  # fmt: skip
    return acc * (1.0 / total)[:, None], best + tl.log2(total)


@triton.jit
def _walk(
    begin, end, q1, q2, best1, best2, total1, total2, acc1, acc2, lam, position,
    k1_ptr, k2_ptr, v_ptr, table_ptr, first_key, length, scale, d, w,
    k1_b, k1_p, k2_b, k2_p, v_b, v_p,
    STEP: tl.constexpr, SHARED: tl.constexpr, PAGE: tl.constexpr, ALIKE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Walk over keys ``begin`` to ``end``, in one of three STEPs.

    "both": sums and values of both maps. "sums": the sums alone. "values": values under the difference of the maps,
    whose sums stand in ``best1`` and ``best2`` as logarithms.
    """
    for start in range(begin, end, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        known = j < length
        visible = known[None, :] & (j[None, :] <= position[:, None])
        k1_at = locate(start, j, known, table_ptr, first_key, k1_b, k1_p, PAGE, MASKED, BLOCK_N)
        k2_at, v_at = k1_at, k1_at
        if not ALIKE:
            k2_at = locate(start, j, known, table_ptr, first_key, k2_b, k2_p, PAGE, MASKED, BLOCK_N)
            v_at = locate(start, j, known, table_ptr, first_key, v_b, v_p, PAGE, MASKED, BLOCK_N)
        k1 = load_rows(k1_ptr, k1_at, BLOCK_D, known, d, WIDTH, MASKED)
        k2 = k1
        if not SHARED:
            k2 = load_rows(k2_ptr, k2_at, BLOCK_D, known, d, WIDTH, MASKED)
        scores1 = _scores(q1, k1, visible, MASKED, PRECISION)
        scores2 = _scores(q2, k2, visible, MASKED, PRECISION)
        if STEP == "values":
            # A key that is not visible has a score of -inf and so no weight in either map.
            weights = tl.exp2(scores1 * scale - best1[:, None])
            weights -= lam[:, None] * tl.exp2(scores2 * scale - best2[:, None])
            v = load_rows(v_ptr, v_at, BLOCK_W, known, w, WIDTH_V, MASKED)
            acc1 = tl.dot(weights.to(v.dtype), v, acc=acc1, input_precision=PRECISION)
        else:
            weights1, best1, rescale1 = _weigh(scores1, best1, scale)
            weights2, best2, rescale2 = _weigh(scores2, best2, scale)
            total1 = total1 * rescale1 + tl.sum(weights1, axis=1)
            total2 = total2 * rescale2 + tl.sum(weights2, axis=1)
            if STEP == "both":
                v = load_rows(v_ptr, v_at, BLOCK_W, known, w, WIDTH_V, MASKED)
                acc1 = tl.dot(weights1.to(v.dtype), v, acc=acc1 * rescale1[:, None], input_precision=PRECISION)
                acc2 = tl.dot(weights2.to(v.dtype), v, acc=acc2 * rescale2[:, None], input_precision=PRECISION)
    return best1, best2, total1, total2, acc1, acc2


@triton.jit
def _normed(
    o, weight_ptr, eps, factor, w,
    NORM: tl.constexpr, HAS_WEIGHT: tl.constexpr, WIDTH_V: tl.constexpr,
):  # fmt: skip
    """Each row over its root mean square, times weight and factor; columns beyond WIDTH_V hold zeros."""
    if NORM:
        o = o * (tl.rsqrt(tl.sum(o * o, axis=1) / WIDTH_V + eps) * factor)[:, None]
        if HAS_WEIGHT:
            o = o * tl.load(weight_ptr + w, mask=w < WIDTH_V, other=0.0).to(tl.float32)[None, :]
    return o


@triton.jit
def _store_share(
    partial_ptr, stats_ptr, split, all_rows, at_row, in_m, inside, w,
    has_keys, best1, best2, total1, total2, acc1, acc2, WIDTH_V: tl.constexpr,
):  # fmt: skip
    """What one split found, for ``combine``; values only where it had keys."""
    stats = stats_ptr + split * 4 * all_rows + at_row
    tl.store(stats, best1, mask=in_m)
    tl.store(stats + all_rows, best2, mask=in_m)
    tl.store(stats + 2 * all_rows, total1, mask=in_m)
    tl.store(stats + 3 * all_rows, total2, mask=in_m)
    if has_keys:
        partial = partial_ptr + (split * 2 * all_rows + at_row)[:, None] * WIDTH_V + w[None, :]
        tl.store(partial, acc1, mask=inside)
        tl.store(partial + all_rows * WIDTH_V, acc2, mask=inside)


@triton.jit
def attend(
    q1_ptr, q2_ptr, k1_ptr, k2_ptr, v_ptr, lam_ptr, weight_ptr, out_ptr, plain_ptr, lse_ptr, partial_ptr, stats_ptr,
    starts_ptr, key_starts_ptr, table_ptr, lengths_ptr,
    scale, eps, factor, tokens, heads,
    q1_t, q1_h, q2_t, q2_h, k1_b, k1_p, k1_h, k2_b, k2_p, k2_h, v_b, v_p, v_h, table_r, lam_t, lam_h, out_t, out_h,
    GROUP: tl.constexpr, SHARED: tl.constexpr, PAGE: tl.constexpr, ALIKE: tl.constexpr, SPLITS: tl.constexpr,
    WAY: tl.constexpr, NORM: tl.constexpr, HAS_WEIGHT: tl.constexpr, KEEP: tl.constexpr, IEEE: tl.constexpr,
    WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of queries, or splits of keys; cached heads; rows). ``scale`` includes log2 e.

    PAGE is the number of keys of a page, 0 for packed rows. ALIKE says that keys and values have the same strides,
    as views of one cache.

    KEEP writes what the backward pass needs: ``plain`` [T, H, W] before the norm, and logarithms of the sums
    ``lse`` [2, H, T]. In the way "in_turn" ``plain`` is there always, for the rest of the first map's result. Splits
    write ``partial`` [SPLITS, 2, T, H, W] and ``stats`` [SPLITS, 4, T, H] (maxima, sums).
    """
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    head, row = tl.program_id(1), tl.program_id(2)
    first = tl.load(starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - first
    if PAGE > 0:
        first_key, length = 0, tl.load(lengths_ptr + row)
        table_ptr += row.to(tl.int64) * table_r
    else:
        first_key = tl.load(key_starts_ptr + row)
        length = tl.load(key_starts_ptr + row + 1) - first_key
    if SPLITS > 1:
        split, tile = tl.program_id(0), 0
    else:  # the tiles that see the most keys start first
        split, tile = 0, tl.num_programs(0) - 1 - tl.program_id(0)
    if (tile * BLOCK_M >= count * GROUP) | (length <= 0):
        return
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token, q_head = index // GROUP, head * GROUP + index % GROUP
    in_m = token < count
    position = length - count + token
    end = tl.minimum(length, length - count + (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1)
    begin = 0
    if SPLITS > 1:
        share = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N
        begin = split * share
        end = tl.minimum(end, begin + share)
    seen_by_all = tl.minimum(end, length - count + tile * BLOCK_M // GROUP + 1)
    whole = begin + tl.maximum(seen_by_all - begin, 0) // BLOCK_N * BLOCK_N

    d, w = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_W)
    at64 = (first + token).to(tl.int64)
    at_row = at64 * heads + q_head
    inside = in_m[:, None] & (w < WIDTH_V)[None, :]
    out_at = out_ptr + (at64 * out_t + q_head * out_h)[:, None] + w[None, :]
    plain_at = plain_ptr + at_row[:, None] * WIDTH_V + w[None, :]
    lam = tl.load(lam_ptr + at64 * lam_t + q_head * lam_h, mask=in_m, other=0.0).to(tl.float32)
    k1_ptr += head * k1_h
    k2_ptr += head * k2_h
    v_ptr += head * v_h
    if WAY == "in_turn":
        o, lse1 = _one_map(
            q1_ptr, at64 * q1_t + q_head * q1_h, k1_ptr, k1_b, k1_p, begin, whole, end, in_m, position,
            v_ptr, v_b, v_p, table_ptr, first_key, length, scale, d, w,
            PAGE, ALIKE, precision, WIDTH, WIDTH_V, BLOCK_D, BLOCK_W, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        most = o.to(out_ptr.dtype.element_ty)
        tl.store(out_at, most, mask=inside)
        tl.store(plain_at, o - most.to(tl.float32), mask=inside)
        tl.debug_barrier()  # other threads of this program may read it back
        o, lse2 = _one_map(
            q2_ptr, at64 * q2_t + q_head * q2_h, k2_ptr, k2_b, k2_p, begin, whole, end, in_m, position,
            v_ptr, v_b, v_p, table_ptr, first_key, length, scale, d, w,
            PAGE, ALIKE, precision, WIDTH, WIDTH_V, BLOCK_D, BLOCK_W, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        o *= -lam[:, None]
        o += tl.load(out_at, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        o += tl.load(plain_at, mask=inside, other=0.0, cache_modifier=".cg").to(tl.float32)
        tl.debug_barrier()
    else:
        q1 = load_rows(q1_ptr, at64 * q1_t + q_head * q1_h, BLOCK_D, in_m, d, WIDTH, True)
        q2 = load_rows(q2_ptr, at64 * q2_t + q_head * q2_h, BLOCK_D, in_m, d, WIDTH, True)
        best1, best2 = tl.full((BLOCK_M,), float("-inf"), tl.float32), tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total1, total2 = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
        acc1 = tl.zeros((BLOCK_M, BLOCK_W), tl.float32)
        acc2 = lam if WAY == "sums_first" else tl.zeros((BLOCK_M, BLOCK_W), tl.float32)
        for part in tl.static_range(2):  # keys that every query of the tile sees, then the rest
            best1, best2, total1, total2, acc1, acc2 = _walk(
                begin if part == 0 else whole, whole if part == 0 else end,
                q1, q2, best1, best2, total1, total2, acc1, acc2, lam, position,
                k1_ptr, k2_ptr, v_ptr, table_ptr, first_key, length, scale, d, w,
                k1_b, k1_p, k2_b, k2_p, v_b, v_p,
                "sums" if WAY == "sums_first" else "both", SHARED, PAGE, ALIKE, part == 1, precision,
                WIDTH, WIDTH_V, BLOCK_D, BLOCK_W, BLOCK_N,
            )  # fmt: skip
        if SPLITS == 1:
            lse1, lse2 = best1 + tl.log2(total1), best2 + tl.log2(total2)
            if WAY == "sums_first":
                for part in tl.static_range(2):
                    best1, best2, total1, total2, acc1, acc2 = _walk(
                        begin if part == 0 else whole, whole if part == 0 else end,
                        q1, q2, lse1, lse2, total1, total2, acc1, acc2, lam, position,
                        k1_ptr, k2_ptr, v_ptr, table_ptr, first_key, length, scale, d, w,
                        k1_b, k1_p, k2_b, k2_p, v_b, v_p,
                        "values", SHARED, PAGE, ALIKE, part == 1, precision, WIDTH, WIDTH_V, BLOCK_D, BLOCK_W, BLOCK_N,
                    )  # fmt: skip
                o = acc1
            else:
                o = acc1 / total1[:, None] - (lam / total2)[:, None] * acc2
    if SPLITS > 1:
        _store_share(
            partial_ptr, stats_ptr, split.to(tl.int64), tokens.to(tl.int64) * heads, at_row, in_m, inside, w,
            begin < end, best1, best2, total1, total2, acc1, acc2, WIDTH_V,
        )  # fmt: skip
    else:
        if KEEP:
            tl.store(lse_ptr + q_head.to(tl.int64) * tokens + first + token, lse1, mask=in_m)
            tl.store(lse_ptr + (heads + q_head).to(tl.int64) * tokens + first + token, lse2, mask=in_m)
            if NORM:
                tl.store(plain_at, o, mask=inside)
        o = _normed(o, weight_ptr, eps, factor, w, NORM, HAS_WEIGHT, WIDTH_V)
        tl.store(out_at, o, mask=inside)


@triton.jit
def combine(
    partial_ptr, stats_ptr, lam_ptr, weight_ptr, out_ptr, starts_ptr, lengths_ptr,
    eps, factor, tokens, heads, lam_t, lam_h, out_t, out_h,
    SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, NORM: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    WIDTH_V: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program: one query head of one token, from what the splits of its keys found."""
    token, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(starts_ptr + row)
    if (token >= tl.load(starts_ptr + row + 1) - first) | (tl.load(lengths_ptr + row) <= 0):
        return
    at = (first + token).to(tl.int64)
    at_row, all_rows = at * heads + head, tokens.to(tl.int64) * heads
    s, w = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_W)
    in_s = s < SPLITS
    stats = stats_ptr + s.to(tl.int64) * 4 * all_rows + at_row
    partial = partial_ptr + (s.to(tl.int64)[:, None] * 2 * all_rows + at_row) * WIDTH_V + w[None, :]
    o = tl.zeros((BLOCK_W,), tl.float32)
    for map in tl.static_range(2):
        best = tl.load(stats + map * all_rows, mask=in_s, other=float("-inf"))
        share = tl.exp2(best - tl.max(best, axis=0))  # 0 for a split without visible keys, whose sums are not read
        found = share > 0
        total = tl.sum(share * tl.load(stats + (2 + map) * all_rows, mask=in_s & found, other=0.0), axis=0)
        inside = (in_s & found)[:, None] & (w < WIDTH_V)[None, :]
        values = tl.load(partial + map * all_rows * WIDTH_V, mask=inside, other=0.0)
        coefficient = 1.0 / total
        if map == 1:
            coefficient = -coefficient * tl.load(lam_ptr + at * lam_t + head * lam_h).to(tl.float32)
        o += coefficient * tl.sum(share[:, None] * values, axis=0)
    o = tl.reshape(_normed(o[None, :], weight_ptr, eps, factor, w, NORM, HAS_WEIGHT, WIDTH_V), (BLOCK_W,))
    tl.store(out_ptr + at * out_t + head * out_h + w, o, mask=w < WIDTH_V)
