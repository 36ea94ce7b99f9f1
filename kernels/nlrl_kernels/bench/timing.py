"""Times on a GPU, and what this very GPU can do at most."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_FLUSHED = 256 * 2**20
"""Bytes written before each run, more than any cache holds: what is timed reads from memory."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Median and spread of one call, in milliseconds.

    Attributes:
        median: of all runs.
        low, high: the 10th and the 90th percentile.
        is_graph: whether a captured CUDA graph ran, rather than launches from Python.
    """

    median: float
    low: float
    high: float
    is_graph: bool


def measure(run: Callable[[], object], seconds: float = 0.4) -> Timing:
    """Time ``run`` for about so many seconds, with cold caches, as a CUDA graph where it can be captured."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = _captured(run)
    call = run if graph is None else graph.replay
    flushed = torch.empty(_FLUSHED // 4, dtype=torch.int32, device="cuda")
    times, stop = [], time.monotonic() + seconds
    while len(times) < 10 or (time.monotonic() < stop and len(times) < 1000):
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(10)]
        for begin, end in pairs:
            flushed.zero_()
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize()
        times += [begin.elapsed_time(end) for begin, end in pairs]
    deciles = statistics.quantiles(times, n=10)
    return Timing(statistics.median(times), deciles[0], deciles[-1], graph is not None)


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
    """What was measured of this GPU: bytes a second of a large copy (read and written), FLOP a second of a product."""

    copy: float
    matmul: float


def measure_ceilings() -> Ceilings:
    """Copy 2 GiB; multiply two bfloat16 matrices of 8,192 by 8,192 random entries."""
    source, target = (torch.randn(2**29, device="cuda") for _ in range(2))
    copied = measure(lambda: target.copy_(source))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    multiplied = measure(lambda: a @ b)
    return Ceilings(2 * 2**31 / copied.median * 1e3, 2 * 8192**3 / multiplied.median * 1e3)
