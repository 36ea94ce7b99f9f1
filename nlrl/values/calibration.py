"""The numbers inside evaluations, held against the exact values: are they stated, possible, and right?

The authors' pipeline never parses them (arXiv 2411.14251 has no scalar measure of its value models). What an evaluation
should be held against is V^pi of the policy it was made for; against V* it tells something else (`Calibration` does not
know which it was given).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 10


@dataclass(frozen=True, slots=True)
class Bin:
    """Evaluations that state about the same number."""

    low: float
    high: float
    count: int
    stated: float
    """Mean stated number."""
    exact: float
    """Mean exact value."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How the stated numbers compare with the exact values; figures are NaN where nothing usable was stated."""

    count: int
    """Evaluations in all."""
    missing: int
    """Those without a number."""
    impossible: int
    """Those whose number no return can have; like the missing ones they are in none of the figures below."""
    bias: float
    """Mean of stated minus exact: positive is too hopeful."""
    absolute_error: float
    """Mean of the distance."""
    brier: float
    """Mean squared distance after both are scaled to 0..1; where returns are won or lost, that is the Brier score plus
    or minus what cannot be known."""
    calibration_error: float
    """ECE: mean distance between a bin's mean stated number and its mean exact value, weighed by size."""
    correlation: float
    """Pearson's; NaN when either side never varies."""
    sign_agreement: float
    """Share that is on the same side of `middle` as the exact value, among those whose exact value is on a side."""
    bins: tuple[Bin, ...]

    @property
    def coverage(self) -> float:
        """Share of evaluations that state a possible number."""
        return (self.count - self.missing - self.impossible) / self.count if self.count else math.nan


def calibrate(
    pairs_I: Sequence[tuple[float | None, float]],
    low: float,
    high: float,
    *,
    middle: float | None = None,
    tolerance: float = 1e-9,
) -> Calibration:
    """Grades (stated number, exact value) pairs of a game whose returns lie between `low` and `high`.

    Args:
        pairs_I: what an evaluation stated (None for nothing) and what is true.
        low: the smallest return there can be.
        high: the largest.
        middle: what separates good from bad, halfway between them when None.
        tolerance: how far outside the range a number may lie, and how far from `middle` a value is on no side.

    Raises:
        ValueError: the range is empty, or an exact value lies outside it.
    """
    if not low < high:
        raise ValueError(f"Returns between {low} and {high} leave nothing to grade; give a low below a high.")
    outside = [exact for _, exact in pairs_I if not low - tolerance <= exact <= high + tolerance]
    if outside:
        raise ValueError(f"The exact value {outside[0]} is no return between {low} and {high}; widen the range.")
    stated_all = [(s, e) for s, e in pairs_I if s is not None]
    usable = [(s, e) for s, e in stated_all if possible(s, low, high, tolerance)]
    stated, exact = np.array(usable, float).reshape(-1, 2).T
    centre = (low + high) / 2 if middle is None else middle
    sided = np.abs(exact - centre) > tolerance
    agree = np.sign(stated - centre) == np.sign(exact - centre)
    bins = _bins(stated, exact, low, high)
    return Calibration(
        count=len(pairs_I),
        missing=len(pairs_I) - len(stated_all),
        impossible=len(stated_all) - len(usable),
        bias=_mean(stated - exact),
        absolute_error=_mean(np.abs(stated - exact)),
        brier=_mean(((stated - exact) / (high - low)) ** 2),
        calibration_error=sum(b.count * abs(b.stated - b.exact) for b in bins) / len(usable) if usable else math.nan,
        correlation=_correlation(stated, exact),
        sign_agreement=_mean(agree[sided]),
        bins=bins,
    )


def possible(number: float, low: float, high: float, tolerance: float = 1e-9) -> bool:
    """Whether a stated number is a return that the game can have."""
    return low - tolerance <= number <= high + tolerance


def _bins(stated: np.ndarray, exact: np.ndarray, low: float, high: float) -> tuple[Bin, ...]:
    edges = np.linspace(low, high, BINS + 1)
    which = np.clip(np.searchsorted(edges, stated, side="right") - 1, 0, BINS - 1)
    return tuple(
        Bin(float(edges[b]), float(edges[b + 1]), int(mine.sum()), _mean(stated[mine]), _mean(exact[mine]))
        for b in range(BINS)
        if (mine := which == b).any()
    )


def _correlation(stated: np.ndarray, exact: np.ndarray) -> float:
    if len(stated) < 2 or np.ptp(stated) == 0 or np.ptp(exact) == 0:
        return math.nan
    return float(np.corrcoef(stated, exact)[0, 1])


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
