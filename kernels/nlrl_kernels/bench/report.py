"""What the benchmark found: records, a file that grows with each, and a table."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nlrl_kernels.bench.profile import Launch
from nlrl_kernels.bench.timing import Ceilings, Timing, ratio

HEADER = (
    "| kernel | shape | ms (10 % .. 90 %) | from Python, ms | GB | TFLOP | share of copy | share of matmul "
    "| alternative: ms (ratio to ours) |\n"
    "|---|---|---|---|---|---|---|---|---|"
)

NOT_TIMED = ("no GPU", "only checked")
"""What is refused for no fault of the kernel."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """What another way took, or why there is no figure."""

    timing: Timing | None
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """One case: its figures, or why there are none.

    Attributes:
        errors: name of each check to its error relative to the largest expected entry, and the tolerance.
        refused: why no time is reported; None where there is one.
        launches: what our kernels take of the GPU, where a goal is missed.
    """

    kernel: str
    shape: str
    moved: int = 0
    flops: int = 0
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    timing: Timing | None = None
    alternatives: dict[str, Alternative] = field(default_factory=dict)
    refused: str | None = None
    launches: list[Launch] = field(default_factory=list)

    @property
    def is_wrong(self) -> bool:
        """Whether the kernel stopped or was found wrong, rather than only not timed."""
        return self.refused is not None and self.refused not in NOT_TIMED


def row(result: Result, ceilings: Ceilings | None) -> str:
    """A line of the table."""
    start = f"| {result.kernel} | {result.shape} |"
    if result.timing is None or ceilings is None:
        return f"{start} refused: {result.refused} | | {result.moved / 1e9:.3g} | {result.flops / 1e12:.3g} | | | |"
    timing, ms = result.timing, result.timing.median
    others = [f"{name}: {_beside(other, timing)}" for name, other in result.alternatives.items()]
    copied = result.moved / ms * 1e3 / ceilings.copy
    multiplied = f"{result.flops / ms * 1e3 / ceilings.matmul:.0%}" if result.flops else "-"
    times = f"{ms:.4g} ({timing.low:.4g} .. {timing.high:.4g}){'' if timing.is_graph else ' eager'}"
    python = "" if timing.eager is None else f"{timing.eager:.4g}"
    figures = f"{result.moved / 1e9:.3g} | {result.flops / 1e12:.3g} | {copied:.0%} | {multiplied}"
    return f"{start} {times} | {python} | {figures} | {'; '.join(others)} |"


def _beside(other: Alternative, ours: Timing) -> str:
    if other.timing is None:
        return other.why_not or "no figure"
    times = ratio(other.timing, ours)
    if other.timing.is_graph == ours.is_graph:
        return f"{other.timing.median:.4g} ({times:.2f}x)"
    return f"{other.timing.eager or other.timing.median:.4g} ({times:.2f}x, both from Python)"


def machine(device: str) -> dict[str, Any]:
    """What a figure depends on."""
    import triton

    is_gpu = device == "cuda"
    return {
        "gpu": torch.cuda.get_device_name() if is_gpu else "no GPU",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the benchmark as it stands.

    Attributes:
        about: what a figure depends on, as ``machine`` says it.
        goals: the table of goals, its head included, as lines.
        left_out: cases for which there was no time.
    """

    about: dict[str, Any]
    ceilings: Ceilings | None
    results: Sequence[Result]
    goals: Sequence[str]
    left_out: int


def write(folder: Path, name: str, run: Run) -> Path:
    """Write ``name``.json and .md anew; a reader always finds a whole file."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(asdict(run), indent=1)), (".md", "\n".join(lines(run)))):
        path = folder / (name + suffix)
        draft = path.with_suffix(suffix + ".draft")
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
    return folder / f"{name}.json"


def lines(run: Run) -> list[str]:
    """The record for reading: goals, cases, and the kernels of those that miss a goal."""
    profiles = [
        f"- {result.kernel}, {result.shape}: {'; '.join(map(str, result.launches))}"
        for result in run.results
        if result.launches
    ]
    about = f"{run.about['gpu']}, torch {run.about['torch']}, triton {run.about['triton']}{limits(run.ceilings)}"
    found = [about, "", *run.goals, "", HEADER, *(row(result, run.ceilings) for result in run.results)]
    if profiles:
        found += ["", "Kernels of the cases that miss a goal:", "", *profiles]
    if run.left_out:
        found += ["", f"{run.left_out} cases were left out: the time limit was reached."]
    return found


def limits(ceilings: Ceilings | None) -> str:
    """What the GPU can do at most, as the end of a sentence."""
    if ceilings is None:
        return ""
    attention = "" if ceilings.attention is None else f", attends at {ceilings.attention / 1e12:.0f} TFLOP/s"
    return f": copies {ceilings.copy / 1e12:.2f} TB/s, multiplies {ceilings.matmul / 1e12:.0f} TFLOP/s{attention}"
