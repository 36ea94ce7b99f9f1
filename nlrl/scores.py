"""Grading a run as it goes: figures of each phase of each iteration, and the rows of its final table.

All is held against what the game's exact solver says (`nlrl.evaluate`): moves against perfect play; stated values
against perfect play's and against the results of the games they describe, which are two things: who
describes a weak policy truly disagrees with perfect play.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from nlrl.evaluate.faithfulness import Faithfulness, grade_faithfulness
from nlrl.evaluate.games import GameGrades, grade_games
from nlrl.evaluate.graders import Grader, make_grader
from nlrl.evaluate.grades import Grades
from nlrl.evaluate.moves import MoveGrades, grade_moves
from nlrl.evaluate.rates import mean_of
from nlrl.evaluate.values import ValueGrades, exact_labels, grade_values, label_key, result_labels, unanswered
from nlrl.task import Task
from nlrl.terminal.result import ResultRow
from nlrl.types import Estimated, Evaluation, Failure, GameEnd, Group, Improved, LoopEvent, PhaseStart, Step, Trained
from nlrl_envs.base import seats_of

Item = TypeVar("Item")

LOOPS = ("policy_iteration", "td_values", "actor_critic")
"""Stages that have iterations; the others are an agent's games."""
MOST_GRADED = 5000
"""Moves, and evaluations, of a phase that are held against the solver; more are thinned out evenly."""
MOST_SEARCHED = 100
"""The same where each takes a search of a fraction of a second (Connect Four)."""


@dataclass(slots=True)
class PhaseScores:
    """What happened in a phase."""

    stage: str
    iteration: int
    name: str
    ends: list[GameEnd] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    estimated: Estimated | None = None
    improved: Improved | None = None
    trained: Trained | None = None
    moves: MoveGrades | None = None
    values: dict[str, ValueGrades] = field(default_factory=dict)
    faithfulness: Faithfulness | None = None

    @property
    def calls(self) -> int:
        """Questions that were asked."""
        noted = sum(one.calls for one in (self.estimated, self.improved) if one is not None)
        return noted + sum(step.decision.calls for step in self.steps)

    @property
    def title(self) -> str:
        """Whose games or values these are."""
        if self.stage not in LOOPS:
            return self.stage
        return f"iteration {self.iteration}" if self.iteration else "untrained"

    def headline(self, seats: int) -> str:
        """The figure of the phase that one wants to see at once; "" for a phase that has none."""
        if self.name in ("evaluate", "improve") and self.ends:
            what = self.title
            if seats > 1:
                return f"{what}: won {grade_games(self.ends, ('player',) * seats).all.win}"
            return f"{what}: mean return {mean_of([end.total_return for end in self.ends])}"
        if "exact" in self.values:
            return f"iteration {self.iteration}: values on the right side {self.values['exact'].accuracy.right}"
        return ""

    @property
    def failures(self) -> list[Failure]:
        """Bad replies."""
        noted = [failure for one in (self.estimated, self.improved) if one is not None for failure in one.failures]
        return [*noted, *(failure for step in self.steps for failure in step.decision.failures)]


class Scores:
    """The figures of a run. Feed it each event with `take`; a phase is graded when the next begins or at `settle`."""

    def __init__(
        self, task: Task, *, exact: bool = True, moves: bool = True, labels: Mapping[str, str] | None = None
    ) -> None:
        self._labels = labels or {}
        """What a stage's row is called, where not like the stage."""
        self._moves = moves
        """Whether rows say how often moves were the best."""
        self._id = task.id
        self._seats = seats_of(task.env)
        self._grader: Grader | None = make_grader(task.env) if exact else None
        self._most = MOST_SEARCHED if task.id == "connect_four" else MOST_GRADED
        self._now: PhaseScores | None = None
        self._groups: list[Group] = []
        """Evidence of the present iteration: what the games from its situations brought."""
        self.phases: list[PhaseScores] = []
        """Graded, in order."""

    def take(self, stage: str, event: LoopEvent) -> dict[str, tuple[int, float]]:
        """Take notice of an event; when it begins a phase, the figures of the one before, as `settle` gives them."""
        figures: dict[str, tuple[int, float]] = {}
        if isinstance(event, PhaseStart):
            figures = self.settle()
            self._now = PhaseScores(stage, event.iteration, event.phase)
            return figures
        now = self._now
        if now is None:
            return figures
        match event:
            case GameEnd():
                now.ends.append(event)
            case Step():
                if event.decision.own:
                    now.steps.append(event)
            case Estimated():
                now.estimated = event
            case Improved():
                now.improved = event
            case Trained():
                now.trained = event
        return figures

    def settle(self) -> dict[str, tuple[int, float]]:
        """Grade the phase that is over: name of each figure -> (iteration, figure); {} when there is none."""
        now, self._now = self._now, None
        if now is None:
            return {}
        # Games end in any order; sums must not depend on it.
        now.ends.sort(key=lambda end: end.game)
        now.steps.sort(key=lambda step: (step.game, step.step))
        if self._grader is not None and now.steps:
            now.moves = grade_moves(_thinned(now.steps, self._most), self._grader)
        said = _said(now)
        now.values = self._values(now, said)
        if said:
            now.faithfulness = grade_faithfulness(_thinned(said, self._most), self._id)
        figures = _figures(now, self._seats)
        if now.estimated is not None and now.name == "estimate":
            self._groups = [Group(e.situation, e.action, e.games_K) for e in now.estimated.evaluations]
        now.steps, now.improved, now.estimated = [], None, None
        self.phases.append(now)
        prefix = "" if now.stage in LOOPS else f"{now.stage}/"
        return {
            f"{prefix}{now.name}/{name}": (now.iteration, value)
            for name, value in figures.items()
            if not math.isnan(value)
        }

    def rows(self) -> list[ResultRow]:
        """A row for each phase in which an agent's games, or a student's values, were graded."""
        return [row for phase in self.phases if (row := self._row(phase)) is not None]

    def _row(self, phase: PhaseScores) -> ResultRow | None:
        if phase.name not in ("evaluate", "improve") or not (phase.ends or phase.values):
            return None
        name = self._labels.get(phase.stage, phase.title)
        if phase.name == "improve":
            if not phase.ends:
                return None
            name += ", looking ahead"
        right = phase.values["exact"].accuracy.right if "exact" in phase.values else None
        values = (None, None) if right is None or not right.count else (right.share, right.interval)
        graded = self._moves and phase.moves is not None and phase.moves.optimal.count
        optimal = phase.moves.optimal.share if graded and phase.moves else None
        if not phase.ends:
            return ResultRow(name, None, values=values[0], values_interval=values[1])
        if len(self._seats) == 1:
            returns = [end.total_return for end in phase.ends]
            success = [float(end.outcome == "success") for end in phase.ends]
            return mean_row(name, returns, success, optimal=optimal)
        games = grade_games(phase.ends, self._seats)
        return game_row(name, games, optimal)

    def _values(self, phase: PhaseScores, said: list[Evaluation]) -> dict[str, ValueGrades]:
        noted = phase.improved or phase.estimated
        found: dict[str, ValueGrades] = {}
        if self._grader is None or noted is None:
            return found
        # Questions without a usable answer are wrong answers: to leave them out would reward silence.
        lost, unplaced = unanswered(noted.failures, said, phase.improved.situations_S if phase.improved else ())
        kept = min(1.0, self._most / max(len(said), 1))
        said = _thinned(said, self._most)
        lost, unplaced = _thinned(lost, round(kept * len(lost))), round(kept * unplaced)
        sides = self._seats if len(self._seats) > 1 else ("player", "nobody")
        between = (self._grader.low, self._grader.high)
        pairs = [*((one.situation, one.action) for one in said), *lost]
        labels = {"exact": exact_labels(pairs, self._grader)}
        if phase.improved is not None:
            labels["results"] = result_labels(self._groups)
        for kind, known in labels.items():
            asked = {label_key(situation, action) for situation, action in pairs}
            shared = {key: label for key, label in known.items() if key in asked}
            graded = [one for one in said if label_key(one.situation, one.action) in shared]
            if shared or unplaced:
                found[kind] = grade_values(graded, shared, seats=sides, between=between, unplaced=unplaced)
        return found


def _said(phase: PhaseScores) -> list[Evaluation]:
    """Evaluations by a model: of a value student's candidates, or of what was asked without acting."""
    if phase.improved is not None:
        pairs = zip(phase.improved.situations_S, phase.improved.choices_S, strict=True)
        return [
            Evaluation(situation, candidate.action, candidate.value)
            for situation, choice in pairs
            for candidate in (choice.candidates_A if choice else ())
        ]
    made = () if phase.estimated is None else phase.estimated.evaluations
    return [one for one in made if one.value.source == "model"]


def mean_row(
    name: str, returns: Sequence[float], success: Sequence[float], *, exact: bool = False, optimal: float | None = None
) -> ResultRow:
    """A line of the final table: mean over games, with a 95 % interval of the mean unless it is exact."""
    interval = None
    if not exact and len(returns) > 1:
        half = 1.96 * float(np.std(returns, ddof=1)) / len(returns) ** 0.5
        interval = (float(np.mean(returns)) - half, float(np.mean(returns)) + half)
    return ResultRow(name, float(np.mean(returns)), interval, float(np.mean(success)), optimal=optimal)


def game_row(name: str, games: GameGrades, optimal: float | None = None) -> ResultRow:
    """The same for games of two: wins with Wilson's interval, draws and losses; by seat besides."""
    all_ = games.all
    return ResultRow(
        name,
        all_.returns.value,
        None,
        all_.win.share,
        win_interval=all_.win.interval,
        draw=all_.draw.share,
        loss=all_.loss.share,
        win_by_seat=tuple((seat.seat, seat.win.share) for seat in games.seats_P),
        optimal=optimal,
    )


def _figures(phase: PhaseScores, seats: Sequence[str]) -> dict[str, float]:
    grades = Grades(
        games=grade_games(phase.ends, seats) if phase.ends else None,
        moves=phase.moves,
        values=phase.values,
        faithfulness=phase.faithfulness,
    )
    found = grades.figures()
    if phase.calls:
        kinds = [failure.kind for failure in phase.failures]
        illegal = kinds.count("illegal")
        parsed = phase.calls - (len(kinds) - illegal)
        found |= {"replies/parsed": parsed / phase.calls}
        found |= {"replies/legal": (parsed - illegal) / parsed} if parsed else {}
    if phase.estimated is not None and phase.estimated.achieved_K:
        groups = sum(count for _, count in phase.estimated.achieved_K)
        found["evidence/groups"] = groups
        found["evidence/mean K"] = sum(k * count for k, count in phase.estimated.achieved_K) / max(groups, 1)
    if phase.trained is not None:
        found |= {"training/examples": phase.trained.examples, "training/tokens": phase.trained.tokens}
        if losses := phase.trained.losses_T:
            found |= {"training/first loss": losses[0], "training/last loss": losses[-1]}
    return {name: float(value) for name, value in found.items()}


def _thinned(items: Iterable[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spread and in order."""
    found = list(items)
    if len(found) <= most:
        return found
    return [found[i * len(found) // most] for i in range(most)]
