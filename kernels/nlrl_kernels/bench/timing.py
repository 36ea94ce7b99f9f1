"""Times on a GPU, and what this very GPU can do at most."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_FLUSHED = 256 * 2**20
"""Bytes read before each run, more than any cache holds: what is timed reads from memory."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Median and spread of one call, in milliseconds.

    Attributes:
        median: of all runs.
        low, high: the 10th and the 90th percentile.
        is_graph: whether these are of a captured CUDA graph, rather than of launches from Python.
        eager: median of launches from Python; the same as ``median`` where nothing could be captured.
    """

    median: float
    low: float
    high: float
    is_graph: bool
    eager: float | None = None


def ratio(theirs: Timing, ours: Timing) -> float:
    """How many times as long theirs takes: graphs against graphs, and launches from Python against the same."""
    if theirs.is_graph == ours.is_graph:
        return theirs.median / ours.median
    return (theirs.eager or theirs.median) / (ours.eager or ours.median)


def measure(run: Callable[[], object], seconds: float = 0.3) -> Timing:
    """Time ``run`` with cold caches, as a CUDA graph where it can be captured and from Python, so long for each."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = _captured(run)
    eager = _times(run, seconds)
    times = eager if graph is None else _times(graph.replay, seconds)
    deciles = statistics.quantiles(times, n=10)
    return Timing(statistics.median(times), deciles[0], deciles[-1], graph is not None, statistics.median(eager))


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each of at least 10 runs.

    Caches are filled by reading: what a write leaves in them would have to go to memory while ``call`` is timed.
    """
    flushed = torch.zeros(_FLUSHED // 4, dtype=torch.int32, device="cuda")
    largest = torch.empty((), dtype=torch.int32, device="cuda")
    times, stop = [], time.monotonic() + seconds
    while len(times) < 10 or (time.monotonic() < stop and len(times) < 1000):
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(10)]
        for begin, end in pairs:
            torch.amax(flushed, dim=0, out=largest)
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        times += [begin.elapsed_time(end) for begin, end in pairs]
    return times


def _captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph | None:
    """The launches of ``run`` as a graph; None for what cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What was measured of this GPU, each a second.

    Attributes:
        copy: bytes of a large copy, read and written.
        matmul: FLOP of a product of bfloat16 matrices.
        attention: FLOP of causal attention by vLLM's FlashAttention; None where that cannot run.
    """

    copy: float
    matmul: float
    attention: float | None = None


_HEADS, _WIDTH, _TOKENS = 12, 128, 16384


def measure_ceilings() -> Ceilings:
    """Copy 2 GiB; multiply two matrices of 8,192 by 8,192; attend with 12 heads of 128 over 16,384 tokens."""
    source, target = (torch.randn(2**29, device="cuda") for _ in range(2))
    copied = measure(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiplied = measure(lambda: a @ b)
    return Ceilings(2 * 2**31 / copied.median * 1e3, 2 * 8192**3 / multiplied.median * 1e3, _attention_rate())


def _attention_rate() -> float | None:
    from nlrl_kernels.bench.alternatives import packed_attention
    from nlrl_kernels.bench.case import UnavailableError

    q, k, v = (torch.randn(_TOKENS, _HEADS, _WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    starts = torch.tensor([0, _TOKENS], dtype=torch.int32, device="cuda")
    try:
        attended = measure(lambda: packed_attention(q, k, v, starts, _TOKENS, _WIDTH**-0.5))
    except UnavailableError:
        return None
    return _HEADS * _TOKENS * (_TOKENS + 1) // 2 * 4 * _WIDTH / attended.median * 1e3
