"""Shares and means with their 95 % intervals.

Source of the interval of a share: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
Journal of the American Statistical Association 22 (1927), 209-212; why not the textbook's: Brown, Cai and DasGupta,
"Interval estimation for a binomial proportion", Statistical Science 16 (2001), 101-133. It keeps its level where games
are few or nearly all won, which is where the normal interval claims certainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


def wilson(hits: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share, (low, high); (0, 1) when nothing was counted.

    Raises:
        ValueError: there are more hits than things counted, or the confidence is no probability below 1.
    """
    if not 0 <= hits <= count:
        raise ValueError(f"{hits} of {count} is no share; count every hit among the things counted.")
    if not 0 < confidence < 1:
        raise ValueError(f"A confidence lies between 0 and 1, not at {confidence}.")
    if count == 0:
        return 0.0, 1.0
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), hits / count
    centre = share + z * z / (2 * count)
    half = z * math.sqrt((share * (1 - share) + z * z / (4 * count)) / count)
    low, high = (centre - half) / (1 + z * z / count), (centre + half) / (1 + z * z / count)
    # At 0 and at all hits the bound is the share itself; rounding would leave it a hair beyond.
    return (0.0 if hits == 0 else low), (1.0 if hits == count else high)


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of how many."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        """Between 0 and 1; NaN when nothing was counted."""
        return self.hits / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.hits, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.2f} % ({100 * low:.2f} .. {100 * high:.2f}, {self.hits} of {self.count})"


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of measurements; NaN when there are none."""

    value: float
    half: float
    """Half the width of the 95 % interval by the normal approximation; NaN with fewer than two measurements."""
    count: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        return self.value - self.half, self.value + self.half

    def __str__(self) -> str:
        return f"{self.value:.3f} +- {self.half:.3f} ({self.count})"


def mean_of(values: Sequence[float]) -> Mean:
    """The mean with its interval."""
    count = len(values)
    if count == 0:
        return Mean(math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, math.nan, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    return Mean(mean, NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * deviation / math.sqrt(count), count)
