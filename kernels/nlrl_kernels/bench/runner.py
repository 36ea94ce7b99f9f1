"""Runs the planned cases one after the other: correctness first, then time, then the alternatives' time."""

import gc
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import torch

from nlrl_kernels.bench import cases_binary, cases_diff_attention, cases_hymba, cases_hypersphere, report
from nlrl_kernels.bench.case import Case, Check, Plan, Size, UnavailableError
from nlrl_kernels.bench.timing import Ceilings, measure, measure_ceilings
from nlrl_kernels.dispatch import use_implementation

FAMILIES = (cases_hypersphere, cases_diff_attention, cases_hymba, cases_binary)


def planned(size: Size, kernels: list[str] | None = None) -> list[Plan]:
    """The cases of these kernels, or of all.

    Raises:
        ValueError: there are no cases of a kernel of this name.
    """
    plans = [plan for family in FAMILIES for plan in family.plans(size)]
    known = sorted({plan.kernel for plan in plans})
    for name in kernels or []:
        if name not in known:
            raise ValueError(f"There is no benchmark of {name!r}: choose among {', '.join(known)}.")
    return [plan for plan in plans if not kernels or plan.kernel in kernels]


def run_all(plans: list[Plan], size: Size, folder: Path, limit: float) -> Iterator[str]:
    """Run the cases until the limit in seconds is reached; yields what to print, and writes the files as it goes."""
    began = time.monotonic()
    about = report.machine(size.device)
    ceilings = measure_ceilings() if size.device == "cuda" else None
    name = f"{re.sub(r'[^a-z0-9]+', '-', about['gpu'].lower()).strip('-')}-{date.today().isoformat()}"
    if ceilings is not None:
        yield f"{about['gpu']}: copies {ceilings.copy / 1e12:.2f} TB/s, multiplies {ceilings.matmul / 1e12:.0f} TFLOP/s"
    yield report.HEADER
    results: list[report.Result] = []
    path = folder
    for i, plan in enumerate(plans):
        left_out = len(plans) - i
        if time.monotonic() - began > limit:
            yield f"\n{left_out} cases were left out: the limit of {limit:g} seconds was reached."
            break
        results.append(run_one(plan, size, ceilings))
        yield report.row(results[-1], ceilings)
        left_out -= 1
        path = report.write(folder, name, about, ceilings, results, left_out)
        torch.compiler.reset()  # a function compiled for too many shapes would run uncompiled, in silence
        gc.collect()
        if size.device == "cuda":
            torch.cuda.empty_cache()
    if results:
        yield f"\n{path}"


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
        return _refused(found, why or "nothing was checked")
    if ceilings is None:
        return _refused(found, "no GPU")
    others = {}
    timing = measure(case.run)
    for name in case.alternatives:
        others[name] = _alternative(case, name)
    return report.Result(plan.kernel, plan.shape, case.moved, case.flops, errors, timing, others)


def _refused(result: report.Result, why: str) -> report.Result:
    return report.Result(result.kernel, result.shape, result.moved, result.flops, result.errors, refused=why)


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
