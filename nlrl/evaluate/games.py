"""How games ended: won, drawn, lost, given up, by seat, and what they returned.

A game of two is won, drawn or lost by the sign of its return; a game of one is won when it reached its success and
lost otherwise, so there the returns say more. A game given up for want of a usable move (outcome "forfeit") is a loss
and counted as such besides: nothing was moved in its stead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nlrl.evaluate.rates import Mean, Rate, mean_of
from nlrl.types import GameEnd


@dataclass(frozen=True, slots=True)
class Results:
    """The games of one seat, or of all."""

    seat: str
    """Name of the seat; "all" for every game."""
    win: Rate
    draw: Rate
    loss: Rate
    forfeit: Rate
    """Among the losses: the agent had no usable move."""
    returns: Mean
    steps: Mean
    """Moves a game, an opponent's among them."""


@dataclass(frozen=True, slots=True)
class GameGrades:
    """Results with all seats and with each."""

    all: Results
    seats_P: tuple[Results, ...]

    @property
    def win_by_seats(self) -> float:
        """Mean of the seats' win rates: what alternating seats would give, however often each was really taken."""
        return float(np.mean([results.win.share for results in self.seats_P]))


def grade_games(
    ends: Sequence[GameEnd], seats: Sequence[str] = ("player",), seat_in: Callable[[int], int] | None = None
) -> GameGrades:
    """Results of games that were played to their end.

    Args:
        ends: one a game.
        seats: names of the game's seats (`nlrl_envs.base.seats_of`).
        seat_in: the seat the graded player had in a game, by the game's number; None for game modulo seats, as
            `play` has it.

    Raises:
        ValueError: a game is there twice.
    """
    if len({end.game for end in ends}) != len(ends):
        raise ValueError("A game is graded once; give each game's end once.")
    seated = seat_in or (lambda game: game % len(seats))
    two = len(seats) > 1
    by_seat = [[end for end in ends if seated(end.game) == p] for p in range(len(seats))]
    return GameGrades(
        _results("all", ends, two), tuple(_results(name, mine, two) for name, mine in zip(seats, by_seat, strict=True))
    )


def _results(seat: str, ends: Sequence[GameEnd], two: bool) -> Results:
    won = sum(end.total_return > 0 if two else end.outcome == "success" for end in ends)
    forfeits = sum(end.outcome == "forfeit" for end in ends)
    drawn = sum(end.total_return == 0 and end.outcome != "forfeit" for end in ends) if two else 0
    count = len(ends)
    return Results(
        seat=seat,
        win=Rate(won, count),
        draw=Rate(drawn, count),
        loss=Rate(count - won - drawn, count),
        forfeit=Rate(forfeits, count),
        returns=mean_of([end.total_return for end in ends]),
        steps=mean_of([float(end.steps) for end in ends]),
    )
