"""What the benchmark found: records, a file that grows with each, and a table."""

import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nlrl_kernels.bench.timing import Ceilings, Timing

HEADER = (
    "| kernel | shape | ms | GB | TFLOP | share of copy | share of matmul | alternative: ms (ratio to ours) |\n"
    "|---|---|---|---|---|---|---|---|"
)


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
    """

    kernel: str
    shape: str
    moved: int = 0
    flops: int = 0
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    timing: Timing | None = None
    alternatives: dict[str, Alternative] = field(default_factory=dict)
    refused: str | None = None


def row(result: Result, ceilings: Ceilings | None) -> str:
    """A line of the table."""
    start = f"| {result.kernel} | {result.shape} |"
    if result.timing is None or ceilings is None:
        return f"{start} refused: {result.refused} | {result.moved / 1e9:.3g} | {result.flops / 1e12:.3g} | | | |"
    ms = result.timing.median
    others = [f"{name}: {_ratio(other, ms)}" for name, other in result.alternatives.items()]
    copied = result.moved / ms * 1e3 / ceilings.copy
    multiplied = f"{result.flops / ms * 1e3 / ceilings.matmul:.0%}" if result.flops else "-"
    eager = "" if result.timing.is_graph else " (eager)"
    figures = f"{result.moved / 1e9:.3g} | {result.flops / 1e12:.3g} | {copied:.0%} | {multiplied}"
    return f"{start} {ms:.4g}{eager} | {figures} | {'; '.join(others)} |"


def _ratio(other: Alternative, ms: float) -> str:
    if other.timing is None:
        return other.why_not or "no figure"
    eager = "" if other.timing.is_graph else ", eager"
    return f"{other.timing.median:.4g} ({other.timing.median / ms:.2f}x{eager})"


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


def write(
    folder: Path, name: str, about: dict[str, Any], ceilings: Ceilings | None, results: list[Result], left_out: int
) -> Path:
    """Write ``name``.json and .md anew; a reader always finds a whole file."""
    folder.mkdir(parents=True, exist_ok=True)
    limits = None if ceilings is None else asdict(ceilings)
    record = {"machine": about, "ceilings": limits, "left_out": left_out, "results": [asdict(r) for r in results]}
    lines = [f"{about['gpu']}, torch {about['torch']}, triton {about['triton']}"]
    if ceilings is not None:
        lines[0] += f": copies {ceilings.copy / 1e12:.2f} TB/s, multiplies {ceilings.matmul / 1e12:.0f} TFLOP/s"
    lines += ["", HEADER, *(row(result, ceilings) for result in results)]
    if left_out:
        lines += ["", f"{left_out} cases were left out: the time limit was reached."]
    for suffix, text in ((".json", json.dumps(record, indent=1)), (".md", "\n".join(lines))):
        path = folder / (name + suffix)
        draft = path.with_suffix(suffix + ".draft")
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
    return folder / f"{name}.json"
