"""The jitted kernels of the scan's gradients; launched by ``triton_impl``.

With G_t the gradient of the state S_t, summed over all that follows it, and H_t = exp(delta_t A) G_t what it hands to
S_{t-1}, one linear recurrence runs backwards: G_t = C_t dy_t + H_{t+1}. All else is local to a token:

    dB_t = sum_c G_t delta_t u_t        dC_t = sum_c dy_t S_t        dA = sum_t delta_t G_t (S_t - delta_t u_t B_t)

Rows are cut into chunks as in the forward pass, whose start states are the only ones that it keeps. Backwards too:
every chunk alone from zero (``local_gradients``), a pass over the chunks of a row (``join_chunks``), then each chunk
with the true state in front of it and the true gradient behind it. Sums over channels (dB, dC) and over tokens (dA, dD,
of the bias) are written by program and added up outside in a fixed order: results are the same every time.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type, and it knows no starred tuples:
# ruff: noqa: ANN001, ANN201, ANN202, RUF005
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false

import triton
import triton.language as tl

from nlrl_kernels.mamba_scan.kernels import LOG2_E, after, chunk_of, sigmoid, softplus, step_sizes


@triton.jit
def _output_gradient(gated, z_ptr, at, mask, HAS_Z: tl.constexpr):
    """Gradient of the ungated output, and the gate, where ``gated`` is that of the gated one."""
    if HAS_Z:
        z = tl.load(z_ptr + at, mask=mask, other=0.0).to(tl.float32)
        return gated * z * sigmoid(z), z
    return gated, gated


@triton.jit
def local_gradients(
    delta_ptr, A_ptr, C_ptr, bias_ptr, z_ptr, dy_ptr, local_ptr,
    length, chunk, channels, delta_t, C_t, z_t, dy_t,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_Z: tl.constexpr,
    STATES: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: one chunk, for a block of channels; writes the gradient of its start state that it causes itself."""
    program = tl.program_id(0)
    _row, _number, first, count = chunk_of(program, delta_ptr, 0, length, chunk, True, False)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_c = c < channels
    n = tl.arange(0, GROUP)
    t = tl.arange(0, BLOCK_T)
    bias = tl.zeros((BLOCK_C,), tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    H, A = (), ()
    for g in tl.static_range(GROUPS):
        of_n = (g * GROUP + n)[:, None]
        at_A = A_ptr + c[None, :] * STATES + of_n
        A = A + (tl.load(at_A, mask=(of_n < STATES) & in_c[None, :], other=0.0) * LOG2_E,)
        H = H + (tl.zeros((GROUP, BLOCK_C), tl.float32),)
    delta_ptr += (first + count - 1).to(tl.int64) * delta_t
    C_ptr += (first + count - 1).to(tl.int64) * C_t
    z_ptr += (first + count - 1).to(tl.int64) * z_t
    dy_ptr += (first + count - 1).to(tl.int64) * dy_t
    for done in range(0, count, BLOCK_T):  # tiles lie backwards: a scan in reverse would move its input across lanes
        in_t = (done + t < count)[:, None]
        mask = in_t & in_c[None, :]
        delta, _raw = step_sizes(delta_ptr, c[None, :] - t[:, None] * delta_t, mask, bias, SOFTPLUS, HAS_BIAS)
        gated = tl.load(dy_ptr + c[None, :] - t[:, None] * dy_t, mask=mask, other=0.0).to(tl.float32)
        dy, _z = _output_gradient(gated, z_ptr, c[None, :] - t[:, None] * z_t, mask, HAS_Z)
        new = ()
        for g in tl.static_range(GROUPS):
            of_tn = (g * GROUP + n)[None, :]
            C = tl.load(C_ptr + of_tn - t[:, None] * C_t, mask=in_t & (of_tn < STATES), other=0.0)
            decay = tl.exp2(delta[:, None, :] * A[g][None, :, :])
            caused = decay * (dy[:, None, :] * C[:, :, None])
            caused = tl.where(t[:, None, None] == 0, caused + decay * H[g][None, :, :], caused)
            handed = tl.associative_scan((decay, caused), 0, after)[1]
            new = new + (tl.sum(tl.where(t[:, None, None] == BLOCK_T - 1, handed, 0.0), axis=0),)
        H = new
        delta_ptr -= BLOCK_T * delta_t
        C_ptr -= BLOCK_T * C_t
        z_ptr -= BLOCK_T * z_t
        dy_ptr -= BLOCK_T * dy_t
    for g in tl.static_range(GROUPS):
        of_n = (g * GROUP + n)[:, None]
        entry = program.to(tl.int64) * channels * STATES + c[None, :] * STATES + of_n
        tl.store(local_ptr + entry, H[g], mask=(of_n < STATES) & in_c[None, :])


@triton.jit
def _step_size(delta_ptr, mask, bias, SOFTPLUS: tl.constexpr):
    """``step_sizes`` of one token."""
    raw = tl.load(delta_ptr, mask=mask, other=0.0).to(tl.float32) + bias
    if SOFTPLUS:
        return tl.where(mask, softplus(raw), 0.0), raw
    return tl.where(mask, raw, 0.0), raw


@triton.jit
def _note_states(
    u_ptr, delta_ptr, B_ptr, A_at, notes_at, c, bias, first, tiles, channels, u_t, delta_t, B_t,
    SOFTPLUS: tl.constexpr, STATES: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, STEPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """From the first note, of the state in front of a chunk, the notes in front of each further STEPS of its tokens."""
    in_c = c < channels
    n = tl.arange(0, GROUP)
    size: tl.constexpr = GROUP * BLOCK_C
    for tile in range(tiles - 1):  # all of its tokens are there
        at = (first + tile * STEPS).to(tl.int64)
        delta, driven = (), ()
        for i in tl.static_range(STEPS):
            u = tl.load(u_ptr + (at + i) * u_t + c, mask=in_c, other=0.0).to(tl.float32)
            step, _raw = _step_size(delta_ptr + (at + i) * delta_t + c, in_c, bias, SOFTPLUS)
            delta, driven = delta + (step,), driven + (step * u,)
        for g in range(GROUPS):
            state = tl.load(notes_at + (tile * GROUPS + g) * size)
            A = tl.load(A_at + g * size) * LOG2_E
            for i in tl.static_range(STEPS):
                of_n = g * GROUP + n
                B = tl.load(B_ptr + (at + i) * B_t + of_n, mask=of_n < STATES, other=0.0)
                state = tl.exp2(delta[i][None, :] * A) * state + driven[i][None, :] * B[:, None]
            tl.store(notes_at + ((tile + 1) * GROUPS + g) * size, state)
        tl.debug_barrier()


@triton.jit
def gradients(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, bias_ptr, z_ptr, dy_ptr, begun_ptr, behind_ptr, scratch_ptr,
    du_ptr, ddelta_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dbias_ptr, dz_ptr,
    items, tokens, length, chunk, channels, u_t, delta_t, B_t, C_t, z_t, dy_t,
    SOFTPLUS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr,
    STATES: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, STEPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: every so many-th of the (chunk, block of channels), with scratch memory for one.

    Forwards it notes the state in front of every STEPS tokens of its chunk; backwards it takes them from last to first,
    the states between in registers, GROUP states at a time. What belongs to a group of states waits in scratch memory:
    A, the gradient H handed down, dA so far, and the notes.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    n = tl.arange(0, GROUP)
    lane = n[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    size: tl.constexpr = GROUP * BLOCK_C
    A_at = scratch_ptr + tl.program_id(0).to(tl.int64) * (3 + tl.cdiv(chunk, STEPS)) * GROUPS * size + lane
    H_at, dA_at, notes_at = A_at + GROUPS * size, A_at + 2 * GROUPS * size, A_at + 3 * GROUPS * size
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        block, at_chunk = item % blocks, (item // blocks).to(tl.int64)
        _row, _number, first, count = chunk_of(item // blocks, delta_ptr, 0, length, chunk, True, False)
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)
        in_c = c < channels
        D, bias = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
        if HAS_D:
            D = tl.load(D_ptr + c, mask=in_c, other=0.0).to(tl.float32)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)
        for g in range(GROUPS):
            of_n = (g * GROUP + n)[:, None]
            in_nc = (of_n < STATES) & in_c[None, :]
            of_A = c[None, :] * STATES + of_n
            of_chunk = at_chunk * channels * STATES + of_A
            tl.store(A_at + g * size, tl.load(A_ptr + of_A, mask=in_nc, other=0.0))
            tl.store(H_at + g * size, tl.load(behind_ptr + of_chunk, mask=in_nc, other=0.0))
            tl.store(dA_at + g * size, tl.zeros((GROUP, BLOCK_C), tl.float32))
            tl.store(notes_at + g * size, tl.load(begun_ptr + of_chunk, mask=in_nc, other=0.0))
        tl.debug_barrier()  # scratch memory may be written and read by different threads
        tiles = tl.cdiv(count, STEPS)
        _note_states(
            u_ptr, delta_ptr, B_ptr, A_at, notes_at, c, bias, first, tiles, channels, u_t, delta_t, B_t,
            SOFTPLUS, STATES, GROUP, GROUPS, STEPS, BLOCK_C,
        )  # fmt: skip
        dD, dbias = tl.zeros((BLOCK_C,), tl.float32), tl.zeros((BLOCK_C,), tl.float32)
        for back in range(tiles):
            begin = (tiles - 1 - back) * STEPS
            at = (first + begin).to(tl.int64)
            u, delta, dy, y, ddelta, ddriven = (), (), (), (), (), ()
            for i in tl.static_range(STEPS):
                mask = (begin + i < count) & in_c
                u = u + (tl.load(u_ptr + (at + i) * u_t + c, mask=mask, other=0.0).to(tl.float32),)
                step, _raw = _step_size(delta_ptr + (at + i) * delta_t + c, mask, bias, SOFTPLUS)
                gated = tl.load(dy_ptr + (at + i) * dy_t + c, mask=mask, other=0.0).to(tl.float32)
                inner, _z = _output_gradient(gated, z_ptr, (at + i) * z_t + c, mask, HAS_Z)
                delta, dy = delta + (step,), dy + (inner,)
                none = tl.zeros((BLOCK_C,), tl.float32)
                y, ddelta, ddriven = y + (none,), ddelta + (none,), ddriven + (none,)
            for g in range(GROUPS):
                of_n = g * GROUP + n
                state = tl.load(notes_at + ((tiles - 1 - back) * GROUPS + g) * size)
                A, H, dA = tl.load(A_at + g * size), tl.load(H_at + g * size), tl.load(dA_at + g * size)
                S, left, decay = (), (), ()
                for i in tl.static_range(STEPS):
                    in_n = (begin + i < count) & (of_n < STATES)
                    B = tl.load(B_ptr + (at + i) * B_t + of_n, mask=in_n, other=0.0)
                    part = tl.exp2(delta[i][None, :] * (A * LOG2_E))
                    decay, left = decay + (part,), left + (part * state,)
                    state = part * state + (delta[i] * u[i])[None, :] * B[:, None]
                    S = S + (state,)
                more_y, more_ddelta, more_ddriven = (), (), ()
                for j in tl.static_range(STEPS):  # token STEPS - 1 - j: lists grow at their front
                    in_n = (begin + STEPS - 1 - j < count) & (of_n < STATES)
                    B = tl.load(B_ptr + (at + STEPS - 1 - j) * B_t + of_n, mask=in_n, other=0.0)[:, None]
                    C = tl.load(C_ptr + (at + STEPS - 1 - j) * C_t + of_n, mask=in_n, other=0.0)[:, None]
                    G = H + dy[STEPS - 1 - j][None, :] * C
                    H = decay[STEPS - 1 - j] * G
                    dexponent = G * left[STEPS - 1 - j]
                    dA += dexponent * delta[STEPS - 1 - j][None, :]
                    more_ddelta = (ddelta[STEPS - 1 - j] + tl.sum(dexponent * A, axis=0),) + more_ddelta
                    more_ddriven = (ddriven[STEPS - 1 - j] + tl.sum(G * B, axis=0),) + more_ddriven
                    if HAS_Z:
                        more_y = (y[STEPS - 1 - j] + tl.sum(S[STEPS - 1 - j] * C, axis=0),) + more_y
                    else:
                        more_y = (y[STEPS - 1 - j],) + more_y
                    driven = (delta[STEPS - 1 - j] * u[STEPS - 1 - j])[None, :]
                    partial = (block.to(tl.int64) * tokens + at + STEPS - 1 - j) * STATES + of_n
                    tl.store(dB_ptr + partial, tl.sum(G * driven, axis=1), mask=in_n)
                    tl.store(dC_ptr + partial, tl.sum(S[STEPS - 1 - j] * dy[STEPS - 1 - j][None, :], axis=1), mask=in_n)
                y, ddelta, ddriven = more_y, more_ddelta, more_ddriven
                tl.store(H_at + g * size, H)
                tl.store(dA_at + g * size, dA)
            tl.debug_barrier()
            for i in tl.static_range(STEPS):
                mask = (begin + i < count) & in_c
                own = (at + i) * channels + c
                step, raw = _step_size(delta_ptr + (at + i) * delta_t + c, mask, bias, SOFTPLUS)
                dstep = ddelta[i] + ddriven[i] * u[i]
                if SOFTPLUS:
                    dstep *= sigmoid(raw)
                tl.store(du_ptr + own, ddriven[i] * step + dy[i] * D, mask=mask)
                tl.store(ddelta_ptr + own, dstep, mask=mask)
                if HAS_Z:
                    gated = tl.load(dy_ptr + (at + i) * dy_t + c, mask=mask, other=0.0).to(tl.float32)
                    z = tl.load(z_ptr + (at + i) * z_t + c, mask=mask, other=0.0).to(tl.float32)
                    part = sigmoid(z)
                    tl.store(dz_ptr + own, gated * (y[i] + u[i] * D) * part * (1.0 + z * (1.0 - part)), mask=mask)
                dD += dy[i] * u[i]
                dbias += tl.where(mask, dstep, 0.0)
        for g in range(GROUPS):
            of_n = (g * GROUP + n)[:, None]
            of_chunk = at_chunk * channels * STATES + c[None, :] * STATES + of_n
            tl.store(dA_ptr + of_chunk, tl.load(dA_at + g * size), mask=(of_n < STATES) & in_c[None, :])
        if HAS_D:
            tl.store(dD_ptr + at_chunk * channels + c, dD, mask=in_c)
        if HAS_BIAS:
            tl.store(dbias_ptr + at_chunk * channels + c, dbias, mask=in_c)
        tl.debug_barrier()
