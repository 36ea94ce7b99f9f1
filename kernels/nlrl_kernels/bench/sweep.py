"""Try tile sizes of attention on a GPU: `python -m nlrl_kernels.bench.sweep [--only prefill window_decode ...]`.

Each candidate is compiled first, several at a time, for wide tiles keep the assembler busy for a minute. Then each is
checked against the reference and timed on one shape of the 3B model. The fastest that is right belongs into
``diff_attention.triton_impl``, or, of those named window, ``window_attention.triton_impl``; nothing is tuned while the
operators run.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import product
from multiprocessing import get_context

from nlrl_kernels.bench import cases_diff_attention as cases
from nlrl_kernels.bench import tiles_window_attention as window
from nlrl_kernels.bench.case import Plan, Size
from nlrl_kernels.bench.runner import run_one
from nlrl_kernels.bench.timing import Ceilings
from nlrl_kernels.diff_attention import triton_impl
from nlrl_kernels.diff_attention.triton_impl import Tile, Way

Candidate = tuple[str, int, tuple[Tile | window.Tile, ...]]
"""What is tuned, the version (1: values of 256, 2: shared keys, values of 128), and the tiles."""


_WAYS: dict[int, list[tuple[int, int, Way]]] = {
    1: [(128, 8, "in_turn"), (128, 8, "sums_first"), (64, 8, "together"), (64, 4, "in_turn"), (64, 4, "sums_first")],
    2: [(128, 8, "together"), (64, 4, "together"), (128, 8, "in_turn")],
}
"""By version: queries, warps and way of prefill. What spills or does not fit is found out by compiling it."""


def candidates(only: list[str]) -> list[Candidate]:
    """Every tile that is tried; those of today come first."""
    bf16 = triton_impl.torch.bfloat16
    found: list[Candidate] = []
    for version, width_v in ((1, 256), (2, 128)):
        found.append(("prefill", version, (triton_impl.prefill_tile(width_v, bf16),)))
        for (queries, warps, way), keys, stages in product(_WAYS[version], [32, 64, 128], [2, 3]):
            found.append(("prefill", version, (Tile(queries, keys, warps, stages, way),)))
        found.append(("decode", version, (triton_impl.decode_tile(width_v, bf16),)))
        for keys, warps, stages in product([16, 32, 64, 128], [2, 4, 8], [3, 5]):
            found.append(("decode", version, (Tile(16, keys, warps, stages),)))
    today = triton_impl.backward_tiles(256, bf16)
    found.append(("backward", 1, today))
    for queries, keys, warps in product([32, 64], [32, 64], [4, 8]):
        found.append(("backward", 1, (Tile(queries, keys, warps, 2), today[1])))
        found.append(("backward", 1, (today[0], Tile(queries // 2, 2 * keys, warps, 2))))
    return [candidate for candidate in dict.fromkeys([*found, *window.candidates()]) if candidate[0] in only]


@contextmanager
def installed(what: str, tiles: tuple[Tile | window.Tile, ...]) -> Iterator[None]:
    """Launch with these tiles."""
    if what in window.NAMES:
        with window.installed(what, tiles):
            yield
        return
    name = {"prefill": "prefill_tile", "decode": "decode_tile", "backward": "backward_tiles"}[what]
    before = getattr(triton_impl, name)
    setattr(triton_impl, name, lambda *_: tiles if what == "backward" else tiles[0])
    try:
        yield
    finally:
        setattr(triton_impl, name, before)


def plan_for(what: str, version: int, *, short: bool, size: Size) -> Plan:
    """The shape on which tiles are compared, or a short one that compiles the same code."""
    if what in window.NAMES:
        return window.plan_for(what, version, short=short, size=size)
    if what == "prefill":
        length = 24 if size.tiny else 512 if short else 8192
        return Plan("prefill", f"V{version}, 1 x {length}", lambda: cases._prefill(size, version, length))
    if what == "backward":
        length = 24 if size.tiny else 512 if short else 4096
        return Plan("backward", f"V1, 1 x {length}", lambda: cases._training(size, length))
    rows, context = (2, 40) if size.tiny else (64, 1024 if short else 8192)
    return Plan("decode", f"V{version}, {rows} x {context}", lambda: cases._decode(size, version, rows, context))


def compile_one(candidate: Candidate) -> str | None:
    """Compile a candidate, by running it once; why it cannot be, or None."""
    what, version, tiles = candidate
    try:
        with installed(what, tiles):
            plan_for(what, version, short=True, size=Size("cuda")).build().run()
            triton_impl.torch.cuda.synchronize()
    except Exception as error:  # too large for shared memory, most often
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return None


def time_one(candidate: Candidate, size: Size, ceilings: Ceilings | None) -> tuple[float, str]:
    """(milliseconds, line to print); infinite where there is no time."""
    what, version, tiles = candidate
    plan = plan_for(what, version, short=False, size=size)

    def without_alternatives():  # noqa: ANN202
        case = plan.build()
        case.alternatives.clear()
        return case

    with installed(what, tiles):
        result = run_one(Plan(plan.kernel, plan.shape, without_alternatives), size, ceilings)
    ms = float("inf") if result.timing is None else result.timing.median
    return ms, f"{plan.kernel} {plan.shape} | {' '.join(map(str, tiles))} | {result.refused or f'{ms:.4g} ms'}"


def main(arguments: list[str] | None = None) -> int:
    """Compile, check and time; the best of each last. 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="nlrl_kernels.bench.sweep", description=__doc__)
    every = ["prefill", "decode", "backward", *window.NAMES]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2), metavar="N")
    options = parser.parse_args(arguments)
    if not triton_impl.torch.cuda.is_available():
        print("Tile sizes can only be compared on a GPU: run this on a machine that has one.", file=sys.stderr)
        return 2
    tried = candidates(options.only)
    usable = []
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        jobs = {pool.submit(compile_one, candidate): candidate for candidate in tried}
        for job in as_completed(jobs):
            if (why := job.result()) is None:
                usable.append(jobs[job])
            else:
                print(f"{jobs[job]} | {why}", flush=True)
    best: dict[tuple[str, int], tuple[float, str]] = {}
    for candidate in sorted(usable, key=tried.index):
        ms, line = time_one(candidate, Size("cuda"), Ceilings(1.0, 1.0))
        print(line, flush=True)
        key = candidate[:2]
        best[key] = min(best.get(key, (float("inf"), "nothing was right")), (ms, line))
    print("\nfastest:", *(line for _, line in best.values()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
