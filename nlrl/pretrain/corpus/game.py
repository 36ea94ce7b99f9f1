"""What a game brings to the corpus: how it is begun, and what can be said of a position by looking at it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Judge = Callable[[str], str]
"""The reply to a "value" prompt, from nothing but its text."""


@dataclass(frozen=True, slots=True)
class Game:
    """A game of the corpus; everything it says goes through the compact prompt set of `id`."""

    id: str
    """A name of `nlrl_envs.ENVS`."""
    begin: Callable[[random.Random], Any]
    """A new game as a `TextEnv`, on a board that may be drawn."""
    judge: Judge
    draws: bool = True
    """Whether a game of two can be drawn."""
    lowest: float = -1.0
    """The smallest return; the largest is 1."""
    moves: tuple[str, ...] = ()
    """The moves where a policy's prompt does not list them."""
    safe: Callable[[Any, str], bool] | None = None
    """Whether a move cannot end a game with chance in it, if all goes as it points; None where there is no chance."""

    def games(self, won: int, drew: int, lost: int) -> str:
        """What so many games came to, as the reply to "monte_carlo" begins."""
        count = won + drew + lost
        if self.lowest == 0:
            return f"Of {count} games {won} reached the goal."
        drawn = f"drew {drew}, " if self.draws else ""
        return f"Of {count} games won {won}, {drawn}lost {lost}."

    def looks(self, count: int, won: int, lost: int) -> str:
        """What so many looks ahead came to, as the reply to "aggregate" begins."""
        said = f"{won} reached the goal" if self.lowest == 0 else f"won {won}, lost {lost}"
        return f"Of {count} looks {said}."

    def worth(self, value: float) -> str:
        """The last sentence of every evaluation, held within what a return can be."""
        return f"Worth {round(min(max(value, self.lowest), 1.0), 2) + 0.0:.2f}."


def last_of(prompt: str) -> tuple[str, list[str], str, str | None]:
    """(player, lines up to the last board, seat to move there, move made there or None) of a board game's record."""
    lines = prompt.split("\n")
    player = lines[0].removeprefix("Judge for ").partition(":")[0]
    move = None if lines[-1].endswith(" is to move.") else lines.pop()
    seat = lines.pop().removesuffix(" is to move.")
    return player, lines, seat, move


def listed(moves: Sequence[int]) -> str:
    """1, 5 or none."""
    return ", ".join(map(str, moves)) or "none"
