"""Intervals against scipy, results by seat, replies by role."""

import math
from typing import Literal

import pytest

from nlrl.evaluate.games import grade_games
from nlrl.evaluate.rates import Rate, mean_of, wilson
from nlrl.evaluate.replies import grade_replies
from nlrl.types import CallId, Failure, FailureKind, GameEnd, Role


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 30), (223, 512), (2999, 3000)])
def test_wilson_is_scipys(hits, count, confidence):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(hits, count).proportion_ci(confidence, method="wilson")
    assert wilson(hits, count, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_counted_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isnan(Rate(0, 0).share)
    assert mean_of([]).count == 0
    assert math.isnan(mean_of([1.0]).half)
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, 1.0)


def test_a_mean_and_its_interval():
    # 1, 2, 3, 4: deviation sqrt(5/3); half is 1.959964 * 1.290994 / 2.
    mean = mean_of([1.0, 2.0, 3.0, 4.0])
    assert mean.value == 2.5
    assert mean.half == pytest.approx(1.2651513, abs=1e-6)


def end(game, total, outcome: Literal["success", "horizon", "forfeit", "failure"] = "failure", steps=5):
    return GameEnd(game, total, steps, outcome)


def test_results_by_seat_and_alternating():
    ends = [
        end(0, 1.0, "success"), end(2, 1.0, "success"), end(4, 0.0), end(6, -1.0, "forfeit"),
        end(1, -1.0), end(3, 1.0, "success"),
    ]  # fmt: skip
    grades = grade_games(ends, ("O", "X"))
    first, second = grades.seats_P
    assert (first.win, first.draw, first.loss, first.forfeit) == (Rate(2, 4), Rate(1, 4), Rate(1, 4), Rate(1, 4))
    assert (second.win, second.draw, second.loss) == (Rate(1, 2), Rate(0, 2), Rate(1, 2))
    assert grades.all.win == Rate(3, 6)
    assert grades.win_by_seats == 0.5
    assert grades.all.returns.value == pytest.approx(1 / 6)
    assert grade_games(ends, ("O", "X"), lambda game: 0).seats_P[0].win == Rate(3, 6)
    with pytest.raises(ValueError, match="once"):
        grade_games([end(0, 1.0), end(0, 1.0)])


def test_a_game_of_one_is_won_by_its_success_whatever_it_returns():
    grades = grade_games([end(0, -7.0, "success"), end(1, -101.0, "horizon"), end(2, -4.0, "forfeit")])
    assert grades.all.win == Rate(1, 3)
    assert grades.all.draw == Rate(0, 3)
    assert grades.all.loss == Rate(2, 3)
    assert grades.all.forfeit == Rate(1, 3)


def test_replies_by_role_and_what_stays_unanswered():
    def call(game, role: Role = "policy", attempt=0):
        return CallId(game, 0, role, attempt=attempt)

    def bad(one, kind: FailureKind):
        return one, Failure(one, kind, "", "")

    calls = [
        (call(0), None),
        bad(call(1), "illegal"), (call(1, attempt=1), None),
        bad(call(2), "format"), bad(call(2, attempt=1), "cut"), bad(call(2, attempt=2), "illegal"),
        (call(0, "value"), None),
    ]  # fmt: skip
    grades = grade_replies(calls)
    assert set(grades) == {"all", "policy", "value"}
    policy = grades["policy"]
    assert policy.parsed == Rate(4, 6)
    assert policy.legal == Rate(2, 4)
    assert policy.at_first == Rate(1, 3)
    assert policy.unanswered == Rate(1, 3)
    assert policy.failures == (("cut", 1), ("format", 1), ("illegal", 2))
    assert grades["all"].parsed == Rate(5, 7)
    assert grades["value"].unanswered == Rate(0, 1)
