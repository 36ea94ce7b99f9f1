"""Differential attention backward, jitted; launched by ``triton_impl``.

With o = A1 v - lambda A2 v, g = dL/do and P_j the maps, recomputed tile by tile from the kept logarithms of their sums:

    dP = g v^T,   D_j = row sum of P_j * dP
    dS1 = P1 * (dP - D1),   dS2 = -lambda P2 * (dP - D2),   dq_j = dS_j k_j,   dk_j = dS_j^T q_j   (times the scale)
    dv = (P1 - lambda P2)^T g,   dlambda = -D2

The row sums come from the recomputed maps, in a walk of their own, and not from outputs of the two maps: those were
never formed apart, and what the maps' difference cancels would be lost in their 16 bits. Each gradient is written by
one program, in a fixed order: no atomics.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN201, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from nlrl_kernels.diff_attention.kernels import load_rows


@triton.jit
def norm_backward(
    dy_ptr, o_ptr, weight_ptr, do_ptr, dweight_ptr, rows, eps, factor,
    HAS_WEIGHT: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """The head norm: one program takes every so many-th head of a token, with its part of the weight's gradient."""
    w = tl.arange(0, BLOCK_W)
    inside = w < WIDTH_V
    dweight = tl.zeros((BLOCK_W,), tl.float32)
    weight = tl.full((BLOCK_W,), 1.0, tl.float32)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + w, mask=inside, other=0.0).to(tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        o = tl.load(o_ptr + row * WIDTH_V + w, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row * WIDTH_V + w, mask=inside, other=0.0).to(tl.float32) * factor
        inverse = tl.rsqrt(tl.sum(o * o, axis=0) / WIDTH_V + eps)
        unit = o * inverse
        dunit = dy * weight
        dweight += dy * unit
        do = (dunit - unit * (tl.sum(dunit * unit, axis=0) / WIDTH_V)) * inverse
        tl.store(do_ptr + row * WIDTH_V + w, do, mask=inside)
    tl.store(dweight_ptr + tl.program_id(0) * WIDTH_V + w, dweight, mask=inside)


@triton.jit
def _maps(
    q1, q2, lse1, lse2, k1_ptr, k2_ptr, at1, at2, known, visible, d, scale,
    SHARED: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Both maps of a tile of queries and a tile of keys, and the keys."""
    k1 = load_rows(k1_ptr, at1, BLOCK_D, known, d, WIDTH, True)
    k2 = k1
    if not SHARED:
        k2 = load_rows(k2_ptr, at2, BLOCK_D, known, d, WIDTH, True)
    scores1 = tl.dot(q1, tl.trans(k1), input_precision=PRECISION) * scale - lse1[:, None]
    scores2 = tl.dot(q2, tl.trans(k2), input_precision=PRECISION) * scale - lse2[:, None]
    p1, p2 = tl.where(visible, tl.exp2(scores1), 0.0), tl.where(visible, tl.exp2(scores2), 0.0)
    return p1, p2, k1, k2


@triton.jit
def queries_backward(
    q1_ptr, q2_ptr, k1_ptr, k2_ptr, v_ptr, lam_ptr, do_ptr, lse_ptr, dq1_ptr, dq2_ptr, sums_ptr,
    starts_ptr, key_starts_ptr, scale, natural_scale, tokens, heads,
    q1_t, q1_h, q2_t, q2_h, k1_t, k1_h, k2_t, k2_h, v_t, v_h, lam_t, lam_h,
    GROUP: tl.constexpr, SHARED: tl.constexpr, IEEE: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: gradients of a tile of one head's queries, and D1, D2 [2, H, T] for ``keys_backward``."""
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    tile, head, row = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, first_key = tl.load(starts_ptr + row), tl.load(key_starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - first
    length = tl.load(key_starts_ptr + row + 1) - first_key
    if tile * BLOCK_M >= count:
        return
    token = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_m = token < count
    position = length - count + token
    end = tl.minimum(length, length - count + tile * BLOCK_M + BLOCK_M)
    d, w = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_W)
    at64 = (first + token).to(tl.int64)
    q1 = load_rows(q1_ptr, at64 * q1_t + head * q1_h, BLOCK_D, in_m, d, WIDTH, True)
    q2 = load_rows(q2_ptr, at64 * q2_t + head * q2_h, BLOCK_D, in_m, d, WIDTH, True)
    do = load_rows(do_ptr, (at64 * heads + head) * WIDTH_V, BLOCK_W, in_m, w, WIDTH_V, True)
    lam = tl.load(lam_ptr + at64 * lam_t + head * lam_h, mask=in_m, other=0.0).to(tl.float32)
    of_first, of_second = (
        head.to(tl.int64) * tokens + first + token,
        (heads + head).to(tl.int64) * tokens + first + token,
    )
    lse1, lse2 = tl.load(lse_ptr + of_first, mask=in_m, other=0.0), tl.load(lse_ptr + of_second, mask=in_m, other=0.0)
    group = head // GROUP
    k1_ptr += group * k1_h
    k2_ptr += group * k2_h
    v_ptr += group * v_h
    sum1, sum2 = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    dq1, dq2 = tl.zeros((BLOCK_M, BLOCK_D), tl.float32), tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for walk in tl.static_range(2):  # first the row sums, then the gradients
        for start in range(0, end, BLOCK_N):
            j = start + tl.arange(0, BLOCK_N)
            known = j < length
            visible = known[None, :] & (j[None, :] <= position[:, None]) & in_m[:, None]
            at = (first_key + j).to(tl.int64)
            p1, p2, k1, k2 = _maps(
                q1, q2, lse1, lse2, k1_ptr, k2_ptr, at * k1_t, at * k2_t, known, visible, d, scale,
                SHARED, precision, WIDTH, BLOCK_D,
            )  # fmt: skip
            v = load_rows(v_ptr, at * v_t, BLOCK_W, known, w, WIDTH_V, True)
            dp = tl.dot(do, tl.trans(v), input_precision=precision)
            if walk == 0:
                sum1 += tl.sum(p1 * dp, axis=1)
                sum2 += tl.sum(p2 * dp, axis=1)
            else:
                ds1 = (p1 * (dp - sum1[:, None])).to(k1.dtype)
                ds2 = (p2 * (dp - sum2[:, None]) * -lam[:, None]).to(k2.dtype)
                dq1 = tl.dot(ds1, k1, acc=dq1, input_precision=precision)
                dq2 = tl.dot(ds2, k2, acc=dq2, input_precision=precision)
    tl.store(sums_ptr + of_first, sum1, mask=in_m)
    tl.store(sums_ptr + of_second, sum2, mask=in_m)
    out_at = ((at64 * heads + head) * WIDTH)[:, None] + d[None, :]
    inside = in_m[:, None] & (d < WIDTH)[None, :]
    tl.store(dq1_ptr + out_at, dq1 * natural_scale, mask=inside)
    tl.store(dq2_ptr + out_at, dq2 * natural_scale, mask=inside)


@triton.jit
def keys_backward(
    q1_ptr, q2_ptr, k1_ptr, k2_ptr, v_ptr, lam_ptr, do_ptr, lse_ptr, sums_ptr, dk1_ptr, dk2_ptr, dv_ptr,
    starts_ptr, key_starts_ptr, scale, natural_scale, tokens, heads, kv_heads,
    q1_t, q1_h, q2_t, q2_h, k1_t, k1_h, k2_t, k2_h, v_t, v_h, lam_t, lam_h,
    GROUP: tl.constexpr, SHARED: tl.constexpr, IEEE: tl.constexpr, WIDTH: tl.constexpr, WIDTH_V: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: gradients of a tile of one cached head's keys and values, over all queries of its group.

    Tiles are transposed, keys by queries, so that the products need no transposed weights. With SHARED keys the
    gradients of both maps are in ``dk1``, and ``dk2`` is not written.
    """
    precision: tl.constexpr = "ieee" if IEEE else "tf32"
    tile, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, first_key = tl.load(starts_ptr + row), tl.load(key_starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - first
    length = tl.load(key_starts_ptr + row + 1) - first_key
    if tile * BLOCK_N >= length:
        return
    j = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    known = j < length
    d, w, m = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_M)
    at = (first_key + j).to(tl.int64)
    k1 = load_rows(k1_ptr, at * k1_t + head * k1_h, BLOCK_D, known, d, WIDTH, True)
    k2 = k1
    if not SHARED:
        k2 = load_rows(k2_ptr, at * k2_t + head * k2_h, BLOCK_D, known, d, WIDTH, True)
    v = load_rows(v_ptr, at * v_t + head * v_h, BLOCK_W, known, w, WIDTH_V, True)
    dk1, dk2 = tl.zeros((BLOCK_N, BLOCK_D), tl.float32), tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
    earliest = tl.maximum(0, tile * BLOCK_N - (length - count)) // BLOCK_M * BLOCK_M
    for member in range(GROUP):
        q_head = head * GROUP + member
        for start in range(earliest, count, BLOCK_M):
            token = start + m
            in_m = token < count
            at64 = (first + token).to(tl.int64)
            q1 = load_rows(q1_ptr, at64 * q1_t + q_head * q1_h, BLOCK_D, in_m, d, WIDTH, True)
            q2 = load_rows(q2_ptr, at64 * q2_t + q_head * q2_h, BLOCK_D, in_m, d, WIDTH, True)
            do = load_rows(do_ptr, (at64 * heads + q_head) * WIDTH_V, BLOCK_W, in_m, w, WIDTH_V, True)
            lam = tl.load(lam_ptr + at64 * lam_t + q_head * lam_h, mask=in_m, other=0.0).to(tl.float32)
            of_first = q_head * tokens + at64
            of_second = (heads + q_head) * tokens + at64
            lse1 = tl.load(lse_ptr + of_first, mask=in_m, other=0.0)
            lse2 = tl.load(lse_ptr + of_second, mask=in_m, other=0.0)
            sum1 = tl.load(sums_ptr + of_first, mask=in_m, other=0.0)
            sum2 = tl.load(sums_ptr + of_second, mask=in_m, other=0.0)
            visible = known[:, None] & (j[:, None] <= (length - count + token)[None, :]) & in_m[None, :]
            scores1 = tl.dot(k1, tl.trans(q1), input_precision=precision) * scale - lse1[None, :]
            scores2 = tl.dot(k2, tl.trans(q2), input_precision=precision) * scale - lse2[None, :]
            p1 = tl.where(visible, tl.exp2(scores1), 0.0)
            p2 = tl.where(visible, tl.exp2(scores2), 0.0) * lam[None, :]
            dv = tl.dot((p1 - p2).to(do.dtype), do, acc=dv, input_precision=precision)
            dp = tl.dot(v, tl.trans(do), input_precision=precision)
            ds1 = (p1 * (dp - sum1[None, :])).to(q1.dtype)
            ds2 = (p2 * (sum2[None, :] - dp)).to(q2.dtype)
            dk1 = tl.dot(ds1, q1, acc=dk1, input_precision=precision)
            if SHARED:
                dk1 = tl.dot(ds2, q2, acc=dk1, input_precision=precision)
            else:
                dk2 = tl.dot(ds2, q2, acc=dk2, input_precision=precision)
    out_at = ((at * kv_heads + head) * WIDTH)[:, None] + d[None, :]
    inside = known[:, None] & (d < WIDTH)[None, :]
    tl.store(dk1_ptr + out_at, dk1 * natural_scale, mask=inside)
    if not SHARED:
        tl.store(dk2_ptr + out_at, dk2 * natural_scale, mask=inside)
    dv_at = ((at * kv_heads + head) * WIDTH_V)[:, None] + w[None, :]
    tl.store(dv_ptr + dv_at, dv, mask=known[:, None] & (w < WIDTH_V)[None, :])
