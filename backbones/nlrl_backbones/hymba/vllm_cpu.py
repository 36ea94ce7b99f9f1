"""Hymba's token mixing on a CPU: compiled loops that read and write vLLM's pages in place.

A small model served on one core spends its time in many tiny steps, not in matrix products; each loop
here replaces a dozen tensor operations and copies no page. Tensors arrive as ``Strided``: a flat NumPy view
and the distance between rows, since pages and slices of a projection are not contiguous. Everything is
float32. Numba is a fixed requirement of vLLM itself, so nothing is added to install.

Axis letters: T packed tokens, R rows (requests of this step), I scan channels, N state size, K kernel width,
P blocks of a request, H key/value heads, G query heads per key/value head, M meta tokens, C = D + V key and
value width.
"""

import functools
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

LOG2_E = 1.4426950408889634
# Reassociation lets sums vectorise; NaN and infinity keep their meaning.
_FAST = {"reassoc", "contract", "arcp", "nsz"}
_jit = functools.partial(numba.njit, cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
_inline = functools.partial(numba.njit, inline="always", fastmath=_FAST, error_model="numpy")


class Strided(NamedTuple):
    """The elements of a tensor from its first on, flat, and the strides of all axes but the last (which is 1)."""

    flat: np.ndarray
    strides: tuple[int, ...]


def strided(tensor: torch.Tensor) -> Strided:
    """View a float32 CPU tensor whose last axis is contiguous as ``Strided``, without a copy."""
    length = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided((max(length, 0) if tensor.numel() else 0,), (1,)).numpy()
    return Strided(flat, tensor.stride()[:-1])


@_inline
def _exp2(x):
    """2**x for float32 in plain arithmetic, so that loops over it vectorise (relative error below 3e-7)."""
    x = min(max(x, np.float32(-126.0)), np.float32(127.0))
    whole = np.int32(x + (np.float32(0.5) if x > 0 else np.float32(-0.5)))
    r = x - np.float32(whole)
    p = np.float32(1.3333558e-3)
    p = p * r + np.float32(9.6181291e-3)
    p = p * r + np.float32(5.5504109e-2)
    p = p * r + np.float32(2.4022651e-1)
    p = p * r + np.float32(6.9314718e-1)
    p = p * r + np.float32(1.0)
    return p * np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)


@_inline
def _sigmoid(x):
    return np.float32(1.0) / (np.float32(1.0) + _exp2(np.float32(-LOG2_E) * x))


@_jit
def causal_conv(x, x_step, weight_KI, bias_I, starts_R, slots_R, fresh_R, state, state_step, start_KI, out_TI):
    """Depthwise causal convolution and SiLU over packed rows; leaves the last K-1 raw inputs in each slot.

    A row marked fresh begins from ``start_KI`` (what the meta tokens leave) instead of its slot.
    """
    kernel, channels = weight_KI.shape
    past = kernel - 1
    history = np.empty((past, channels), np.float32)
    for row in range(slots_R.shape[0]):
        begin, end = starts_R[row], starts_R[row + 1]
        if end <= begin:
            continue
        slot = slots_R[row] * state_step
        if fresh_R[row]:
            history[:] = start_KI
        else:
            history[:] = state[slot : slot + past * channels].reshape((past, channels))
        for t in range(begin, end):
            out_TI[t] = bias_I
            for k in range(kernel):
                source = t - past + k
                if source >= begin:
                    at = source * x_step
                    for i in range(channels):
                        out_TI[t, i] += weight_KI[k, i] * x[at + i]
                else:
                    for i in range(channels):
                        out_TI[t, i] += weight_KI[k, i] * history[source - begin + past, i]
            for i in range(channels):
                out_TI[t, i] *= _sigmoid(out_TI[t, i])
        for k in range(past):
            source = end - past + k
            for i in range(channels):
                state[slot + k * channels + i] = (
                    x[source * x_step + i] if source >= begin else history[source - begin + past, i]
                )


@_jit
def selective_scan(
    u_TI, delta_TI, rate_NI, B_TN, C_TN, skip_I, gate, gate_step, starts_R, slots_R, fresh_R, state, state_step,
    start_NI, y_TI,
):  # fmt: skip
    """Mamba-1 recurrence over packed rows, its state kept in each slot as [N, I]; ``rate`` is A * log2(e).

    S[n, i] <- exp(delta[i] A[n, i]) S[n, i] + delta[i] u[i] B[n];  y[i] = (sum_n C[n] S[n, i] + skip[i] u[i]) silu(gate[i]).
    """
    states, channels = rate_NI.shape
    driven = np.empty(channels, np.float32)
    y = np.empty(channels, np.float32)
    for row in range(slots_R.shape[0]):
        begin, end = starts_R[row], starts_R[row + 1]
        if end <= begin:
            continue
        slot = slots_R[row] * state_step
        S = state[slot : slot + states * channels].reshape((states, channels))
        if fresh_R[row]:
            S[:] = start_NI
        for t in range(begin, end):
            for i in range(channels):
                driven[i] = delta_TI[t, i] * u_TI[t, i]
                y[i] = skip_I[i] * u_TI[t, i]
            for n in range(states):
                b, c = B_TN[t, n], C_TN[t, n]
                for i in range(channels):
                    s = S[n, i] * _exp2(delta_TI[t, i] * rate_NI[n, i]) + driven[i] * b
                    S[n, i] = s
                    y[i] += s * c
            for i in range(channels):
                z = gate[t * gate_step + i]
                y_TI[t, i] = y[i] * z * _sigmoid(z)


@_jit
def write_pages(key, key_step, value, value_step, slots_T, block_size, heads, D, V, pages, page_step, head_step):
    """Store each token's key and value side by side in its page slot; slot -1 is padding."""
    width = D + V
    for t in range(slots_T.shape[0]):
        slot = slots_T[t]
        if slot < 0:
            continue
        block, offset = slot // block_size, slot % block_size
        for h in range(heads):
            at = block * page_step + h * head_step + offset * width
            for d in range(D):
                pages[at + d] = key[t * key_step + h * D + d]
            for v in range(V):
                pages[at + D + v] = value[t * value_step + h * V + v]


@functools.cache
def paged_attention(key_width: int, value_width: int):
    """Attention over pages and meta tokens, compiled for one pair of head widths; for rows of few queries.

    Arguments of the result: query (flat, token step), pages (flat, page step, head step, block size), meta keys and
    values [H, M, C], block table [R, P], row boundaries, row lengths, the rows to do, W (-1: no window), scale, G,
    output [T, H * G * V].
    """
    D, V = key_width, value_width
    C = D + V

    @_jit
    def attend(
        query, query_step, pages, page_step, head_step, block_size, meta_HMC, table_RP, starts_R, lengths_R, rows,
        window, scale, group, out_TQ,
    ):  # fmt: skip
        heads, meta = meta_HMC.shape[0], meta_HMC.shape[1]
        longest = 0
        for row in rows:
            longest = max(longest, lengths_R[row])
        scores = np.empty((group, meta + longest), np.float32)
        q = np.empty((group, D), np.float32)
        acc = np.empty((group, V), np.float32)
        for row in rows:
            begin, end = starts_R[row], starts_R[row + 1]
            for t in range(begin, end):
                last = lengths_R[row] - (end - t)
                first = max(0, last - window) if window >= 0 else 0
                count = meta + last - first + 1
                for h in range(heads):
                    for g in range(group):
                        for d in range(D):
                            q[g, d] = query[t * query_step + (h * group + g) * D + d] * scale
                        acc[g, :] = np.float32(0.0)
                    for j in range(meta):
                        for g in range(group):
                            dot = np.float32(0.0)
                            for d in range(D):
                                dot += q[g, d] * meta_HMC[h, j, d]
                            scores[g, j] = dot
                    for position in range(first, last + 1):
                        at = table_RP[row, position // block_size] * page_step + h * head_step
                        at += (position % block_size) * C
                        for g in range(group):
                            dot = np.float32(0.0)
                            for d in range(D):
                                dot += q[g, d] * pages[at + d]
                            scores[g, meta + position - first] = dot
                    for g in range(group):
                        peak = scores[g, 0]
                        for j in range(count):
                            peak = max(peak, scores[g, j])
                        total = np.float32(0.0)
                        for j in range(count):
                            p = _exp2((scores[g, j] - peak) * np.float32(LOG2_E))
                            scores[g, j] = p
                            total += p
                        total = np.float32(1.0) / total
                        for j in range(count):
                            scores[g, j] *= total
                    for j in range(meta):
                        for g in range(group):
                            p = scores[g, j]
                            for v in range(V):
                                acc[g, v] += p * meta_HMC[h, j, D + v]
                    for position in range(first, last + 1):
                        at = table_RP[row, position // block_size] * page_step + h * head_step
                        at += (position % block_size) * C + D
                        for g in range(group):
                            p = scores[g, meta + position - first]
                            for v in range(V):
                                acc[g, v] += p * pages[at + v]
                    for g in range(group):
                        for v in range(V):
                            out_TQ[t, (h * group + g) * V + v] = acc[g, v]

    return attend


@functools.lru_cache(maxsize=512)
def _hidden(queries: int, keys: int, first_query: int, window: int | None, meta: int) -> torch.Tensor:
    """True [queries, meta + keys] where a key may not be seen; query i stands at key index first_query + i."""
    behind = (torch.arange(queries) + first_query)[:, None] - torch.arange(keys)[None]
    hidden = behind < 0 if window is None else (behind < 0) | (behind > window)
    return torch.nn.functional.pad(hidden, (meta, 0), value=False)


def attend_row(
    query_THD: torch.Tensor,
    pages_BHNC: torch.Tensor,
    meta_HMC: torch.Tensor,
    blocks_P: torch.Tensor,
    length: int,
    *,
    window: int | None,
    scale: float,
    out_THV: torch.Tensor,
    chunk: int = 128,
) -> None:
    """Attention of one request's many queries, by matrix products over its gathered pages; any dtype.

    The queries are the last ``len(query_THD)`` of ``length`` positions. Works in chunks of queries, so that memory
    stays bounded and keys after a chunk cost nothing.
    """
    queries, query_heads, D = query_THD.shape
    heads, meta, C = meta_HMC.shape
    block_size, group, V = pages_BHNC.shape[2], query_heads // heads, C - D
    start = length - queries
    first_block = max(0, start - window) // block_size if window is not None else 0
    gathered = pages_BHNC.index_select(0, blocks_P[first_block : -(-length // block_size)])
    cached_HLC = gathered.transpose(0, 1).reshape(heads, -1, C)
    offset = first_block * block_size
    q_HGTD = (query_THD * scale).view(queries, heads, group, D).permute(1, 2, 0, 3)
    for begin in range(0, queries, chunk):
        end = min(begin + chunk, queries)
        low = max(0, start + begin - window) if window is not None else 0
        high = start + end
        keys_HLC = torch.cat([meta_HMC, cached_HLC[:, low - offset : high - offset]], dim=1)
        q = q_HGTD[:, :, begin:end].reshape(heads, group * (end - begin), D)
        scores = torch.bmm(q, keys_HLC[..., :D].transpose(1, 2)).view(heads, group, end - begin, -1)
        scores.masked_fill_(_hidden(end - begin, high - low, start + begin - low, window, meta), float("-inf"))
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(keys_HLC.dtype)
        mixed = torch.bmm(weights.view(heads, group * (end - begin), -1), keys_HLC[..., D:])
        out_THV[begin:end].view(end - begin, heads, group, V).copy_(
            mixed.view(heads, group, end - begin, V).permute(2, 0, 1, 3)
        )


class ScanWeights(NamedTuple):
    """A layer's scan weights in the order the loops walk them."""

    conv_KI: np.ndarray
    bias_I: np.ndarray
    rate_NI: np.ndarray
    skip_I: np.ndarray

    @classmethod
    def empty(cls, channels: int, states: int, kernel: int) -> "ScanWeights":
        shapes = ((kernel, channels), (channels,), (states, channels), (channels,))
        return cls(*(np.zeros(shape, np.float32) for shape in shapes))

    def fill(self, conv_I1K: torch.Tensor, bias_I: torch.Tensor, A_IN: torch.Tensor, skip_I: torch.Tensor) -> None:
        """Copy the weights in; the scan's rate is A in units of log2, so that the loop can use powers of two."""
        sources = (conv_I1K[:, 0].T, bias_I, A_IN.T * LOG2_E, skip_I)
        for kept, source in zip(self, sources, strict=True):
            kept[...] = source.detach().float().numpy()


def scan_step(
    mixer: Any,
    scan_input: torch.Tensor,
    slots_R: np.ndarray,
    starts_R: np.ndarray,
    fresh_R: np.ndarray,
    output: torch.Tensor,
) -> None:
    """Convolution and scan of one ``HymbaMixer`` over this step's packed rows; [T, 2I] in, [T, I] out."""
    weights, channels = mixer.scan_weights, mixer.channels
    tokens = int(starts_R[-1])
    inputs = strided(scan_input[:tokens].float())
    conv_state, scan_state = (strided(state) for state in mixer.kv_cache)
    u_TI = torch.empty(tokens, channels)
    causal_conv(
        inputs.flat, inputs.strides[0], weights.conv_KI, weights.bias_I, starts_R, slots_R, fresh_R,
        conv_state.flat, conv_state.strides[0], mixer.start_conv_KI.numpy(), u_TI.numpy(),
    )  # fmt: skip
    delta, B, C = mixer.selection(u_TI.to(output.dtype))
    y_TI = output[:tokens] if output.dtype == torch.float32 else torch.empty_like(u_TI)
    selective_scan(
        u_TI.numpy(), delta.numpy(), weights.rate_NI, B.float().numpy(), C.float().numpy(), weights.skip_I,
        inputs.flat[channels:], inputs.strides[0], starts_R, slots_R, fresh_R,
        scan_state.flat, scan_state.strides[0], mixer.start_scan.numpy(), y_TI.numpy(),
    )  # fmt: skip
    if y_TI.data_ptr() != output.data_ptr():
        output[:tokens] = y_TI
