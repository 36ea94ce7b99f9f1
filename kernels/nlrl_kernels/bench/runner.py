"""Runs the planned cases one after the other: correctness first, then time, then the alternatives' time."""

import gc
import os
import pkgutil
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from datetime import date
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import torch

from nlrl_kernels import bench
from nlrl_kernels.bench import goals, isolated, profile, report
from nlrl_kernels.bench.case import Case, Check, Plan, Size, UnavailableError
from nlrl_kernels.bench.timing import Ceilings, measure, measure_ceilings
from nlrl_kernels.dispatch import use_implementation

_CASES = "cases_"
_PATIENCE = 150.0
"""Seconds for one case: compiling, a check in float64, and the alternatives."""


def families() -> dict[str, ModuleType]:
    """Name to the module ``cases_<name>`` beside this one, which plans the cases of some kernels."""
    found = (module.name for module in pkgutil.iter_modules(bench.__path__) if module.name.startswith(_CASES))
    return {name.removeprefix(_CASES): import_module(f"{bench.__name__}.{name}") for name in found}


def planned(size: Size, only: Sequence[str] = ()) -> list[Plan]:
    """The cases of these families or kernels, or of all; those with a goal first.

    Raises:
        ValueError: there is no family or kernel of this name.
    """
    by_family = {name: list(family.plans(size)) for name, family in families().items()}
    plans = [plan for of_family in by_family.values() for plan in of_family]
    known = sorted({*by_family, *(plan.kernel for plan in plans)})
    for name in only:
        if name not in known:
            raise ValueError(f"There is no benchmark of {name!r}: choose among {', '.join(known)}.")
    chosen = [plan for name, of_family in by_family.items() for plan in of_family if {name, plan.kernel} & set(only)]
    return goals.ordered(chosen if only else plans)


def run_all(plans: Sequence[Plan], size: Size, folder: Path, limit: float, say: Callable[[str], None] = print) -> bool:
    """Run the cases until the limit in seconds is reached, and write the files after each.

    Returns:
        Whether no kernel was wrong.
    """
    began = time.monotonic()
    about = report.machine(size.device)
    ceilings = measure_ceilings() if size.device == "cuda" and not size.tiny else None
    name = f"{re.sub(r'[^a-z0-9]+', '-', about['gpu'].lower()).strip('-')}-{date.today().isoformat()}"
    say(f"{about['gpu']}{report.limits(ceilings)}")
    say(report.HEADER)
    results: list[report.Result] = []
    path = folder
    isolate = ceilings is not None
    found = isolated.results(plans, size, ceilings, _PATIENCE) if isolate else _in_this_process(plans, size)
    for left_out in range(len(plans), 0, -1):
        if time.monotonic() - began > limit:
            say(f"\n{left_out} cases were left out: the limit of {limit:.0f} seconds was reached.")
            break
        results.append(next(found))
        say(report.row(results[-1], ceilings))
        for launch in results[-1].launches:
            say(f"  {launch}")
        table = [goals.HEADER, *(verdict.line for verdict in goals.judge(plans, results, ceilings))]
        path = report.write(folder, name, report.Run(about, ceilings, results, table, left_out - 1))
    found.close()
    say("\n".join(["", goals.HEADER, *(verdict.line for verdict in goals.judge(plans, results, ceilings)), ""]))
    say(str(path))
    return not any(result.is_wrong for result in results)


def _in_this_process(plans: Sequence[Plan], size: Size) -> Generator[report.Result]:
    for plan in plans:
        yield run_one(plan, size, None)
        clean(size)


def clean(size: Size) -> None:
    """Let go of what a case held."""
    torch.compiler.reset()  # a function compiled for too many shapes would run uncompiled, in silence
    gc.collect()
    if size.device == "cuda":
        torch.cuda.empty_cache()


def run_one(plan: Plan, size: Size, ceilings: Ceilings | None) -> report.Result:
    """One case. A failure of a check, or of the kernel itself, is a result without a time."""
    errors: dict[str, tuple[float, float]] = {}
    try:
        with use_implementation("triton") if size.device == "cpu" else nullcontext():
            case = plan.build()
            for check in case.check():
                errors[check[0]] = _error(check)
    except Exception as error:
        why = f"the kernel or its check stopped: {type(error).__name__}: {_first_line(error)}"
        return report.Result(plan.kernel, plan.shape, errors=errors, refused=why)
    found = report.Result(plan.kernel, plan.shape, case.moved, case.flops, errors)
    wrong = [name for name, (error, tolerance) in errors.items() if not error <= tolerance]
    if wrong or not errors:
        why = "; ".join(f"{name} is wrong by {errors[name][0]:.2e}, more than {errors[name][1]:.2e}" for name in wrong)
        return replace(found, refused=why or "nothing was checked")
    if ceilings is None:
        return replace(found, refused="no GPU" if size.device == "cpu" else "only checked")
    timing = measure(case.run)
    others = {name: _alternative(case, name) for name in case.alternatives}
    found = replace(found, timing=timing, alternatives=others)
    return replace(found, launches=profile.launches(case.run)) if goals.missed(found, ceilings) else found


def warm(plans: Sequence[Plan], size: Size, processes: int, seconds: float) -> Iterator[str]:
    """Compile what the cases launch, several at a time, into Triton's cache; yields what could not be compiled.

    Each process takes cases of its own: the assembler can take a minute for a wide tile, and in the benchmark one case
    would wait for the other. No case is begun after so many seconds.
    """
    stop = time.time() + seconds
    shares = [[(plan.kernel, plan.shape) for plan in plans[i::processes]] for i in range(processes)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_launch_each, share, size, stop) for share in shares if share]
        for job in as_completed(jobs):
            try:
                yield from job.result()
            except BrokenProcessPool:
                yield "A process that compiled was lost: its cases are compiled in their turn."


def _launch_each(share: list[tuple[str, str]], size: Size, stop: float) -> list[str]:
    """Launch each of these cases once, in a process of its own; what failed."""
    complaints = []
    for plan in planned(size):
        if (plan.kernel, plan.shape) in share and time.time() < stop:
            try:
                with use_implementation("triton"):
                    plan.build().run()
            except Exception as error:
                complaints.append(f"{plan.kernel} {plan.shape}: {type(error).__name__}: {_first_line(error)}")
            clean(size)
    return complaints


def processes_for(device: str) -> int:
    """How many compile at once: a few gigabytes of the GPU each."""
    return min(8, max(1, (os.cpu_count() or 2) // 2)) if device == "cuda" else 1


def _error(check: Check) -> tuple[float, float]:
    """Largest difference over the largest expected entry, NaN where anything is not finite; and the tolerance."""
    _, found, expected, tolerance = check
    if found.shape != expected.shape:
        return float("nan"), tolerance
    wide, exact = found.detach().double(), expected.detach().double()
    if not bool(torch.isfinite(wide).all() & torch.isfinite(exact).all()):
        return float("nan"), tolerance
    return float((wide - exact).abs().max() / exact.abs().max().clamp(min=1e-12)), tolerance


def _alternative(case: Case, name: str) -> report.Alternative:
    try:
        return report.Alternative(measure(case.alternatives[name]()))
    except UnavailableError as error:
        return report.Alternative(None, str(error))
    except Exception as error:  # another's code, on shapes it may not take: what it says is the result
        return report.Alternative(None, f"stopped: {type(error).__name__}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200].replace("|", "/")
