"""Attention with a window and pinned keys, forward, jitted: packed rows or a paged cache; launched by ``triton_impl``.

One program computes a tile of queries of one row and one key head. All query heads of the group are packed into the
rows of the tile (token by token), so that a key is fetched once for the group, and a tile spans few positions: its
window is hardly longer than one query's. Softmax is accumulated as in Milakov and Gimelshein 2018 (arXiv 1805.02867),
in powers of two, with the scale folded into the exponent's one multiplication.

The keys that a tile sees are two runs of tiles: pinned keys, then those of the window. Of both, some tiles are seen
whole by every query and some lie on an edge: the end of the pinned keys, the window's far end, the diagonal. The edges
are walked first, with masks, then the whole tiles, without: two loops, each over both runs, because every loop fills
the pipeline of loads anew and a window of 1,024 keys is only some twenty tiles long.

For a token or two a row (``DECODE``) keys are few and bytes are all that counts: one masked loop, and with ``SPLIT``
the tiles of a row are shared out over programs, whose parts ``combine`` adds up.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def find_row(tile, starts_ptr, rows, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """(row, tile in it) of a program's tile, -1 where it is none: row r's tiles begin at starts[r] GROUP // BLOCK + r.

    No row needs more tiles than that leaves it, so the grid needs no list of rows from the host.
    """
    r = tl.arange(0, 128)
    row, begin = -1, 0
    for base in range(0, rows, 128):
        begins = tl.load(starts_ptr + base + r, mask=base + r < rows, other=0) * GROUP // BLOCK + base + r
        before = (begins <= tile) & (base + r < rows)
        row += tl.sum(before.to(tl.int32), axis=0)
        begin = tl.maximum(begin, tl.max(tl.where(before, begins, 0), axis=0))
    return row, tile - begin


@triton.jit
def load_rows(at, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """[N, PADDED] of rows that begin at these pointers, with zeros behind WIDTH."""
    d = tl.arange(0, PADDED)
    at = at[:, None] + d[None, :]
    if WIDTH != PADDED:
        return tl.load(at, mask=(d < WIDTH)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def place_tile(t, begin, pin_first, pin_count, front, skip, BLOCK_N: tl.constexpr, HAS_PINNED: tl.constexpr):
    """Whether tile t of a walk is of pinned keys, and its first key: those first, then others.

    After ``front`` of the others, ``skip`` are left out. Keys of the window are counted from the row's first, pinned
    ones from the first pinned.
    """
    other = t - pin_count
    start = begin + (other + tl.where(other < front, 0, skip)) * BLOCK_N
    is_pinned = t < pin_count
    if HAS_PINNED:
        start = tl.where(is_pinned, (pin_first + t) * BLOCK_N, start)
    return is_pinned, start


@triton.jit
def readable(start, is_pinned, low, end, pin_end, HAS_PINNED: tl.constexpr, BLOCK_N: tl.constexpr):
    """The keys of a tile [N], where those that no query sees repeat one that is seen.

    So nothing else is read: a page before the window may be another row's, and what lies behind the last token may be
    no number, which a weight of 0 would not remove.
    """
    j = start + tl.arange(0, BLOCK_N)
    kept = tl.minimum(tl.maximum(j, low), end - 1)
    if HAS_PINNED:
        kept = tl.where(is_pinned, tl.minimum(j, pin_end - 1), kept)
    return kept


@triton.jit
def hide(
    scores, start, is_pinned, position, pin_end, window,
    PAGE: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_PINNED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scores [M, N] with -inf where a query does not see a key."""
    oldest, newest = position * 0, position
    if HAS_WINDOW:
        oldest = position - window
    if HAS_PINNED:
        oldest = tl.where(is_pinned, 0, oldest)
        # Pinned keys of a cache lie before every position; in whole rows they are the first positions.
        newest = tl.where(is_pinned, (pin_end - 1 if PAGE else tl.minimum(position, pin_end - 1)), newest)
    # One comparison for both ends: without its sign, what lies before the oldest is a huge number.
    after = tl.arange(0, BLOCK_N)[None, :] - (oldest - start)[:, None]
    visible = after.to(tl.uint32, bitcast=True) <= (newest - oldest).to(tl.uint32, bitcast=True)[:, None]
    return tl.where(visible, scores, float("-inf"))


@triton.jit
def find_page(
    t, t_end, table_ptr, begin, low, end, pin_first, pin_count, front, skip,
    PAGE: tl.constexpr, HAS_PINNED: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The page of tile t of a walk, where tiles lie in one page each; else the page of each of its keys [N]."""
    if PAGE == 0:
        return begin
    is_pinned, start = place_tile(t, begin, pin_first, pin_count, front, skip, BLOCK_N, HAS_PINNED)
    inside = (t < t_end) & (is_pinned == 0)
    if PAGE % BLOCK_N == 0:
        return tl.load(table_ptr + start // PAGE, mask=inside, other=0)
    else:
        j = tl.minimum(tl.maximum(start + tl.arange(0, BLOCK_N), low), end - 1)
        return tl.load(table_ptr + j // PAGE, mask=(j >= 0) & inside, other=0)


@triton.jit
def tile_rows(
    is_pinned, start, j, page, k_ptr, v_ptr, pin_k_ptr, pin_v_ptr, k_b, k_p, v_b, v_p, pin_k_m, pin_v_m,
    PAGE: tl.constexpr, HAS_PINNED: tl.constexpr, ALIKE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pointers to keys and values j of a tile. PAGE 0: rows lie whole, pinned keys are their first; else paged.

    ALIKE: pinned keys lie as far apart as those of a page, so that the offsets in a tile stay the same.
    """
    if PAGE == 0:
        k_at, v_at = k_ptr + start.to(tl.int64) * k_p, v_ptr + start.to(tl.int64) * v_p
    elif PAGE % BLOCK_N == 0:
        page64, within = page.to(tl.int64), start % PAGE
        k_at, v_at = k_ptr + page64 * k_b + within * k_p, v_ptr + page64 * v_b + within * v_p
        if HAS_PINNED:
            k_at = tl.where(is_pinned, pin_k_ptr + start * pin_k_m, k_at)
            v_at = tl.where(is_pinned, pin_v_ptr + start * pin_v_m, v_at)
            if not ALIKE:
                k_p, v_p = tl.where(is_pinned, pin_k_m, k_p), tl.where(is_pinned, pin_v_m, v_p)
    else:
        page64, within = page.to(tl.int64), j % PAGE
        k_at, v_at = k_ptr + page64 * k_b + within * k_p, v_ptr + page64 * v_b + within * v_p
        if HAS_PINNED:
            k_at = tl.where(is_pinned, pin_k_ptr + j * pin_k_m, k_at)
            v_at = tl.where(is_pinned, pin_v_ptr + j * pin_v_m, v_at)
        return k_at, v_at
    return k_at + (j - start) * k_p, v_at + (j - start) * v_p


@triton.jit
def _walk(
    t_begin, t_end, best, total, acc, q, position,
    begin, low, end, pin_end, pin_first, pin_count, front, skip,
    k_ptr, v_ptr, pin_k_ptr, pin_v_ptr, table_ptr, k_b, k_p, v_b, v_p, pin_k_m, pin_v_m, scale, window,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_PINNED: tl.constexpr, ALIKE: tl.constexpr, PAGE: tl.constexpr,
    PRECISION: tl.constexpr, WIDTH_K: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add the tiles of a walk (see ``place_tile``) to the running softmax of every query.

    ``best`` are row maxima of scores times ``scale``, ``total`` row sums, ``acc`` weighted values.
    """
    page = find_page(
        t_begin, t_end, table_ptr, begin, low, end, pin_first, pin_count, front, skip, PAGE, HAS_PINNED, BLOCK_N
    )
    for t in range(t_begin, t_end):
        is_pinned, start = place_tile(t, begin, pin_first, pin_count, front, skip, BLOCK_N, HAS_PINNED)
        j = start + tl.arange(0, BLOCK_N)
        if MASKED:
            j = readable(start, is_pinned, low, end, pin_end, HAS_PINNED, BLOCK_N)
        k_at, v_at = tile_rows(
            is_pinned, start, j, page, k_ptr, v_ptr, pin_k_ptr, pin_v_ptr, k_b, k_p, v_b, v_p, pin_k_m, pin_v_m,
            PAGE, HAS_PINNED, ALIKE, BLOCK_N,
        )  # fmt: skip
        # A tile ahead: were the page read here, the compiler would spend the stages of the pipeline on waiting for it.
        page = find_page(
            t + 1, t_end, table_ptr, begin, low, end, pin_first, pin_count, front, skip, PAGE, HAS_PINNED, BLOCK_N
        )
        k = load_rows(k_at, WIDTH_K, BLOCK_K)
        scores = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
        if MASKED:
            scores = hide(scores, start, is_pinned, position, pin_end, window, PAGE, HAS_WINDOW, HAS_PINNED, BLOCK_N)
        best_new = tl.maximum(best, tl.max(scores, axis=1) * scale)
        shift = best_new
        if MASKED:  # a row that has seen no key yet keeps weights of 0 instead of exp(-inf + inf)
            shift = tl.where(best_new == float("-inf"), 0.0, best_new)
        weights = tl.exp2(scores * scale - shift[:, None])
        rescale = tl.exp2(best - shift)
        best, total = best_new, total * rescale + tl.sum(weights, axis=1)
        v = load_rows(v_at, WIDTH_V, BLOCK_V).to(q.dtype)
        acc = tl.dot(weights.to(q.dtype), v, acc=acc * rescale[:, None], input_precision=PRECISION)
    return best, total, acc


@triton.jit
def attend(
    q_ptr, k_ptr, v_ptr, pin_k_ptr, pin_v_ptr, out_ptr, lse_ptr, partial_ptr, stats_ptr,
    starts_ptr, key_starts_ptr, table_ptr, lengths_ptr,
    scale, window, pinned, rows, tokens, heads,
    q_t, q_h, k_b, k_p, k_h, v_b, v_p, v_h, table_r, pin_k_h, pin_k_m, pin_v_h, pin_v_m, out_t, out_h,
    GROUP: tl.constexpr, PAGE: tl.constexpr, DECODE: tl.constexpr, SPLIT: tl.constexpr, KEEP: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_PINNED: tl.constexpr, ALIKE: tl.constexpr, IEEE: tl.constexpr,
    WIDTH_K: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Grid: (key heads, tiles), or with DECODE, which takes one tile a row, (key heads, splits, rows).

    ``scale`` includes log2 e. KEEP writes logarithms of the sums, in base 2, ``lse`` [G, T, GROUP]. SPLIT writes
    weighted values ``partial`` [splits, T, H, V] and ``stats`` [splits, 2, T, H] (maxima, sums) instead of the output.
    """
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    head = tl.program_id(0)
    if DECODE:
        row, tile = tl.program_id(2), 0
    else:  # the last tiles see the most keys and start first
        row, tile = find_row(tl.num_programs(1) - 1 - tl.program_id(1), starts_ptr, rows, GROUP, BLOCK_M)
        if row < 0:
            return
    first = tl.load(starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - first
    if PAGE:
        length = tl.load(lengths_ptr + row)
        table_ptr += row.to(tl.int64) * table_r
        pin_k_ptr += head * pin_k_h
        pin_v_ptr += head * pin_v_h
    else:
        first_key = tl.load(key_starts_ptr + row)
        length = tl.load(key_starts_ptr + row + 1) - first_key
        k_ptr += first_key.to(tl.int64) * k_p
        v_ptr += first_key.to(tl.int64) * v_p
    if (tile * BLOCK_M >= count * GROUP) | (length <= 0):
        return
    k_ptr += head * k_h
    v_ptr += head * v_h
    index = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = index < count * GROUP
    # Rows behind the last query repeat the last one's position: nothing else has to know of them.
    token, q_head = tl.minimum(index // GROUP, count - 1), head * GROUP + index % GROUP
    position = length - count + token
    earliest = length - count + tile * BLOCK_M // GROUP
    latest = length - count + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, count - 1)
    at64 = (first + token).to(tl.int64)
    q = load_rows(q_ptr + at64 * q_t + q_head * q_h, WIDTH_K, BLOCK_K)

    low, pin_end, pin_whole = earliest * 0, earliest * 0, earliest * 0
    if HAS_WINDOW:
        low = tl.maximum(0, earliest - window)
    if HAS_PINNED:
        if PAGE:
            pin_end = low * 0 + pinned
            pin_whole = pin_end // BLOCK_N
        else:
            low = tl.maximum(low, pinned)
            pin_end = tl.minimum(pinned, latest + 1)
            pin_whole = tl.minimum(pinned, earliest + 1) // BLOCK_N
    begin, end = (low // BLOCK_N * BLOCK_N if PAGE else low), latest + 1
    pin_tiles = tl.cdiv(pin_end, BLOCK_N)
    tiles = tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N)

    best, total = tl.full((BLOCK_M,), float("-inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    if DECODE:
        share = tl.cdiv(pin_tiles + tiles, tl.num_programs(1))
        split = tl.program_id(1)
        best, total, acc = _walk(
            split * share, tl.minimum(split * share + share, pin_tiles + tiles), best, total, acc, q, position,
            begin, low, end, pin_end, 0, pin_tiles, tiles, 0,
            k_ptr, v_ptr, pin_k_ptr, pin_v_ptr, table_ptr, k_b, k_p, v_b, v_p, pin_k_m, pin_v_m, scale, window,
            True, HAS_WINDOW, HAS_PINNED, ALIKE, PAGE, precision, WIDTH_K, WIDTH_V, BLOCK_K, BLOCK_V, BLOCK_N,
        )  # fmt: skip
    else:
        # Tiles [far, near) of the window are seen whole by every query.
        far = tl.minimum(tl.cdiv(tl.maximum(latest - window - begin, 0), BLOCK_N), tiles) if HAS_WINDOW else 0
        near = tl.maximum(far, tl.minimum(tl.maximum(earliest + 1 - begin, 0) // BLOCK_N, tiles))
        for whole in tl.static_range(2):
            best, total, acc = _walk(
                0, pin_whole + near - far if whole else pin_tiles - pin_whole + far + tiles - near,
                best, total, acc, q, position,
                begin, low, end, pin_end,
                0 if whole else pin_whole, pin_whole if whole else pin_tiles - pin_whole,
                0 if whole else far, far if whole else near - far,
                k_ptr, v_ptr, pin_k_ptr, pin_v_ptr, table_ptr, k_b, k_p, v_b, v_p, pin_k_m, pin_v_m, scale, window,
                whole == 0, HAS_WINDOW, HAS_PINNED, ALIKE, PAGE, precision, WIDTH_K, WIDTH_V, BLOCK_K, BLOCK_V, BLOCK_N,
            )  # fmt: skip

    w = tl.arange(0, BLOCK_V)
    inside = in_m[:, None] & (w < WIDTH_V)[None, :]
    at_head = at64 * heads + q_head
    if SPLIT:
        split64 = tl.program_id(1).to(tl.int64)
        stats = stats_ptr + split64 * 2 * tokens * heads + at_head
        tl.store(stats, best, mask=in_m)
        tl.store(stats + tokens * heads, total, mask=in_m)
        if tl.program_id(1) * share < pin_tiles + tiles:
            partial = partial_ptr + (split64 * tokens * heads + at_head)[:, None] * WIDTH_V + w[None, :]
            tl.store(partial, acc, mask=inside)
    else:
        out_at = out_ptr + (at64 * out_t + q_head * out_h)[:, None] + w[None, :]
        tl.store(out_at, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)
        if KEEP:
            # In the order of a tile's rows: what is adjacent there is read together in the backward pass.
            at_sum = head.to(tl.int64) * tokens * GROUP + first * GROUP + index
            tl.store(lse_ptr + at_sum, best + tl.log2(total), mask=in_m)


@triton.jit
def combine(
    partial_ptr, stats_ptr, out_ptr, starts_ptr, lengths_ptr, splits, tokens, heads, out_t, out_h,
    BLOCK_S: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program: one query head of one token, from what the splits of its keys found. Grid: (heads, tokens, rows)."""
    head, token, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(starts_ptr + row)
    if (token >= tl.load(starts_ptr + row + 1) - first) | (tl.load(lengths_ptr + row) <= 0):
        return
    at = (first + token).to(tl.int64)
    s, w = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_V)
    in_s = s < splits
    stats = stats_ptr + s.to(tl.int64) * 2 * tokens * heads + at * heads + head
    best = tl.load(stats, mask=in_s, other=float("-inf"))
    share = tl.exp2(best - tl.max(best, axis=0))
    found = share > 0  # a split without tiles leaves no values
    total = tl.sum(share * tl.load(stats + tokens * heads, mask=found, other=0.0), axis=0)
    partial = partial_ptr + (s.to(tl.int64) * tokens * heads + at * heads + head)[:, None] * WIDTH_V + w[None, :]
    values = tl.load(partial, mask=found[:, None] & (w < WIDTH_V)[None, :], other=0.0)
    out = tl.sum(share[:, None] * values, axis=0) / total
    tl.store(out_ptr + at * out_t + head * out_h + w, out.to(out_ptr.dtype.element_ty), mask=w < WIDTH_V)
