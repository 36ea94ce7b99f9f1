"""Selective scan in Triton, forward and backward; equations and axes in ``reference.py``.

One program walks one sequence for one block of channels with the state [channels, states] in registers: the scan is
sequential in time but batch x channel blocks fill a GPU. Every load of a step is issued one step ahead, since its
address does not depend on the recurrence.

Backward: the forward pass keeps the state at the start of every chunk. The backward pass takes chunks from the last to
the first, recomputes the states inside a chunk into scratch memory, and then walks it in reverse. Gradients that are
sums over channels (of B and C) are written per channel block and summed outside, so results are deterministic.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

from typing import Any

import torch
import triton
import triton.language as tl

_CHUNK = 16
"""Steps between kept states: memory for states is 1/16 of the states, plus one chunk of scratch per program."""


def _blocks(channels: int, states: int) -> tuple[int, int]:
    """Channels per program and padded states: about 512 state entries, 16 per thread of one warp."""
    padded = int(triton.next_power_of_2(states))
    return min(int(triton.next_power_of_2(channels)), max(1, 512 // padded)), padded


@triton.jit
def _step(u, delta, A, B):
    """(decay, drive) of one step: S = decay * S + drive."""
    return tl.exp(delta[:, None] * A), (delta * u)[:, None] * B[None, :]


@triton.jit
def _scan_forward(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, start_ptr, y_ptr, kept_ptr, final_ptr,
    T, channels, states, chunks,
    HAS_Z: tl.constexpr, HAS_START: tl.constexpr, KEEP: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    in_c, in_n = c < channels, n < states
    in_cn = in_c[:, None] & in_n[None, :]
    cn = c[:, None] * states + n[None, :]
    A = tl.load(A_ptr + cn, mask=in_cn, other=0.0)
    D = tl.load(D_ptr + c, mask=in_c, other=0.0)
    state = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    if HAS_START:
        state = tl.load(start_ptr + batch * channels * states + cn, mask=in_cn, other=0.0)
    tc = batch * T * channels + c
    tn = batch * T * states + n
    u = tl.load(u_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
    delta = tl.load(delta_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
    B = tl.load(B_ptr + tn, mask=in_n, other=0.0).to(tl.float32)
    C = tl.load(C_ptr + tn, mask=in_n, other=0.0).to(tl.float32)
    for chunk in range(chunks):
        if KEEP:
            tl.store(kept_ptr + (batch * chunks + chunk) * channels * states + cn, state, mask=in_cn)
        for t in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, T)):
            ahead = tl.minimum(t + 1, T - 1) - t  # the last step loads itself again
            u_next = tl.load(u_ptr + tc + ahead * channels, mask=in_c, other=0.0).to(tl.float32)
            delta_next = tl.load(delta_ptr + tc + ahead * channels, mask=in_c, other=0.0).to(tl.float32)
            B_next = tl.load(B_ptr + tn + ahead * states, mask=in_n, other=0.0).to(tl.float32)
            C_next = tl.load(C_ptr + tn + ahead * states, mask=in_n, other=0.0).to(tl.float32)
            decay, drive = _step(u, delta, A, B)
            state = decay * state + drive
            y = tl.sum(state * C[None, :], axis=1) + D * u
            if HAS_Z:
                z = tl.load(z_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
                y = y * z * tl.sigmoid(z)
            tl.store(y_ptr + tc, y, mask=in_c)
            tc += channels
            tn += states
            u, delta, B, C = u_next, delta_next, B_next, C_next
    tl.store(final_ptr + batch * channels * states + cn, state, mask=in_cn)


@triton.jit
def _scan_backward(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, kept_ptr, scratch_ptr, dy_ptr, dfinal_ptr,
    du_ptr, ddelta_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dz_ptr, dstart_ptr,
    T, channels, states, chunks, batches,
    HAS_Z: tl.constexpr, CHUNK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    batch, block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    in_c, in_n = c < channels, n < states
    in_cn = in_c[:, None] & in_n[None, :]
    cn = c[:, None] * states + n[None, :]
    of_batch = batch * channels * states + cn
    A = tl.load(A_ptr + cn, mask=in_cn, other=0.0)
    D = tl.load(D_ptr + c, mask=in_c, other=0.0)
    scratch = scratch_ptr + (block * batches + batch) * CHUNK * BLOCK_C * BLOCK_N
    scratch += tl.arange(0, BLOCK_C)[:, None] * BLOCK_N + n[None, :]
    dS = tl.load(dfinal_ptr + of_batch, mask=in_cn, other=0.0)
    dA = tl.zeros((BLOCK_C, BLOCK_N), tl.float32)
    dD = tl.zeros((BLOCK_C,), tl.float32)
    for back in range(chunks):
        chunk = chunks - 1 - back
        first = chunk * CHUNK
        steps = tl.minimum(CHUNK, T - first)
        at = (batch * chunks + chunk) * channels * states + cn
        state = tl.load(kept_ptr + at, mask=in_cn, other=0.0)
        for i in range(steps):  # scratch[i] is the state before step i
            tc = (batch * T + first + i) * channels + c
            u = tl.load(u_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
            delta = tl.load(delta_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + (batch * T + first + i) * states + n, mask=in_n, other=0.0).to(tl.float32)
            tl.store(scratch + i * BLOCK_C * BLOCK_N, state)
            decay, drive = _step(u, delta, A, B)
            state = decay * state + drive
        tl.debug_barrier()  # the scratch written above is read below, perhaps by other threads
        for j in range(steps):
            i = steps - 1 - j
            tc = (batch * T + first + i) * channels + c
            tn = (batch * T + first + i) * states + n
            before = tl.load(scratch + i * BLOCK_C * BLOCK_N)
            u = tl.load(u_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
            delta = tl.load(delta_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
            B = tl.load(B_ptr + tn, mask=in_n, other=0.0).to(tl.float32)
            C = tl.load(C_ptr + tn, mask=in_n, other=0.0).to(tl.float32)
            dy = tl.load(dy_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
            decay, drive = _step(u, delta, A, B)
            state = decay * before + drive
            if HAS_Z:
                z = tl.load(z_ptr + tc, mask=in_c, other=0.0).to(tl.float32)
                sigmoid = tl.sigmoid(z)
                y = tl.sum(state * C[None, :], axis=1) + D * u
                tl.store(dz_ptr + tc, dy * y * sigmoid * (1 + z * (1 - sigmoid)), mask=in_c)
                dy = dy * z * sigmoid
            dC = tl.sum(dy[:, None] * state, axis=0)
            dS += dy[:, None] * C[None, :]
            dB = tl.sum(dS * (delta * u)[:, None], axis=0)
            ddrive = tl.sum(dS * B[None, :], axis=1)
            dexponent = dS * before * decay  # gradient of the exponent delta * A
            dA += dexponent * delta[:, None]
            dD += dy * u
            tl.store(du_ptr + tc, dy * D + ddrive * delta, mask=in_c)
            tl.store(ddelta_ptr + tc, ddrive * u + tl.sum(dexponent * A, axis=1), mask=in_c)
            partial = block * batches * T * states + tn
            tl.store(dB_ptr + partial, dB, mask=in_n)
            tl.store(dC_ptr + partial, dC, mask=in_n)
            dS = dS * decay
        tl.debug_barrier()
    tl.store(dstart_ptr + of_batch, dS, mask=in_cn)
    tl.store(dA_ptr + of_batch, dA, mask=in_cn)
    tl.store(dD_ptr + batch * channels + c, dD, mask=in_c)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor,
        z: torch.Tensor | None,
        start: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        u, delta, B, C = (x.contiguous() for x in (u, delta, B, C))
        z = None if z is None else z.contiguous()
        A32, D32 = A.float().contiguous(), D.float().contiguous()
        start32 = None if start is None else start.float().contiguous()
        batch, T, channels = u.shape
        states = A.shape[1]
        block_c, block_n = _blocks(channels, states)
        chunks = triton.cdiv(T, _CHUNK)
        keep = any(ctx.needs_input_grad)
        y = torch.empty_like(u)
        final = torch.empty(batch, channels, states, device=u.device)
        kept = torch.empty((batch, chunks, channels, states) if keep else 0, device=u.device)
        _scan_forward[(batch, triton.cdiv(channels, block_c))](
            u, delta, A32, B, C, D32, u if z is None else z, final if start32 is None else start32, y, kept, final,
            T, channels, states, chunks,
            HAS_Z=z is not None, HAS_START=start is not None, KEEP=keep,
            CHUNK=_CHUNK, BLOCK_C=block_c, BLOCK_N=block_n, num_warps=1,
        )  # fmt: skip
        ctx.save_for_backward(u, delta, A32, B, C, D32, z, kept)
        ctx.dtypes = A.dtype, D.dtype, None if start is None else start.dtype
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor, dfinal: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        u, delta, A, B, C, D, z, kept = ctx.saved_tensors
        batch, T, channels = u.shape
        states = A.shape[1]
        block_c, block_n = _blocks(channels, states)
        blocks = triton.cdiv(channels, block_c)
        new = {"device": u.device, "dtype": torch.float32}
        scratch = torch.empty(blocks, batch, _CHUNK, block_c, block_n, **new)
        du, ddelta = torch.empty_like(u), torch.empty_like(delta)
        dz = None if z is None else torch.empty_like(z)
        dA, dD = torch.empty(batch, channels, states, **new), torch.empty(batch, channels, **new)
        dB, dC = torch.empty(blocks, batch, T, states, **new), torch.empty(blocks, batch, T, states, **new)
        dstart = torch.empty(batch, channels, states, **new)
        _scan_backward[(batch, blocks)](
            u, delta, A, B, C, D, u if z is None else z, kept, scratch, dy.contiguous(), dfinal.contiguous(),
            du, ddelta, dA, dB, dC, dD, du if dz is None else dz, dstart,
            T, channels, states, kept.shape[1], batch,
            HAS_Z=z is not None, CHUNK=_CHUNK, BLOCK_C=block_c, BLOCK_N=block_n, num_warps=1,
        )  # fmt: skip
        A_dtype, D_dtype, start_dtype = ctx.dtypes
        return (
            du,
            ddelta,
            dA.sum(0).to(A_dtype),
            dB.sum(0).to(B.dtype),
            dC.sum(0).to(C.dtype),
            dD.sum(0).to(D_dtype),
            dz,
            None if start_dtype is None else dstart.to(start_dtype),
        )


def selective_scan(
    u_BTC: torch.Tensor,
    delta_BTC: torch.Tensor,
    A_CN: torch.Tensor,
    B_BTN: torch.Tensor,
    C_BTN: torch.Tensor,
    D_C: torch.Tensor,
    z_BTC: torch.Tensor | None = None,
    start_BCN: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``nlrl_kernels.selective_scan``."""
    return _SelectiveScan.apply(u_BTC, delta_BTC, A_CN, B_BTN, C_BTN, D_C, z_BTC, start_BCN)  # type: ignore[return-value]


@triton.jit
def _scan_rows(
    u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, out_ptr, starts_ptr, slots_ptr, has_state_ptr,
    start_ptr, states_ptr,
    channels, states, u_t, delta_t, B_t, C_t, z_t, out_t, slot_s, slot_c, slot_n,
    ONE_TOKEN: tl.constexpr, HAS_Z: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if ONE_TOKEN:
        first, last = row, row + 1
    else:
        first, last = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    if (slot < 0) | (first >= last):
        return
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tl.arange(0, BLOCK_N)
    in_c, in_n = c < channels, n < states
    in_cn = in_c[:, None] & in_n[None, :]
    cn = c[:, None] * states + n[None, :]
    A = tl.load(A_ptr + cn, mask=in_cn, other=0.0)
    D = tl.load(D_ptr + c, mask=in_c, other=0.0)
    state_ptrs = states_ptr + slot * slot_s + c[:, None] * slot_c + n[None, :] * slot_n
    if ONE_TOKEN:
        state = tl.load(state_ptrs, mask=in_cn, other=0.0).to(tl.float32)
    else:
        known = tl.load(has_state_ptr + row).to(tl.int32) + tl.zeros((BLOCK_C, BLOCK_N), tl.int32) != 0
        fresh = tl.load(start_ptr + cn, mask=in_cn, other=0.0).to(tl.float32)
        # Loaded only where it counts: an unused slot may hold anything, NaN included.
        state = tl.where(known, tl.load(state_ptrs, mask=in_cn & known, other=0.0).to(tl.float32), fresh)
    u_ptr += first.to(tl.int64) * u_t + c
    delta_ptr += first.to(tl.int64) * delta_t + c
    B_ptr += first.to(tl.int64) * B_t + n
    C_ptr += first.to(tl.int64) * C_t + n
    z_ptr += first.to(tl.int64) * z_t + c
    out_ptr += first.to(tl.int64) * out_t + c
    for _ in range(first, last):
        u = tl.load(u_ptr, mask=in_c, other=0.0).to(tl.float32)
        delta = tl.load(delta_ptr, mask=in_c, other=0.0).to(tl.float32)
        B = tl.load(B_ptr, mask=in_n, other=0.0).to(tl.float32)
        C = tl.load(C_ptr, mask=in_n, other=0.0).to(tl.float32)
        decay, drive = _step(u, delta, A, B)
        state = decay * state + drive
        y = tl.sum(state * C[None, :], axis=1) + D * u
        if HAS_Z:
            z = tl.load(z_ptr, mask=in_c, other=0.0).to(tl.float32)
            y = y * z * tl.sigmoid(z)
        tl.store(out_ptr, y, mask=in_c)
        u_ptr += u_t
        delta_ptr += delta_t
        B_ptr += B_t
        C_ptr += C_t
        z_ptr += z_t
        out_ptr += out_t
    tl.store(state_ptrs, state, mask=in_cn)


def _launch_rows(
    tokens: tuple[torch.Tensor, ...],
    constants: tuple[torch.Tensor, ...],
    z: torch.Tensor | None,
    out: torch.Tensor | None,
    states_SCN: torch.Tensor,
    slots_R: torch.Tensor,
    rows: tuple[torch.Tensor, ...] | None,
) -> torch.Tensor:
    """Run ``_scan_rows``; ``rows`` is (starts, has_state, start) or None where each row is one token."""
    u, delta, B, C = (x if x.stride(-1) == 1 else x.contiguous() for x in tokens)
    A, D = (x.float().contiguous() for x in constants)
    z = z if z is None or z.stride(-1) == 1 else z.contiguous()
    out = torch.empty_like(u) if out is None else out
    if out.stride(-1) != 1:
        raise ValueError("The output of a scan must have adjacent channels: its last stride must be 1.")
    slots = slots_R.contiguous()
    starts, has_state, start = (slots, slots, A) if rows is None else (x.contiguous() for x in rows)
    channels, states = A.shape
    block_c, block_n = _blocks(channels, states)
    _scan_rows[(len(slots), triton.cdiv(channels, block_c))](
        u, delta, A, B, C, D, u if z is None else z, out, starts, slots, has_state, start, states_SCN,
        channels, states, u.stride(0), delta.stride(0), B.stride(0), C.stride(0), 0 if z is None else z.stride(0),
        out.stride(0), *states_SCN.stride(),
        ONE_TOKEN=rows is None, HAS_Z=z is not None, BLOCK_C=block_c, BLOCK_N=block_n, num_warps=1,
    )  # fmt: skip
    return out


def selective_scan_varlen(
    u_TC: torch.Tensor,
    delta_TC: torch.Tensor,
    A_CN: torch.Tensor,
    B_TN: torch.Tensor,
    C_TN: torch.Tensor,
    D_C: torch.Tensor,
    *,
    starts_R1: torch.Tensor,
    states_SCN: torch.Tensor,
    slots_R: torch.Tensor,
    has_state_R: torch.Tensor,
    start_CN: torch.Tensor,
    z_TC: torch.Tensor | None = None,
    out_TC: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.selective_scan_varlen``."""
    tokens = (u_TC, delta_TC, B_TN, C_TN)
    rows = (starts_R1, has_state_R, start_CN)
    return _launch_rows(tokens, (A_CN, D_C), z_TC, out_TC, states_SCN, slots_R, rows)


def selective_state_update(
    u_RC: torch.Tensor,
    delta_RC: torch.Tensor,
    A_CN: torch.Tensor,
    B_RN: torch.Tensor,
    C_RN: torch.Tensor,
    D_C: torch.Tensor,
    *,
    states_SCN: torch.Tensor,
    slots_R: torch.Tensor,
    z_RC: torch.Tensor | None = None,
    out_RC: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.selective_state_update``."""
    tokens = (u_RC, delta_RC, B_RN, C_RN)
    return _launch_rows(tokens, (A_CN, D_C), z_RC, out_RC, states_SCN, slots_R, None)
