"""Counting what a stretch of a run does: games, or questions and examples."""

from __future__ import annotations

from dataclasses import dataclass, field

from nlrl.types import GameEnd, GameStart, LoopEvent, Step


@dataclass(slots=True)
class Phase:
    """One agent's games: how many are done, what they returned, how long the rest may take.

    A phase without games has questions or examples (`unit`); how many of them are done is told by the calls since.
    """

    name: str = ""
    games: int = 0
    """How many there will be, of whatever the unit is; 0 when unknown."""
    begun: float = 0.0
    """Seconds of the run at which the phase began."""
    unit: str = "games"
    calls: int = 0
    """Of the run, when the phase began."""
    done: int = 0
    won: int = 0
    lost: int = 0
    moves: int = 0
    _return_sum: float = 0.0
    _optimum_sum: float = 0.0
    _optima: int = 0
    _successes: int = 0
    _done_moves: int = 0
    _starts: dict[int, GameStart] = field(default_factory=dict)
    _moves_of: dict[int, int] = field(default_factory=dict)

    def count(self, event: LoopEvent) -> None:
        """Take notice of an event; those that are of no game are passed over."""
        if isinstance(event, GameStart):
            self._starts[event.game] = event
            self._moves_of[event.game] = 0
        elif isinstance(event, Step):
            self.moves += 1
            self._moves_of[event.game] = event.step + 1
        elif isinstance(event, GameEnd):
            self._count_end(event)

    def _count_end(self, end: GameEnd) -> None:
        self.done += 1
        self._return_sum += end.total_return
        self._successes += end.outcome == "success"
        self.won += end.total_return > 0
        self.lost += end.total_return < 0
        self._done_moves += end.steps
        self._moves_of.pop(end.game, None)
        start = self._starts.pop(end.game, None)
        if start is not None and start.optimal_return is not None:
            self._optimum_sum += start.optimal_return
            self._optima += 1

    def progress(self, calls: int) -> tuple[int, int]:
        """How many are done of how many, when the run has had so many calls."""
        if self.unit == "games":
            return self.done, self.games
        return min(max(calls - self.calls, 0), self.games), self.games

    @property
    def mean_return(self) -> float:
        """Of the games that are done; 0 before the first."""
        return self._return_sum / self.done if self.done else 0.0

    @property
    def mean_optimum(self) -> float | None:
        """Of the same games; None unless the optimum of each is known."""
        return self._optimum_sum / self.done if self.done and self._optima == self.done else None

    @property
    def success(self) -> float:
        """Share of the games that are done, 0 to 1."""
        return self._successes / self.done if self.done else 0.0

    def seconds_left(self, seconds: float) -> float | None:
        """A guess from the moves made so far, taking the rest of the games to be as long as the finished ones.

        None before the first game has ended and after the last, and when the number of games is unknown.
        """
        if not 0 < self.done < self.games or not self.moves:
            return None
        usual = self._done_moves / self.done
        waiting = max(self.games - self.done - len(self._moves_of), 0)
        ahead = waiting * usual + sum(max(usual - moves, 1.0) for moves in list(self._moves_of.values()))
        return (seconds - self.begun) / self.moves * ahead
