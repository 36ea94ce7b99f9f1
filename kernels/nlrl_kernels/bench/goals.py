"""What the kernels are to reach, as one table, and how far a run of the benchmark shows it.

A goal is held against every planned case whose kernel and shape it names: "reached" and "not reached" are said of the
worst of them, and only once all have a time; a case that was refused has missed its goal.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nlrl_kernels.bench.case import Plan
from nlrl_kernels.bench.report import Result
from nlrl_kernels.bench.timing import Ceilings, ratio

Measure = Literal["faster", "copy", "matmul", "attention", "flat"]
"""What is compared: times as fast as an alternative; the share of the copy's bytes, of the product's FLOP or of
FlashAttention's own FLOP a second; or how much longer the slowest of the shapes takes than the fastest (at most)."""
Status = Literal["reached", "not reached", "not measured"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure that is asked for.

    Attributes:
        row: what it is about, as the table of results names it.
        kernel, shape: expressions; which cases it is held against.
        measure: what is compared.
        bound: the least that reaches it; for "flat" the most.
        alternative: expression, for "faster"; of several that match and ran, the fastest counts.
    """

    row: str
    kernel: str
    shape: str
    measure: Measure
    bound: float
    alternative: str = ""

    def covers(self, kernel: str, shape: str) -> bool:
        """Whether it is held against this case."""
        return bool(re.fullmatch(self.kernel, kernel) and re.search(self.shape, shape))

    def __str__(self) -> str:
        if self.measure == "faster":
            return f"{self.bound:.2f}x {self.alternative.replace(chr(92), '')}"
        if self.measure == "flat":
            return f"times within {self.bound:.2f}x"
        return f"{self.bound:.0%} of {self.measure}"


_LONG = r"\b(8192|16384|32768|65536)\b"
_FLASH = r"FlashAttention \(vLLM\), composed"
GOALS: tuple[Goal, ...] = (
    Goal("diff attention, prefill", "diff_attention_varlen", _LONG, "faster", 1.6, _FLASH),
    Goal("diff attention, prefill", "diff_attention_varlen", _LONG, "attention", 0.7),
    Goal("diff attention, decode", "diff_attention_paged", "decode", "faster", 1.8, "two passes|composed"),
    Goal("diff attention, decode", "diff_attention_paged", "decode of 64 x 8192", "copy", 0.85),
    Goal("pinned window, prefill", "pinned_window_attention", r"^1 x \d{4}", "faster", 2.0, "FlexAttention"),
    Goal("pinned window, decode", "pinned_window_attention", r"^64 x 1 of", "flat", 1.1),
    Goal("pinned window, decode", "pinned_window_attention", r"^64 x 1 of", "copy", 0.8),
    Goal("selective scan", "selective_scan_varlen", r"^(1|16) x", "faster", 1.0, "vLLM selective_scan_fn"),
    Goal("state update", "selective_state_update", r"^(64|256) rows", "copy", 0.85),
    # The reference is a loop over time: of more tokens its compilation takes minutes.
    Goal("selective scan, training", "selective_scan", "x 128, forward and backward", "faster", 5.0, "compile"),
    Goal("nGPT residual step", "residual_step", "^(2048|16384|65536) rows", "faster", 1.0, "torch.compile"),
    # 2,048 rows are 5 us of copying: what a launch takes would be measured.
    Goal("nGPT residual step", "residual_step", "^(16384|65536) rows", "copy", 0.9),
    Goal("nGPT q/k step", "qk_step", "^(2048|16384|65536) rows", "faster", 1.0, "torch.compile"),
    Goal("nGPT q/k step", "qk_step", "^(16384|65536) rows", "copy", 0.9),
    Goal("nGPT normalisation", "normalize_vectors_", "", "faster", 2.0, "torch"),
    Goal("1-bit, one row", "binary_linear", "^1 x", "faster", 8.0, "cuBLAS"),
    Goal("1-bit, one row", "binary_linear", "^1 x", "copy", 0.75),
    Goal("1-bit, many rows", "binary_linear", r"^\d{4,} x", "faster", 1 / 1.15, "cuBLAS"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a goal stands: its status, the worst figure found and the shape it is of, and how many cases have a time."""

    goal: Goal
    status: Status
    found: float | None
    shape: str
    measured: int
    planned: int

    @property
    def line(self) -> str:
        """A line of the table."""
        found = "" if self.found is None else f"{self.found:.2f}x" if self.is_ratio else f"{self.found:.0%}"
        counted = f"{self.measured} of {self.planned}"
        return f"| {self.goal.row} | {self.goal} | {self.status} | {found} | {self.shape} | {counted} |"

    @property
    def is_ratio(self) -> bool:
        """Whether its figure is a ratio of times, not a share."""
        return self.goal.measure in ("faster", "flat")


HEADER = "| goal | asked for | status | worst found | shape | cases timed |\n|---|---|---|---|---|---|"


def ordered(plans: Sequence[Plan]) -> list[Plan]:
    """The plans with a goal first, one case of every goal before the second of any; a cut run then says most."""
    first = []
    of_goals = [[plan for plan in plans if goal.covers(plan.kernel, plan.shape)] for goal in GOALS]
    for turn in range(max(map(len, of_goals), default=0)):
        first += [covered[turn] for covered in of_goals if turn < len(covered)]
    return list(dict.fromkeys([*first, *plans]))


def judge(plans: Sequence[Plan], results: Sequence[Result], ceilings: Ceilings | None) -> list[Verdict]:
    """Every goal that has a case among the plans."""
    return [
        _judged(goal, covered, results, ceilings)
        for goal in GOALS
        if (covered := {(plan.kernel, plan.shape) for plan in plans if goal.covers(plan.kernel, plan.shape)})
    ]


def missed(result: Result, ceilings: Ceilings | None) -> list[Goal]:
    """The goals that this one result misses; what is told only by several shapes together is not among them."""
    covering = [goal for goal in GOALS if goal.measure != "flat" and goal.covers(result.kernel, result.shape)]
    figures = [(goal, _figure(goal, result, ceilings)) for goal in covering]
    return [goal for goal, found in figures if found is not None and found < goal.bound]


def _judged(goal: Goal, covered: set[tuple[str, str]], results: Sequence[Result], ceilings: Ceilings | None) -> Verdict:
    own = [result for result in results if (result.kernel, result.shape) in covered]
    refused = [result for result in own if result.is_wrong]
    figures = [(found, result.shape) for result in own if (found := _figure(goal, result, ceilings)) is not None]
    count = (len(figures), len(covered))
    if refused:
        return Verdict(goal, "not reached", None, f"{refused[0].shape}: refused", *count)
    if not figures or (goal.measure == "flat" and len(figures) < 2):
        return Verdict(goal, "not measured", None, "", *count)
    if goal.measure == "flat":
        slowest, fastest = max(figures), min(figures)
        found, shape, is_missed = slowest[0] / fastest[0], slowest[1], slowest[0] / fastest[0] > goal.bound
    else:
        (found, shape), is_missed = min(figures), min(figures)[0] < goal.bound
    status = "not reached" if is_missed else "reached" if len(figures) == len(covered) else "not measured"
    return Verdict(goal, status, found, shape, *count)


def _figure(goal: Goal, result: Result, ceilings: Ceilings | None) -> float | None:
    """What the goal compares, of one case; None where there is no time of it or of what it is compared with."""
    if result.timing is None or ceilings is None:
        return None
    seconds = result.timing.median / 1e3
    if goal.measure == "flat":
        return result.timing.median
    if goal.measure == "faster":
        ratios = [
            ratio(other.timing, result.timing)
            for name, other in result.alternatives.items()
            if other.timing is not None and re.search(goal.alternative, name)
        ]
        return min(ratios, default=None)
    rate = {"copy": ceilings.copy, "matmul": ceilings.matmul, "attention": ceilings.attention}[goal.measure]
    work = result.moved if goal.measure == "copy" else result.flops
    return None if rate is None else work / seconds / rate
