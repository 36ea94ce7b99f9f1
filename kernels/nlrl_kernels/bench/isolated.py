"""Runs cases in a process beside this one: a kernel that breaks the GPU's context, or hangs, costs only itself."""

from collections.abc import Generator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import torch

from nlrl_kernels.bench.case import Plan, Size
from nlrl_kernels.bench.report import Result
from nlrl_kernels.bench.timing import Ceilings


def results(plans: Sequence[Plan], size: Size, ceilings: Ceilings | None, patience: float) -> Generator[Result]:
    """The result of each plan, in turn; a case that takes longer than ``patience`` seconds is ended and refused."""
    worker: tuple[BaseProcess, Connection] | None = None
    try:
        for plan in plans:
            worker = worker or _started(size, ceilings)
            process, pipe = worker
            why, is_fit = f"it did not end within {patience:g} seconds", False
            result = None
            try:
                pipe.send((plan.kernel, plan.shape))
                if pipe.poll(patience):
                    result, is_fit = pipe.recv()
            except (EOFError, OSError):
                process.join(5.0)
                why = f"its process ended with code {process.exitcode}"
            if not is_fit:
                _end(process, pipe)
                worker = None
            yield result or Result(plan.kernel, plan.shape, refused=why)
    finally:
        if worker is not None:
            _end(*worker)


def _started(size: Size, ceilings: Ceilings | None) -> tuple[BaseProcess, Connection]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, size, ceilings), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _end(process: BaseProcess, pipe: Connection) -> None:
    pipe.close()
    process.kill()
    process.join()


def _serve(pipe: Connection, size: Size, ceilings: Ceilings | None) -> None:
    """Answer each (kernel, shape) with its result, and with whether this process can go on."""
    from nlrl_kernels.bench import runner

    plans = {(plan.kernel, plan.shape): plan for plan in runner.planned(size)}
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        result = runner.run_one(plans[asked], size, ceilings)
        pipe.send((result, _is_fit(size)))
        runner.clean(size)


def _is_fit(size: Size) -> bool:
    """Whether the GPU still answers: after an access to memory that is not there, nothing does in this process."""
    try:
        if size.device == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
