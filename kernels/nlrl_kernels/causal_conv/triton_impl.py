"""Causal depthwise convolution with states in Triton; equations and axes in ``reference.py``.

One program walks one row for one block of channels, a tile of tokens at a time, and last replaces the row's state.
"""

# Arguments of a kernel are pointers and scalars that only Triton can type:
# ruff: noqa: ANN001, ANN202
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl

_BLOCK_CHANNELS = 128
_BLOCK_TOKENS = 16


@triton.jit
def _earlier(x_ptr, start_ptr, states_ptr, position, c, known, mask, PAST: tl.constexpr, x_t, channels, slot_k, slot_c):
    """Raw inputs at ``position`` of the row; below 0 those of the row's state, or of the constant start."""
    new = tl.load(x_ptr + position.to(tl.int64) * x_t + c, mask=mask & (position >= 0), other=0.0).to(tl.float32)
    old_mask = mask & (position < 0)
    at = position + PAST
    old = tl.load(states_ptr + at * slot_k + c * slot_c, mask=old_mask & known, other=0.0).to(tl.float32)
    fresh = tl.load(start_ptr + at * channels + c, mask=old_mask & (known == 0), other=0.0).to(tl.float32)
    return new + old + fresh  # at most one of the three is loaded


@triton.jit
def _conv_rows(
    x_ptr, weight_ptr, bias_ptr, out_ptr, starts_ptr, slots_ptr, has_state_ptr, start_ptr, states_ptr,
    channels, x_t, out_t, slot_s, slot_k, slot_c,
    ONE_TOKEN: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if ONE_TOKEN:
        first, last = row, row + 1
    else:
        first, last = tl.load(starts_ptr + row), tl.load(starts_ptr + row + 1)
    if (slot < 0) | (first >= last):
        return
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    in_c = c < channels
    PAST: tl.constexpr = K - 1
    length = last - first
    x_ptr += first.to(tl.int64) * x_t
    out_ptr += first.to(tl.int64) * out_t
    states_ptr += slot * slot_s
    if ONE_TOKEN:
        known = tl.full((1, 1), 1, tl.int32) != 0
    else:
        known = tl.load(has_state_ptr + row).to(tl.int32) + tl.zeros((1, 1), tl.int32) != 0
    bias = tl.load(bias_ptr + c, mask=in_c, other=0.0).to(tl.float32)
    # The new state is read before any thread may overwrite the old one.
    k = tl.arange(0, BLOCK_K)[:, None]
    in_kc = (k < PAST) & in_c
    newest = _earlier(
        x_ptr, start_ptr, states_ptr, length - PAST + k, c, known, in_kc, PAST, x_t, channels, slot_k, slot_c
    )
    for begin in range(0, length, BLOCK_T):
        t = begin + tl.arange(0, BLOCK_T)[:, None]
        in_tc = (t < length) & in_c
        y = bias + tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
        for tap in tl.static_range(K):  # type: ignore[misc]
            weight = tl.load(weight_ptr + c * K + tap, mask=in_c, other=0.0).to(tl.float32)
            y += weight * _earlier(
                x_ptr, start_ptr, states_ptr, t - PAST + tap, c, known, in_tc, PAST, x_t, channels, slot_k, slot_c
            )  # fmt: skip
        tl.store(out_ptr + t.to(tl.int64) * out_t + c, y * tl.sigmoid(y), mask=in_tc)
    tl.debug_barrier()
    tl.store(states_ptr + k * slot_k + c * slot_c, newest, mask=in_kc)


def _launch(
    x: torch.Tensor,
    weight_CK: torch.Tensor,
    bias_C: torch.Tensor,
    states_SKC: torch.Tensor,
    slots_R: torch.Tensor,
    out: torch.Tensor | None,
    rows: tuple[torch.Tensor, ...] | None,
) -> torch.Tensor:
    """Run ``_conv_rows``; ``rows`` is (starts, has_state, start) or None where each row is one token."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if out.stride(-1) != 1:
        raise ValueError("The output of a convolution must have adjacent channels: its last stride must be 1.")
    channels, K = weight_CK.shape
    slots = slots_R.contiguous()
    starts, has_state, start = (slots, slots, bias_C) if rows is None else (x.contiguous() for x in rows)
    _conv_rows[(len(slots), triton.cdiv(channels, _BLOCK_CHANNELS))](
        x, weight_CK.contiguous(), bias_C, out, starts, slots, has_state, start, states_SKC,
        channels, x.stride(0), out.stride(0), *states_SKC.stride(),
        ONE_TOKEN=rows is None, K=K, BLOCK_K=triton.next_power_of_2(K - 1),
        BLOCK_T=1 if rows is None else _BLOCK_TOKENS, BLOCK_C=_BLOCK_CHANNELS, num_warps=4,
    )  # fmt: skip
    return out


def causal_conv1d_varlen(
    x_TC: torch.Tensor,
    weight_CK: torch.Tensor,
    bias_C: torch.Tensor,
    *,
    starts_R1: torch.Tensor,
    states_SKC: torch.Tensor,
    slots_R: torch.Tensor,
    has_state_R: torch.Tensor,
    start_KC: torch.Tensor,
    out_TC: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.causal_conv1d_varlen``."""
    return _launch(x_TC, weight_CK, bias_C, states_SKC, slots_R, out_TC, (starts_R1, has_state_R, start_KC))


def causal_conv1d_update(
    x_RC: torch.Tensor,
    weight_CK: torch.Tensor,
    bias_C: torch.Tensor,
    *,
    states_SKC: torch.Tensor,
    slots_R: torch.Tensor,
    out_RC: torch.Tensor | None = None,
) -> torch.Tensor:
    """See ``nlrl_kernels.causal_conv1d_update``."""
    return _launch(x_RC, weight_CK, bias_C, states_SKC, slots_R, out_RC, None)
