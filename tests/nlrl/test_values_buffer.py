"""The buffer of value sets, and the numbers inside evaluations against exact ones."""

import math
from collections import Counter

import numpy as np
import pytest

from nlrl.values.buffer import merge
from nlrl.values.calibration import calibrate


def sets():
    return [[f"a{i}" for i in range(7)], [f"b{i}" for i in range(3)], [f"c{i}" for i in range(20)], ["d0", "d1"]]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_concatenation_keeps_everything_of_the_last_sets_in_another_order():
    merged = merge(sets(), 3, rng())
    assert sorted(merged) == sorted(sets()[1] + sets()[2] + sets()[3])
    assert merged != sets()[1] + sets()[2] + sets()[3]
    assert merge(sets(), 3, rng()) == merged
    assert len(merge(sets(), 99, rng())) == 32
    assert merge([], 3, rng()) == []


def test_equal_sampling_takes_as_many_of_each_without_repeating():
    merged = merge(sets(), 3, rng(), how="equal")
    assert Counter(item[0] for item in merged) == {"b": 2, "c": 2, "d": 2}
    assert len(set(merged)) == 6
    larger = merge(sets(), 3, rng(), how="equal", each=5)
    assert Counter(item[0] for item in larger) == {"b": 3, "c": 5, "d": 2}
    drawn = Counter(item for seed in range(400) for item in merge(sets(), 2, rng(seed), how="equal") if item[0] == "c")
    assert len(drawn) == 20
    # 800 draws over 20 items: 40 each, deviation about 6.
    assert max(drawn.values()) < 65
    assert min(drawn.values()) > 18


def test_a_buffer_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one set"):
        merge(sets(), 0, rng())


def test_exact_numbers_are_perfectly_calibrated():
    exact = np.linspace(-1, 1, 41)
    found = calibrate([(float(x), float(x)) for x in exact], -1, 1)
    assert (found.count, found.missing, found.impossible, found.coverage) == (41, 0, 0, 1.0)
    assert (found.bias, found.absolute_error, found.brier, found.calibration_error) == (0, 0, 0, 0)
    assert found.correlation == pytest.approx(1)
    assert found.sign_agreement == 1
    assert sum(b.count for b in found.bins) == 41


def test_figures_by_hand():
    pairs = [(0.5, 1.0), (0.5, -1.0), (-0.5, -1.0), (None, 1.0), (3.0, 1.0), (0.0, 1.0)]
    found = calibrate(pairs, -1, 1)
    assert (found.count, found.missing, found.impossible) == (6, 1, 1)
    assert found.coverage == pytest.approx(4 / 6)
    assert found.bias == pytest.approx((-0.5 + 1.5 + 0.5 - 1.0) / 4)
    assert found.absolute_error == pytest.approx((0.5 + 1.5 + 0.5 + 1.0) / 4)
    assert found.brier == pytest.approx((0.25**2 + 0.75**2 + 0.25**2 + 0.5**2) / 4)
    # Bins: two at 0.5 whose exact mean is 0, one at -0.5 (exact -1), one at 0 (exact 1).
    assert found.calibration_error == pytest.approx((2 * 0.5 + 0.5 + 1.0) / 4)
    # 0.0 is on no side, so it does not agree with 1.
    assert found.sign_agreement == pytest.approx(2 / 4)
    assert [(b.count, b.stated, b.exact) for b in found.bins] == [(1, -0.5, -1.0), (1, 0.0, 1.0), (2, 0.5, 0.0)]


def test_a_hopeful_evaluator_is_correlated_and_badly_calibrated():
    truth = rng().uniform(-1, 0, 2000)
    found = calibrate([(float(x) + 0.9, float(x)) for x in truth], -1, 1)
    assert found.correlation == pytest.approx(1)
    assert found.bias == pytest.approx(0.9)
    assert found.calibration_error == pytest.approx(0.9)
    assert found.brier == pytest.approx(0.45**2)


def test_where_nothing_is_stated_nothing_is_claimed():
    found = calibrate([(None, 0.5), (7.0, 0.5)], -1, 1)
    assert found.coverage == 0
    assert all(math.isnan(x) for x in (found.bias, found.brier, found.calibration_error, found.correlation))
    assert math.isnan(calibrate([], -1, 1).coverage)
    assert math.isnan(calibrate([(0.5, 0.1), (0.5, 0.2)], -1, 1).correlation)


def test_a_range_that_cannot_be_is_one_sentence():
    with pytest.raises(ValueError, match="low below a high"):
        calibrate([], 1, 1)
    with pytest.raises(ValueError, match="widen the range"):
        calibrate([(0.0, 2.0)], -1, 1)
    with pytest.raises(ValueError, match="widen the range"):
        calibrate([(0.0, math.nan)], -1, 1)
