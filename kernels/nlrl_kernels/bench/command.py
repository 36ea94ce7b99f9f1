"""The command ``nlrl bench kernels``, which is also ``python -m nlrl_kernels.bench``."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Choice:
    """What is to be run, and where files go.

    Attributes:
        only: families or kernels; empty for all.
        quick: a few shapes of each kernel.
        check: tiny shapes, without times; on a machine without a GPU in Triton's interpreter.
        listed: name the cases and stop.
        limit: no case is started after so many seconds.
        processes: that compile beforehand; 0 compiles each case when its turn comes, None asks the machine.
    """

    only: Sequence[str] = ()
    quick: bool = False
    check: bool = False
    listed: bool = False
    limit: float = 540.0
    out: Path = Path("runs/bench")
    processes: int | None = None


def bench(choice: Choice) -> int:
    """Run, print as results come, write them; 0 when every case that ran is right, 1 when one is not, 2 for what
    cannot be run.
    """
    has_gpu = torch.cuda.is_available()
    if not has_gpu:  # must be set before triton is imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    try:
        import triton  # noqa: F401
    except ImportError:
        return _refused("The benchmark needs Triton: install the package triton.")
    from nlrl_kernels.bench import runner
    from nlrl_kernels.bench.case import Size

    device = "cuda" if has_gpu else "cpu"
    size = Size(device, quick=choice.quick, tiny=choice.check)
    try:
        plans = runner.planned(size, choice.only)
    except ValueError as error:
        return _refused(str(error))
    if choice.listed:
        print("\n".join(f"{plan.kernel}: {plan.shape}" for plan in plans))
        return 0
    if not (has_gpu or choice.check):
        return _refused("There is no GPU here to time kernels on: add --check to hold each to its reference instead.")
    began = time.monotonic()
    processes = runner.processes_for(device) if choice.processes is None else choice.processes
    if processes and not choice.check:
        for complaint in runner.warm(plans, size, processes, choice.limit / 3):
            print(complaint, flush=True)
        print(f"compiled in {time.monotonic() - began:.0f} s", flush=True)
    is_right = runner.run_all(plans, size, choice.out, choice.limit - (time.monotonic() - began), _say)
    return int(not is_right)


def _say(line: str) -> None:
    print(line, flush=True)


def _refused(why: str) -> int:
    print(why, file=sys.stderr)
    return 2
