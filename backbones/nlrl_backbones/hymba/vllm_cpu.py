"""Hymba's token mixing on a CPU: compiled loops that read and write vLLM's pages in place.

A small model served on one core spends its time in many tiny steps, not in matrix products; each loop
here replaces a dozen tensor operations and copies no page. Tensors arrive as ``Strided``: a flat NumPy view
and the distance between rows, since pages and slices of a projection are not contiguous. Everything is
float32. Numba is a fixed requirement of vLLM itself, so nothing is added to install.

Axis letters: T packed tokens, R rows (requests of this step), I scan channels, N state size, K kernel width,
P blocks of a request, H key/value heads, G query heads per key/value head, M meta tokens, C = D + V key and
value width.
"""

# Numba types the arguments of a loop when it is first called:

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite.binding import ffi as llvm

# vLLM, when an engine starts, asks every object of every loaded module for its ``__dict__``. The library handle of
# Numba's compiler answers any unknown name with a function, on which vLLM trips; so this one gets a plain answer.
llvm.lib._fntab["__dict__"] = {}

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


@_inline
def _softplus(x):
    """log(1 + e**x), by the series of 2 artanh(y / (2 + y)) with y = e**-|x| <= 1 (absolute error below 1e-7)."""
    y = _exp2(np.float32(-LOG2_E) * abs(x))
    s = y / (np.float32(2.0) + y)
    s2 = s * s
    p = np.float32(2.0 / 13.0)
    p = p * s2 + np.float32(2.0 / 11.0)
    p = p * s2 + np.float32(2.0 / 9.0)
    p = p * s2 + np.float32(2.0 / 7.0)
    p = p * s2 + np.float32(2.0 / 5.0)
    p = p * s2 + np.float32(2.0 / 3.0)
    p = p * s2 + np.float32(2.0)
    return max(x, np.float32(0.0)) + s * p


@_jit
def rms_norm(x_TE, weight_E, eps, out_TE):
    """Root-mean-square norm of each token."""
    width = x_TE.shape[1]
    for t in range(x_TE.shape[0]):
        x, out = x_TE[t], out_TE[t]
        total = np.float32(0.0)
        for i in range(width):
            total += x[i] * x[i]
        scale = np.float32(1.0) / np.sqrt(total / np.float32(width) + eps)
        for i in range(width):
            out[i] = x[i] * scale * weight_E[i]


@_jit
def mean_of_norms(x_TI, weight_I, z_TI, z_weight_I, eps, out_TI):
    """(rms_norm(x) + rms_norm(z)) / 2: how Hymba joins its two branches."""
    width = x_TI.shape[1]
    half, count = np.float32(0.5), np.float32(width)
    for t in range(x_TI.shape[0]):
        x, z, out = x_TI[t], z_TI[t], out_TI[t]
        total, z_total = np.float32(0.0), np.float32(0.0)
        for i in range(width):
            total += x[i] * x[i]
            z_total += z[i] * z[i]
        scale, z_scale = half / np.sqrt(total / count + eps), half / np.sqrt(z_total / count + eps)
        for i in range(width):
            out[i] = x[i] * scale * weight_I[i] + z[i] * z_scale * z_weight_I[i]


@_jit
def silu_and_mul(x_TF, out_TF):
    """SiLU of the first half of each token times the second half."""
    width = out_TF.shape[1]
    for t in range(out_TF.shape[0]):
        x, out = x_TF[t], out_TF[t]
        for i in range(width):
            out[i] = x[i] * _sigmoid(x[i]) * x[i + width]


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
        kept = state[slot : slot + past * channels].reshape((past, channels))
        history[:] = start_KI if fresh_R[row] else kept
        for t in range(begin, end):
            out = out_TI[t]
            out[:] = bias_I
            for k in range(kernel):
                weight, source = weight_KI[k], t - past + k
                at = source * x_step
                values = x[at : at + channels] if source >= begin else history[source - begin + past]
                for i in range(channels):
                    out[i] += weight[i] * values[i]
            for i in range(channels):
                out[i] *= _sigmoid(out[i])
        for k in range(past):
            source = end - past + k
            at = source * x_step
            kept[k] = x[at : at + channels] if source >= begin else history[source - begin + past]


@_jit
def selective_scan(
    u_TI, dt_TI, rate_NI, B_TN, C_TN, skip_I, gate, gate_step, starts_R, slots_R, fresh_R, state, state_step,
    start_NI, y_TI,
):  # fmt: skip
    """Mamba-1 recurrence over packed rows, its state kept in each slot as [N, I]; ``rate`` is A * log2(e).

    delta = softplus(dt);  S[n, i] <- exp(delta[i] A[n, i]) S[n, i] + delta[i] u[i] B[n];
    y[i] = (sum_n C[n] S[n, i] + skip[i] u[i]) silu(gate[i]).
    """
    states, channels = rate_NI.shape
    delta = np.empty(channels, np.float32)
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
            dt, u = dt_TI[t], u_TI[t]
            for i in range(channels):
                delta[i] = _softplus(dt[i])
                driven[i] = delta[i] * u[i]
                y[i] = skip_I[i] * u[i]
            for n in range(states):
                b, c, rate, S_I = B_TN[t, n], C_TN[t, n], rate_NI[n], S[n]
                for i in range(channels):
                    s = S_I[i] * _exp2(delta[i] * rate[i]) + driven[i] * b
                    S_I[i] = s
                    y[i] += s * c
            z = gate[t * gate_step : t * gate_step + channels]
            for i in range(channels):
                y_TI[t, i] = y[i] * z[i] * _sigmoid(z[i])


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
            k, v = t * key_step + h * D, t * value_step + h * V
            pages[at : at + D] = key[k : k + D]
            pages[at + D : at + width] = value[v : v + V]


@_inline
def _softmax(scores, row, first, last, meta):
    """Softmax in place over ``meta`` entries from ``row`` on and those from ``row + first`` to ``row + last``."""
    peak = np.float32(-np.inf)
    for j in range(row, row + meta):
        peak = max(peak, scores[np.uint64(j)])
    for j in range(row + first, row + last):
        peak = max(peak, scores[np.uint64(j)])
    total = np.float32(0.0)
    for j in range(row, row + meta):
        scores[np.uint64(j)] = _exp2((scores[np.uint64(j)] - peak) * np.float32(LOG2_E))
        total += scores[np.uint64(j)]
    for j in range(row + first, row + last):
        scores[np.uint64(j)] = _exp2((scores[np.uint64(j)] - peak) * np.float32(LOG2_E))
        total += scores[np.uint64(j)]
    total = np.float32(1.0) / total
    for j in range(row, row + meta):
        scores[np.uint64(j)] *= total
    for j in range(row + first, row + last):
        scores[np.uint64(j)] *= total


@_inline
def _dots(q, D, store, at, count, base, scores, row):
    """Scores of one query against ``count`` keys of width D, key j at ``at[j] + base`` in the store."""
    for quad in range(count // 4):
        j = np.uint64(4 * quad)
        k0, k1 = at[j] + base, at[j + np.uint64(1)] + base
        k2, k3 = at[j + np.uint64(2)] + base, at[j + np.uint64(3)] + base
        s0 = s1 = s2 = s3 = np.float32(0.0)
        for d in range(D):
            x = q[np.uint64(d)]
            s0 += x * store[k0 + np.uint64(d)]
            s1 += x * store[k1 + np.uint64(d)]
            s2 += x * store[k2 + np.uint64(d)]
            s3 += x * store[k3 + np.uint64(d)]
        scores[row + j], scores[row + j + np.uint64(1)] = s0, s1
        scores[row + j + np.uint64(2)], scores[row + j + np.uint64(3)] = s2, s3
    for j in range(count // 4 * 4, count):
        k0 = at[np.uint64(j)] + base
        s0 = np.float32(0.0)
        for d in range(D):
            s0 += q[np.uint64(d)] * store[k0 + np.uint64(d)]
        scores[row + np.uint64(j)] = s0


@_inline
def _mix(scores, row, store, V, at, count, base, total):
    """Add ``count`` values of width V to ``total``, weighted by their scores."""
    for quad in range(count // 4):
        j = np.uint64(4 * quad)
        v0, v1 = at[j] + base, at[j + np.uint64(1)] + base
        v2, v3 = at[j + np.uint64(2)] + base, at[j + np.uint64(3)] + base
        p0, p1 = scores[row + j], scores[row + j + np.uint64(1)]
        p2, p3 = scores[row + j + np.uint64(2)], scores[row + j + np.uint64(3)]
        for v in range(V):
            i = np.uint64(v)
            total[i] += p0 * store[v0 + i] + p1 * store[v1 + i] + p2 * store[v2 + i] + p3 * store[v3 + i]
    for j in range(count // 4 * 4, count):
        v0, p0 = at[np.uint64(j)] + base, scores[row + np.uint64(j)]
        for v in range(V):
            total[np.uint64(v)] += p0 * store[v0 + np.uint64(v)]


@functools.cache
def paged_attention(key_width: int, value_width: int) -> Callable[..., None]:
    """Attention over pages and meta tokens, compiled for one pair of head widths; for rows of few queries.

    Arguments of the result: query (flat, token step), pages (flat, page step, head step, block size), meta keys and
    values (flat [H, M, C], M), block table [R, P], row boundaries, row lengths, the rows to do, W (-1: no window),
    scale, H, G, output [T, H * G * V]. Indices are unsigned (a signed one is checked for wrapping, which forbids
    vectors) and keys go four at a time, which shares each load of the query and of the running sum.
    """
    D, V = key_width, value_width
    C = D + V
    U = np.uint64

    @_jit
    def attend(
        query, query_step, pages, page_step, head_step, block_size, meta_flat, meta, table_RP, starts_R, lengths_R,
        rows, window, scale, heads, group, out_TQ,
    ):  # fmt: skip
        longest = 0
        for row in rows:
            longest = max(longest, lengths_R[row])
        scores = np.empty(meta + longest, np.float32)
        at, at_meta = np.empty(longest, U), np.arange(meta).astype(U) * U(C)
        q, total = np.empty(D, np.float32), np.empty(V, np.float32)
        for row in rows:
            for t in range(starts_R[row], starts_R[row + 1]):
                last = lengths_R[row] - (starts_R[row + 1] - t)
                first = max(0, last - window) if window >= 0 else 0
                count = last - first + 1
                for j in range(count):
                    block, slot = (first + j) // block_size, (first + j) % block_size
                    at[j] = np.int64(table_RP[row, block]) * page_step + slot * C
                for head in range(heads * group):
                    kv_head = head // group
                    for d in range(D):
                        q[d] = query[t * query_step + head * D + d] * scale
                    in_page, in_meta = U(kv_head * head_step), U(kv_head * meta * C)
                    _dots(q, D, meta_flat, at_meta, meta, in_meta, scores, U(0))
                    _dots(q, D, pages, at, count, in_page, scores, U(meta))
                    _softmax(scores, 0, 0, meta + count, 0)
                    total[:] = np.float32(0.0)
                    _mix(scores, U(0), meta_flat, V, at_meta, meta, in_meta + U(D), total)
                    _mix(scores, U(meta), pages, V, at, count, in_page + U(D), total)
                    for v in range(V):
                        out_TQ[t, head * V + v] = total[v]

    return attend


@_jit
def gather_keys(pages, page_step, head_step, block_size, blocks_P, first, meta_HMC, keys_HLD, values_HLV):
    """Meta keys and values, then those of positions ``first`` onwards, from pages to two dense arrays."""
    heads, count, D = keys_HLD.shape
    meta, C = meta_HMC.shape[1], meta_HMC.shape[2]
    for h in range(heads):
        keys_HLD[h, :meta] = meta_HMC[h, :, :D]
        values_HLV[h, :meta] = meta_HMC[h, :, D:]
        for j in range(meta, count):
            position = first + j - meta
            at = np.int64(blocks_P[position // block_size]) * page_step + h * head_step
            at += (position % block_size) * C
            keys_HLD[h, j] = pages[at : at + D]
            values_HLV[h, j] = pages[at + D : at + C]


@_jit
def masked_softmax(scores, rows, queries, keys, meta, behind, window):
    """Softmax in place of ``rows`` x ``queries`` rows of ``meta + keys`` scores; unseen keys get weight 0.

    Query i stands at key index ``behind + i``.
    """
    width = meta + keys
    for row in range(rows):
        for i in range(queries):
            end = behind + i + 1
            first = max(0, end - 1 - window) if window >= 0 else 0
            at = (row * queries + i) * width
            _softmax(scores, at, meta + first, meta + end, meta)
            scores[at + meta : at + meta + first] = np.float32(0.0)
            scores[at + meta + end : at + width] = np.float32(0.0)


def attend_row(
    query_THD: torch.Tensor,
    pages_BHNC: torch.Tensor,
    meta_HMC: torch.Tensor,
    blocks_P: np.ndarray,
    length: int,
    *,
    window: int | None,
    scale: float,
    out_THV: torch.Tensor,
    chunk: int = 128,
) -> None:
    """Attention of one request's many queries by matrix products over its gathered pages; any float dtype.

    The queries are the last ``len(query_THD)`` of ``length`` positions. Works in chunks of queries, so that memory
    stays bounded and keys after a chunk cost nothing.
    """
    queries, query_heads, D = query_THD.shape
    heads, meta, C = meta_HMC.shape
    group, V, start = query_heads // heads, C - D, length - queries
    if pages_BHNC.dtype != torch.float32:  # convert this request's pages alone, and number them anew
        pages_BHNC = pages_BHNC[torch.from_numpy(blocks_P[: -(-length // pages_BHNC.shape[2])]).long()].float()
        blocks_P = np.arange(len(pages_BHNC), dtype=blocks_P.dtype)
    pages, meta_array = strided(pages_BHNC), meta_HMC.float().numpy()
    q_HGTD = (query_THD.float() * scale).view(queries, heads, group, D).permute(1, 2, 0, 3)
    for begin in range(0, queries, chunk):
        end = min(begin + chunk, queries)
        count, high = end - begin, start + end
        low = max(0, start + begin - window) if window is not None else 0
        width = meta + high - low
        keys_HLD, values_HLV = torch.empty(heads, width, D), torch.empty(heads, width, V)
        gather_keys(
            pages.flat, pages.strides[0], pages.strides[1], pages_BHNC.shape[2], blocks_P, low, meta_array,
            keys_HLD.numpy(), values_HLV.numpy(),
        )  # fmt: skip
        q = q_HGTD[:, :, begin:end].reshape(heads, group * count, D)
        scores = torch.bmm(q, keys_HLD.transpose(1, 2))
        masked_softmax(
            scores.view(-1).numpy(), heads * group, count, high - low, meta, start + begin - low,
            -1 if window is None else window,
        )  # fmt: skip
        mixed = torch.bmm(scores, values_HLV).view(heads, group, count, V).permute(2, 0, 1, 3)
        out_THV[begin:end].view(count, heads, group, V).copy_(mixed)


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
    dt, B, C = mixer.selection(u_TI.to(output.dtype))
    y_TI = output[:tokens] if output.dtype == torch.float32 else torch.empty_like(u_TI)
    selective_scan(
        u_TI.numpy(), dt.float().numpy(), weights.rate_NI, B.float().numpy(), C.float().numpy(), weights.skip_I,
        inputs.flat[channels:], inputs.strides[0], starts_R, slots_R, fresh_R,
        scan_state.flat, scan_state.strides[0], mixer.start_scan.numpy(), y_TI.numpy(),
    )  # fmt: skip
    if y_TI.data_ptr() != output.data_ptr():
        output[:tokens] = y_TI
