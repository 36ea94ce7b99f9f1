"""Try settings of the kernels on a GPU: `python -m nlrl_kernels.bench.sweep [--only prefill window_decode ...]`.

Each candidate is compiled first, several at a time, for wide tiles keep the assembler busy for a minute. Then each is
checked against the reference and timed on one shape of a real model. The fastest that is right belongs into the
``triton_impl`` of its folder; nothing is tuned while the operators run.

A module ``tiles_<family>`` says what is tried: ``NAMES`` of what is tuned, ``candidates()`` with those of today first,
``installed(what, settings)``, and ``plan_for(what, number, short=, size=)``.
"""

import argparse
import os
import pkgutil
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from multiprocessing import get_context
from typing import Any

import torch

from nlrl_kernels import bench
from nlrl_kernels.bench.case import Plan, Size
from nlrl_kernels.bench.runner import run_one
from nlrl_kernels.bench.timing import Ceilings

Candidate = tuple[str, int, tuple[Any, ...]]
"""What is tuned, a number that tells apart the shapes it is tuned for, and the settings."""

_TILES = "tiles_"


def families() -> dict[str, Any]:
    """What is tuned to the module that says how."""
    names = [module.name for module in pkgutil.iter_modules(bench.__path__) if module.name.startswith(_TILES)]
    modules = [import_module(f"{bench.__name__}.{name}") for name in names]
    return {what: module for module in modules for what in module.NAMES}


def candidates(only: list[str]) -> list[Candidate]:
    """Every setting that is tried; of each kind those of today come first."""
    modules = dict.fromkeys(families().values())
    return [candidate for module in modules for candidate in module.candidates() if candidate[0] in only]


def compile_one(candidate: Candidate) -> str | None:
    """Compile a candidate, by running it once; why it cannot be, or None."""
    what, number, settings = candidate
    family = families()[what]
    try:
        with family.installed(what, settings):
            family.plan_for(what, number, short=True, size=Size("cuda")).build().run()
            torch.cuda.synchronize()
    except Exception as error:  # too large for shared memory, most often
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
    return None


def time_one(candidate: Candidate, size: Size, ceilings: Ceilings | None) -> tuple[float, str]:
    """(milliseconds, line to print); infinite where there is no time."""
    what, number, settings = candidate
    family = families()[what]
    plan = family.plan_for(what, number, short=False, size=size)

    def without_alternatives():  # noqa: ANN202
        case = plan.build()
        case.alternatives.clear()
        return case

    with family.installed(what, settings):
        result = run_one(Plan(plan.kernel, plan.shape, without_alternatives), size, ceilings)
    ms = float("inf") if result.timing is None else result.timing.median
    return ms, f"{plan.kernel} {plan.shape} | {' '.join(map(str, settings))} | {result.refused or f'{ms:.4g} ms'}"


def main(arguments: list[str] | None = None) -> int:
    """Compile, check and time; the best of each last. 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="nlrl_kernels.bench.sweep", description=__doc__)
    every = list(families())
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2), metavar="N")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
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
