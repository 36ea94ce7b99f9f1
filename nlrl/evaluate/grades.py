"""The report of an evaluation: every grade there is, as one record, as metrics and as lines to print.

    report = Grades(
        games=grade_games(ends, seats_of(env)),
        moves=grade_moves(steps, grader),
        replies=grade_replies((c.request.call, c.failure) for c in reader.calls()),
        values={"exact": grade_values(evaluations, exact_labels(asked, grader))},
        faithfulness=grade_faithfulness(evaluations, "tic_tac_toe"),
    )
    report.figures()   # {"games/win": 0.94, "games/win low": ..., ...}

Every part may be left out. Baselines and loops report through this same record, so that their figures can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from nlrl.evaluate.faithfulness import Faithfulness, grade_faithfulness
from nlrl.evaluate.games import GameGrades, grade_games
from nlrl.evaluate.graders import Grader, make_grader
from nlrl.evaluate.moves import MoveGrades, grade_moves
from nlrl.evaluate.rates import Mean, Rate
from nlrl.evaluate.replies import ReplyGrades, grade_replies
from nlrl.evaluate.values import ValueGrades, exact_labels, grade_values, result_labels, unanswered


@dataclass(frozen=True, slots=True)
class Grades:
    """All that is known of how good an agent and its evaluations are."""

    games: GameGrades | None = None
    moves: MoveGrades | None = None
    replies: Mapping[str, ReplyGrades] = field(default_factory=dict)
    """By role; "all" for every reply."""
    values: Mapping[str, ValueGrades] = field(default_factory=dict)
    """By kind of label, whose name says whose results they are: "exact", "30 games of mcts:1000:100"."""
    faithfulness: Faithfulness | None = None

    def figures(self) -> dict[str, float]:
        """Every figure under a name "part/what", each rate and mean with its 95 % interval as "... low", "... high"."""
        found: dict[str, float] = {}
        for name, figure in self._figures():
            if isinstance(figure, Rate | Mean):
                low, high = figure.interval
                share = figure.share if isinstance(figure, Rate) else figure.value
                found |= {name: share, f"{name} low": low, f"{name} high": high}
            else:
                found[name] = float(figure)
        return found

    def lines(self) -> list[str]:
        """The same, one figure a line, to be printed."""
        return [f"{name:40s} {figure}" for name, figure in self._figures()]

    def _figures(self) -> Iterator[tuple[str, Rate | Mean | float]]:
        if self.games is not None:
            yield from _of_games(self.games)
        if self.moves is not None:
            yield from _of_moves(self.moves)
        for role, replies in self.replies.items():
            if not replies.parsed.count:
                continue
            for name in ("parsed", "legal", "at_first", "unanswered"):
                yield f"replies {role}/{name.replace('_', ' ')}", getattr(replies, name)
        for kind, values in self.values.items():
            yield from _of_values(kind, values)
        if self.faithfulness is not None:
            yield from self.faithfulness.figures()


def _of_games(games: GameGrades) -> Iterator[tuple[str, Rate | Mean | float]]:
    yield "games/win by seats", games.win_by_seats
    for results in (games.all, *(games.seats_P if len(games.seats_P) > 1 else ())):
        suffix = "" if results is games.all else f" as {results.seat}"
        for name in ("win", "draw", "loss", "forfeit"):
            yield f"games/{name}{suffix}", getattr(results, name)
        yield f"games/return{suffix}", results.returns
        yield f"games/steps{suffix}", results.steps


def _of_moves(moves: MoveGrades) -> Iterator[tuple[str, Rate | Mean | float]]:
    yield "moves/optimal", moves.optimal
    yield "moves/optimal by chance", moves.by_chance
    yield "moves/value lost", moves.value_lost
    yield "moves/ungraded", moves.ungraded
    yield "moves/without choice", moves.without_choice


def _of_values(kind: str, values: ValueGrades) -> Iterator[tuple[str, Rate | Mean | float]]:
    yield f"values {kind}/right", values.accuracy.right
    yield f"values {kind}/balanced", values.accuracy.balanced
    yield f"values {kind}/unparsed", values.accuracy.unparsed
    yield f"values {kind}/sideless", values.sideless
    for name in ("coverage", "bias", "absolute_error", "brier", "calibration_error", "correlation", "sign_agreement"):
        yield f"values {kind}/{name.replace('_', ' ')}", getattr(values.calibration, name)


__all__ = [
    "Grader",
    "Grades",
    "exact_labels",
    "grade_faithfulness",
    "grade_games",
    "grade_moves",
    "grade_replies",
    "grade_values",
    "make_grader",
    "result_labels",
    "unanswered",
]
