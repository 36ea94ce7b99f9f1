"""Chosen moves held against perfect play: how often the best one was made, and what the others cost.

Only positions are graded in which the solver is certain of every move: in Connect Four a rule that also counted proven
wins would count good moves more often than bad ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nlrl.evaluate.graders import Grader
from nlrl.evaluate.rates import Mean, Rate, mean_of
from nlrl.types import Step

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class MoveGrades:
    """The moves of the run's own player."""

    optimal: Rate
    """Moves that keep the value of the position, among those that were graded."""
    value_lost: Mean
    """V* before minus Q* of the move, a graded move."""
    by_chance: float
    """The share of optimal moves that uniformly random play would have made in the same positions."""
    ungraded: int
    """Moves in positions of which the solver is not certain."""
    without_choice: int
    """Decisions that ended in no move, or in one that is not legal; in none of the figures above."""


def grade_moves(steps: Iterable[Step], grader: Grader) -> MoveGrades:
    """Grades the own moves among `steps`; an opponent's are passed over."""
    lost: list[float] = []
    chance: list[float] = []
    ungraded = without = 0
    for step in steps:
        if not step.decision.own:
            continue
        if step.decision.choice is None or not step.legal:
            without += 1
            continue
        values = grader.moves(step.decision.history[-1], step.step)
        if values is None:
            ungraded += 1
            continue
        best = max(values.values())
        lost.append(best - values[step.action])
        chance.append(sum(value >= best - TOLERANCE for value in values.values()) / len(values))
    optimal = sum(loss <= TOLERANCE for loss in lost)
    return MoveGrades(Rate(optimal, len(lost)), mean_of(lost), mean_of(chance).value, ungraded, without)
