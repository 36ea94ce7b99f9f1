"""The jitted kernels of the scan forward and of one-token steps; launched by ``triton_impl``, defined by ``reference``.

Bound by exponentials: 16 a token and channel, of which an SM computes 16 a clock; reading and writing that token takes
half the time. So states stay in registers, one channel a lane with all of its states, and the five multiplications and
additions around each exponential hide behind it. A tile of BLOCK_T tokens is one linear recurrence along its first
axis, which lies within threads: Triton's associative scan is then a plain sequence without shuffles, and what it would
compute only for unknown start states is dropped by the compiler. States are taken GROUP at a time, for registers:
a tile of all of them leaves eight warps an SM, a tile of four leaves sixteen.

Where rows and channels do not fill the GPU, rows are cut into chunks: every chunk alone from a zero state
(``scan_chunks`` with LOCAL), a pass over the chunks of each row (``join_chunks``), then every chunk from its true
start. That takes each exponential twice.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type, and it knows no starred tuples:
# ruff: noqa: ANN001, ANN201, RUF005
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
BLOCK_ROWS = tl.constexpr(128)
"""Rows whose starts are looked at together to find the row of a chunk."""


@triton.jit
def after(decay1, drive1, decay2, drive2):
    """Two steps ``S = decay S + drive``, one after the other, as one."""
    return decay1 * decay2, decay2 * drive1 + drive2


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), by the GPU's exp2."""
    return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) as max(x, 0) + 2 artanh(e / (2 + e)) with e = exp(-|x|) <= 1; small results keep their digits.

    The series of artanh at most 1/3, cut where its terms fall below half a unit in the last place of float32.
    """
    e = tl.exp2(tl.abs(x) * -LOG2_E)
    s = e / (2.0 + e)
    s2 = s * s
    p = 2.0 / 13.0 * s2 + 2.0 / 11.0
    p = p * s2 + 2.0 / 9.0
    p = p * s2 + 2.0 / 7.0
    p = p * s2 + 2.0 / 5.0
    p = p * s2 + 2.0 / 3.0
    return tl.maximum(x, 0.0) + s * (p * s2 + 2.0)


@triton.jit
def chunk_of(program, starts_ptr, rows, length, chunk, EVEN: tl.constexpr, WHOLE: tl.constexpr):
    """(row, number of the chunk in its row, first token, tokens) of a program; no tokens where there is no chunk.

    EVEN rows are ``length`` long. The chunks of packed row r begin at program starts[r] // chunk + r: rows then never
    share one, whatever their lengths, and the grid is known without reading them. With WHOLE, a chunk is a row.
    """
    if EVEN:
        per_row = tl.cdiv(length, chunk)
        row, number = program // per_row, program % per_row
        begin, end = row * length, row * length + length
    else:
        row, number = program, program * 0
        if not WHOLE:
            begun = 0
            for r0 in range(0, rows, BLOCK_ROWS):
                r = r0 + tl.arange(0, BLOCK_ROWS)
                base = tl.load(starts_ptr + r, mask=r < rows, other=0).to(tl.int32) // chunk + r
                begun += tl.sum(((r < rows) & (base <= program)).to(tl.int32), axis=0)
            row = tl.maximum(begun - 1, 0)
        begin, end = tl.load(starts_ptr + row).to(tl.int32), tl.load(starts_ptr + row + 1).to(tl.int32)
        if WHOLE:
            chunk = end - begin
        else:
            number = program - begin // chunk - row
    first = begin + number * chunk
    count = tl.where(number < 0, 0, tl.maximum(tl.minimum(chunk, end - first), 0))
    return row, number, first, count


@triton.jit
def step_sizes(delta_ptr, tile, mask, bias, SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Step sizes of a tile, and what the softplus was of; both 0 outside, where a step must change nothing."""
    raw = tl.load(delta_ptr + tile, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        raw += bias[None, :]
    if SOFTPLUS:
        return tl.where(mask, softplus(raw), 0.0), raw
    return tl.where(mask, raw, 0.0), raw


@triton.jit
def scan_chunks(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, z_ptr, y_ptr,
    starts_ptr, slots_ptr, has_state_ptr, start_ptr, states_ptr, chunks_ptr, totals_ptr,
    rows, length, chunk, channels, u_t, delta_t, B_t, C_t, z_t, y_t, slot_s, slot_c, slot_n,
    EVEN: tl.constexpr, WHOLE: tl.constexpr, LOCAL: tl.constexpr, HAS_START: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    STATES: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: one chunk of one row, for a block of channels.

    WHOLE rows start from their slot and leave their state there. Chunks start from ``chunks_ptr`` [chunk, C, N]; with
    LOCAL from zero, and only leave there the state, and in ``totals_ptr`` [chunk, C] the sum of the step sizes.
    """
    program = tl.program_id(0)
    row, _number, first, count = chunk_of(program, starts_ptr, rows, length, chunk, EVEN, WHOLE)
    slot = row.to(tl.int64)
    if not EVEN:
        slot = tl.load(slots_ptr + row).to(tl.int64)
    if (count <= 0) | (slot < 0):
        return
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    n = tl.arange(0, GROUP)
    t = tl.arange(0, BLOCK_T)
    state = ()
    for g in tl.static_range(GROUPS):
        of_n = (g * GROUP + n)[:, None]
        in_nc = (of_n < STATES) & in_c[None, :]
        entry = program.to(tl.int64) * channels * STATES + c[None, :] * STATES + of_n
        if LOCAL:
            state = state + (tl.zeros((GROUP, BLOCK_C), tl.float32),)
        elif WHOLE:
            fresh = tl.zeros((GROUP, BLOCK_C), tl.float32)
            at_start = c[None, :] * STATES + of_n
            if EVEN:
                if HAS_START:
                    at_start = slot * channels * STATES + at_start
                    fresh = tl.load(start_ptr + at_start, mask=in_nc, other=0.0).to(tl.float32)
                state = state + (fresh,)
            else:
                # Loaded only where it counts: an unused slot may hold anything, NaN included.
                known = in_nc & (tl.load(has_state_ptr + row).to(tl.int32) != 0)
                fresh = tl.load(start_ptr + at_start, mask=in_nc, other=0.0).to(tl.float32)
                kept = states_ptr + slot * slot_s + c[None, :] * slot_c + of_n * slot_n
                state = state + (tl.where(known, tl.load(kept, mask=known, other=0.0).to(tl.float32), fresh),)
        else:
            state = state + (tl.load(chunks_ptr + entry, mask=in_nc, other=0.0),)
    A = ()
    for g in tl.static_range(GROUPS):
        of_n = (g * GROUP + n)[:, None]
        at_A = A_ptr + c[None, :] * STATES + of_n
        A = A + (tl.load(at_A, mask=(of_n < STATES) & in_c[None, :], other=0.0) * LOG2_E,)
    bias = tl.zeros((BLOCK_C,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    D = tl.zeros((BLOCK_C,), tl.float32)
    if HAS_D:
        D = tl.load(D_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_C,), tl.float32)
    u_ptr += first.to(tl.int64) * u_t
    delta_ptr += first.to(tl.int64) * delta_t
    B_ptr += first.to(tl.int64) * B_t
    C_ptr += first.to(tl.int64) * C_t
    z_ptr += first.to(tl.int64) * z_t
    y_ptr += first.to(tl.int64) * y_t
    for done in range(0, count, BLOCK_T):
        in_t = (done + t < count)[:, None]
        mask = in_t & in_c[None, :]
        u = tl.load(u_ptr + t[:, None] * u_t + c[None, :], mask=mask, other=0.0).to(tl.float32)
        delta, _raw = step_sizes(delta_ptr, t[:, None] * delta_t + c[None, :], mask, bias, SOFTPLUS, HAS_BIAS)
        driven = delta * u
        y = u * D[None, :]
        new = ()
        for g in tl.static_range(GROUPS):
            of_tn = (g * GROUP + n)[None, :]
            in_tn = in_t & (of_tn < STATES)
            B = tl.load(B_ptr + t[:, None] * B_t + of_tn, mask=in_tn, other=0.0)
            decay = tl.exp2(delta[:, None, :] * A[g][None, :, :])
            drive = driven[:, None, :] * B[:, :, None]
            drive = tl.where(t[:, None, None] == 0, drive + decay * state[g][None, :, :], drive)
            S = tl.associative_scan((decay, drive), 0, after)[1]
            new = new + (tl.sum(tl.where(t[:, None, None] == BLOCK_T - 1, S, 0.0), axis=0),)
            if not LOCAL:
                C = tl.load(C_ptr + t[:, None] * C_t + of_tn, mask=in_tn, other=0.0)
                y += tl.sum(S * C[:, :, None], axis=1)
        state = new
        if LOCAL:
            total += tl.sum(delta, axis=0)
        else:
            if HAS_Z:
                z = tl.load(z_ptr + t[:, None] * z_t + c[None, :], mask=mask, other=0.0).to(tl.float32)
                y = y * z * sigmoid(z)
            tl.store(y_ptr + t[:, None] * y_t + c[None, :], y, mask=mask)
        u_ptr += BLOCK_T * u_t
        delta_ptr += BLOCK_T * delta_t
        B_ptr += BLOCK_T * B_t
        C_ptr += BLOCK_T * C_t
        z_ptr += BLOCK_T * z_t
        y_ptr += BLOCK_T * y_t
    if LOCAL:
        tl.store(totals_ptr + program.to(tl.int64) * channels + c, total, mask=in_c)
    if LOCAL or WHOLE:
        tl.debug_barrier()  # a slot may be read and written by different threads
        for g in tl.static_range(GROUPS):
            of_n = (g * GROUP + n)[:, None]
            in_nc = (of_n < STATES) & in_c[None, :]
            if LOCAL:
                entry = program.to(tl.int64) * channels * STATES + c[None, :] * STATES + of_n
                tl.store(chunks_ptr + entry, state[g], mask=in_nc)
            else:
                kept = states_ptr + slot * slot_s + c[None, :] * slot_c + of_n * slot_n
                tl.store(kept, state[g], mask=in_nc)


@triton.jit
def join_chunks(
    A_ptr, starts_ptr, slots_ptr, has_state_ptr, start_ptr, states_ptr, local_ptr, totals_ptr, begun_ptr,
    length, chunk, channels, slot_s, slot_c, slot_n,
    EVEN: tl.constexpr, HAS_START: tl.constexpr, REVERSE: tl.constexpr, STATES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program: the chunks of one row in order, for a block of entries (channel, state).

    Writes the state that each chunk starts from to ``begun_ptr`` and the row's last to its slot. With REVERSE from the
    last chunk to the first, as gradients go: then ``local_ptr`` holds gradients of the states before chunks.
    """
    row = tl.program_id(0)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    entries = channels * STATES
    in_e = e < entries
    c, of_n = e // STATES, e % STATES
    slot = row.to(tl.int64)
    if EVEN:
        per_row = tl.cdiv(length, chunk)
        count, base = per_row, row * per_row
    else:
        begin, end = tl.load(starts_ptr + row).to(tl.int32), tl.load(starts_ptr + row + 1).to(tl.int32)
        count, base = tl.cdiv(end - begin, chunk), begin // chunk + row
        slot = tl.load(slots_ptr + row).to(tl.int64)
    if (count <= 0) | (slot < 0):
        return
    A = tl.load(A_ptr + e, mask=in_e, other=0.0) * LOG2_E
    kept = states_ptr + slot * slot_s + c * slot_c + of_n * slot_n
    state = tl.zeros((BLOCK_E,), tl.float32)
    if EVEN:
        if HAS_START:
            state = tl.load(start_ptr + slot * entries + e, mask=in_e, other=0.0).to(tl.float32)
    else:
        known = in_e & (tl.load(has_state_ptr + row).to(tl.int32) != 0)
        fresh = tl.load(start_ptr + e, mask=in_e, other=0.0).to(tl.float32)
        state = tl.where(known, tl.load(kept, mask=known, other=0.0).to(tl.float32), fresh)
    k = tl.arange(0, BLOCK_K)
    ahead = -1 if REVERSE else 1
    first = (base + (count - 1 if REVERSE else 0)).to(tl.int64)
    tl.store(begun_ptr + first * entries + e, state, mask=in_e)
    for done in range(0, count, BLOCK_K):
        at = first + ahead * (done + k)
        mask = (done + k < count)[:, None] & in_e[None, :]
        drive = tl.load(local_ptr + at[:, None] * entries + e[None, :], mask=mask, other=0.0)
        total = tl.load(totals_ptr + at[:, None] * channels + c[None, :], mask=mask, other=0.0)
        decay = tl.exp2(total * A[None, :])
        drive = tl.where(k[:, None] == 0, drive + decay * state[None, :], drive)
        S = tl.associative_scan((decay, drive), 0, after)[1]
        state = tl.sum(tl.where(k[:, None] == BLOCK_K - 1, S, 0.0), axis=0)
        following = (done + k + 1 < count)[:, None] & in_e[None, :]
        tl.store(begun_ptr + (at + ahead)[:, None] * entries + e[None, :], S, mask=following)
    tl.store(kept, state, mask=in_e)


@triton.jit
def update_states(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, z_ptr, y_ptr, slots_ptr, states_ptr,
    rows, channels, u_t, delta_t, B_t, C_t, z_t, y_t, slot_s, slot_c, slot_n,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    STATES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: one token of each of BLOCK_R rows, for a block of channels. Bound by the states, read once."""
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    slot = tl.load(slots_ptr + row, mask=row < rows, other=-1).to(tl.int64)
    in_r, in_c, in_n = slot >= 0, c < channels, n < STATES
    in_rc, in_rn, in_cn = in_r[:, None] & in_c[None, :], in_r[:, None] & in_n[None, :], in_c[:, None] & in_n[None, :]
    in_rcn = in_r[:, None, None] & in_cn[None, :, :]
    of_cn = c[:, None] * slot_c + n[None, :] * slot_n
    kept = states_ptr + slot[:, None, None] * slot_s + of_cn[None, :, :]
    state = tl.load(kept, mask=in_rcn, other=0.0).to(tl.float32)
    A = tl.load(A_ptr + c[:, None] * STATES + n[None, :], mask=in_cn, other=0.0) * LOG2_E
    bias = tl.zeros((BLOCK_C,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    token = row.to(tl.int64)[:, None]
    u = tl.load(u_ptr + token * u_t + c[None, :], mask=in_rc, other=0.0).to(tl.float32)
    delta, _raw = step_sizes(delta_ptr, token * delta_t + c[None, :], in_rc, bias, SOFTPLUS, HAS_BIAS)
    B = tl.load(B_ptr + token * B_t + n[None, :], mask=in_rn, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + token * C_t + n[None, :], mask=in_rn, other=0.0).to(tl.float32)
    decay = tl.exp2(delta[:, :, None] * A[None, :, :])
    state = decay * state + (delta * u)[:, :, None] * B[:, None, :]
    tl.store(kept, state, mask=in_rcn)
    y = tl.sum(state * C[:, None, :], axis=2)
    if HAS_D:
        y += u * tl.load(D_ptr + c, mask=in_c, other=0.0).to(tl.float32)[None, :]
    if HAS_Z:
        z = tl.load(z_ptr + token * z_t + c[None, :], mask=in_rc, other=0.0).to(tl.float32)
        y = y * z * sigmoid(z)
    tl.store(y_ptr + token * y_t + c[None, :], y, mask=in_rc)
