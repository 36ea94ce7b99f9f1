"""The mean over seeds with its 95 % interval by Student's t: few seeds, and nothing known of their spread beforehand.

Source: W. S. Gosset ("Student"), "The probable error of a mean", Biometrika 6 (1908), 1-25; the distribution function
in closed form for whole degrees of freedom: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and
26.7.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlrl.evaluate.rates import CONFIDENCE, Mean


def over_seeds(values: Sequence[float]) -> Mean:
    """The mean of one figure a seed; its half width is NaN with fewer than two seeds."""
    count = len(values)
    if count == 0:
        return Mean(math.nan, math.nan, 0)
    mean = math.fsum(values) / count
    if count == 1:
        return Mean(mean, math.nan, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Mean(mean, t_quantile((1 + CONFIDENCE) / 2, count - 1) * deviation / math.sqrt(count), count)


def t_quantile(probability: float, freedom: int) -> float:
    """The t below which a share `probability` of Student's distribution lies, for 0.5 to below 1.

    Raises:
        ValueError: another probability, or no degree of freedom.
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError("A quantile of Student's t is taken at 0.5 to below 1, with at least one degree of freedom.")
    low, high = 0.0, 1.0
    while within(high, freedom) < 2 * probability - 1:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < 2 * probability - 1 else (low, middle)
    return (low + high) / 2


def within(t: float, freedom: int) -> float:
    """The share of Student's distribution between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
