"""Evaluations held against labels: does the stated number lie on the right side, and how far from the truth is it?

There are two kinds of label, and they are never mixed (facts: on Breakthrough they agree in four of five positions):

- `result_labels`: the mean result of games that a stated policy really played on from there, V^pi of that policy, which
  is what language Monte Carlo and TD estimate. The paper drops states whose mean is nearer to a draw than 0.2
  (arXiv 2411.14251, appendix on Breakthrough): `least=0.2`.
- `exact_labels`: V* by a solver.

Deviation from the authors' evaluation, on purpose: they skip answers that cannot be read; here such an answer is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlrl.evaluate.graders import Grader, exact_value
from nlrl.evaluate.rates import Rate
from nlrl.types import Evaluation, Failure, Group, History, Situation
from nlrl.values.calibration import Calibration, calibrate

LabelKey = tuple[tuple[str, History], str | None]
"""`Situation.key` and the move, None for the situation itself."""
Labels = Mapping[LabelKey, float]
"""What is true of each situation (and move), for the situation's player, on the scale of the return."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often a side was named rightly."""

    right: Rate
    """Among all that were asked, those without a readable answer included."""
    unparsed: int
    """Without a readable answer, so counted wrong."""
    undecided: int
    """The answer lies in the middle, on no side: counted wrong too."""
    by_side: tuple[tuple[str, Rate], ...]
    """Right answers among the cases in which this side is the true one; sides in alphabetical order."""

    @property
    def balanced(self) -> float:
        """Mean over the sides of their rates: 0.5 for one who always names the same side."""
        return float(np.mean([rate.share for _, rate in self.by_side])) if self.by_side else float("nan")


@dataclass(frozen=True, slots=True)
class ValueGrades:
    """Evaluations against one kind of label."""

    accuracy: Accuracy
    calibration: Calibration
    sideless: int
    """Labels within `least` of the middle, which accuracy leaves out and calibration does not."""


def accuracy_of(pairs_I: Iterable[tuple[str | None, str]], unparsed: int = 0, unplaced: int = 0) -> Accuracy:
    """Of (side that was named, true side) pairs; None stands for no side, `unparsed` of them for want of an answer.

    `unplaced` answers are wanting besides, without a known true side: wrong, and in no side's rate.
    """
    pairs = list(pairs_I)
    truths = Counter(true for _, true in pairs)
    right = Counter(true for said, true in pairs if said == true)
    return Accuracy(
        right=Rate(sum(right.values()), len(pairs) + unplaced),
        unparsed=unparsed + unplaced,
        undecided=sum(said is None for said, _ in pairs) - unparsed,
        by_side=tuple((side, Rate(right[side], truths[side])) for side in sorted(truths)),
    )


def grade_values(
    evaluations: Iterable[Evaluation],
    labels: Labels,
    *,
    seats: Sequence[str] = ("player", "nobody"),
    between: tuple[float, float] = (-1.0, 1.0),
    least: float = 0.0,
    unplaced: int = 0,
) -> ValueGrades:
    """Grades the numbers that evaluations state.

    Args:
        evaluations: what was answered; several of one situation and move all count.
        labels: every situation and move that was asked about. One without an evaluation, or with one that states no
            number, is unparsed.
        seats: names of the two sides: a situation's player, and who gains when that player does not. They decide what
            `balanced` balances: in games of two who wins, not whether the mover does.
        between: the smallest and the largest return there can be; halfway lies the middle between the sides.
        least: labels nearer to the middle than this, and those in it, have no side.
        unplaced: questions without a usable answer whose situation is not known (`unanswered`): wrong as well.

    Raises:
        ValueError: an evaluation has no label, or a player is no seat.
    """
    stated: dict[LabelKey, list[float | None]] = {key: [] for key in labels}
    for evaluation in evaluations:
        key = label_key(evaluation.situation, evaluation.action)
        if key not in stated:
            raise ValueError(f"'{key[0][1][-1][:60]}' ({key[1] or 'V'}) has an evaluation and no label; label all.")
        stated[key].append(evaluation.value.number)
    middle = sum(between) / 2
    pairs: list[tuple[str | None, str]] = []
    numbers: list[tuple[float | None, float]] = []
    unparsed = sideless = 0
    for key, label in labels.items():
        player = key[0][0]
        for number in stated[key] or [None]:
            numbers.append((number, label))
            if label == middle or abs(label - middle) < least:
                sideless += 1
                continue
            unparsed += number is None
            said = None if number is None or number == middle else _side(player, number > middle, seats)
            pairs.append((said, _side(player, label > middle, seats)))
    return ValueGrades(accuracy_of(pairs, unparsed, unplaced), calibrate(numbers, *between), sideless)


def label_key(situation: Situation, action: str | None = None) -> LabelKey:
    """What labels are looked up by."""
    return situation.key, action


def unanswered(
    failures: Iterable[Failure], evaluations: Iterable[Evaluation], situations: Iterable[Situation] = ()
) -> tuple[list[tuple[Situation, str | None]], int]:
    """What was asked for an evaluation and has none: (situation, move) pairs, and how many more cannot be placed.

    Args:
        failures: the bad replies; those to policies and improvers are passed over.
        evaluations: what came of the other questions, and of these when they were asked again.
        situations: where questions were asked; those of `evaluations` are known besides.
    """
    said = list(evaluations)
    known = {(s.call.game, s.call.step): s for s in (*(one.situation for one in said), *situations)}
    answered = {(one.situation.call.game, one.situation.call.step, one.action) for one in said}
    asked = {(f.call.game, f.call.step, f.call.action) for f in failures if f.call.role not in ("policy", "improve")}
    lost = sorted(asked - answered, key=repr)
    pairs = [(known[game, step], action) for game, step, action in lost if (game, step) in known]
    return pairs, len(lost) - len(pairs)


def exact_labels(pairs_I: Iterable[tuple[Situation, str | None]], grader: Grader) -> dict[LabelKey, float]:
    """V* of each situation, Q* of each move; left out where the solver is not certain."""
    found = {}
    for situation, action in pairs_I:
        value = exact_value(grader, situation.history[-1], situation.call.step, situation.player, action)
        if value is not None:
            found[label_key(situation, action)] = value
    return found


def result_labels(groups: Iterable[Group], games: int = 1) -> dict[LabelKey, float]:
    """Mean return of the games that went on from each situation (and move); those with fewer than `games` left out."""
    returns: dict[LabelKey, list[float]] = {}
    for group in groups:
        key = label_key(group.situation, group.action)
        returns.setdefault(key, []).extend(game.total_reward for game in group.games_K)
    return {key: float(np.mean(totals)) for key, totals in returns.items() if len(totals) >= games}


def _side(player: str, gains: bool, seats: Sequence[str]) -> str:
    if player not in seats or len(seats) != 2:
        raise ValueError(f"'{player}' is none of the two sides {', '.join(seats)}; give the names of the game's seats.")
    return player if gains else seats[1 - seats.index(player)]
