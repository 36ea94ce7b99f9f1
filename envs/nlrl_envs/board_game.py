"""What the games of two on a board have in common: positions as two bit sets, turns, results, the `SeatedEnv` face.

A game derives from `BoardGame` and gives its rules as methods of a `Position`; the rules hold no state of their own.
The same moves exist three times over: as the game's own strings (text), as numbers 0 to `action_count` - 1 (PettingZoo,
compiled search), and as what `play` does to a position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import copy
from typing import Any, NamedTuple, Self

import numpy as np

from nlrl_envs.base import TextStep

DRAWN = 0


class Position(NamedTuple):
    """A board and whose turn it is. Bit s of a set is square s in the game's own numbering."""

    first: int
    """Squares of seat 0, which moves first."""
    second: int
    """Squares of seat 1."""
    seat: int
    """Whose turn it is; when the game is over, whose it would be, and after a forfeit who gave up the game."""
    result: int | None = None
    """The return of seat 0: 1, 0 or -1; None while the game goes on."""
    forfeit: bool = False
    """The game ended because `seat` made no legal move."""


class Verdict(NamedTuple):
    """What perfect play makes of a position or a move: V* or Q*, never the value of some policy."""

    value: float
    """1 won, 0 drawn, -1 lost, for whom the giver says; an estimate strictly between 1 and -1 when not exact."""
    exact: bool


def bits(squares: int) -> Iterator[int]:
    """The squares of a set, ascending."""
    while squares:
        lowest = squares & -squares
        yield lowest.bit_length() - 1
        squares ^= lowest


class BoardGame(ABC):
    """A game in progress, as a `SeatedEnv`; a subclass gives the rules.

    `legal_numbers` runs parallel to `legal_actions`. A number names a move wherever it is legal; its string may depend
    on the position (Breakthrough marks captures).
    """

    seats: tuple[str, ...] = ("first", "second")
    action_count: int
    """Number of different moves."""
    grid: tuple[int, int]
    """Rows and columns of the board."""
    core: str | None = None
    """Module of the compiled rules, for Monte Carlo tree search; None for a game that has none."""
    solver: str | None = None
    """"module:function" from a game (and a depth, where the search has one) to its `Solver`; None without a solver."""

    def __init__(self) -> None:
        self._set(self.start())

    @property
    @abstractmethod
    def task(self) -> str:
        """The rules and the goal."""

    @abstractmethod
    def start(self) -> Position:
        """The position a game begins from."""

    @abstractmethod
    def legal_moves(self, position: Position) -> dict[str, int]:
        """The legal moves of a position that is not over, string -> number, in the game's order."""

    @abstractmethod
    def play(self, position: Position, number: int) -> Position:
        """The position after a legal move, its result settled."""

    @abstractmethod
    def settle(self, position: Position) -> int | None:
        """The result a position of whole rules has by its board alone, whoever moved last; None if it goes on.

        Raises:
            ValueError: no game can have this board.
        """

    @abstractmethod
    def board_text(self, position: Position) -> str:
        """The board as the observation shows it, without a final newline."""

    @abstractmethod
    def ending(self, position: Position) -> str:
        """How a game that was not forfeited ended, in words."""

    @abstractmethod
    def cell(self, square: int) -> tuple[int, int]:
        """Row and column of a square of a bit set, row 0 on top."""

    def serialise(self, position: Position) -> str:
        """One character a square, row by row from the top, then the number of the seat to move."""
        rows, columns = self.grid
        marks = [["."] * columns for _ in range(rows)]
        for seat, squares in enumerate((position.first, position.second)):
            for square in bits(squares):
                row, column = self.cell(square)
                marks[row][column] = self.seats[seat][0]
        return "".join("".join(row) for row in marks) + str(position.seat)

    @property
    def observation(self) -> str:
        """The board, and whose turn it is while the game goes on."""
        turn = "" if self._position.result is not None else f"{self.seats[self._position.seat]} is to move.\n"
        return f"{self.board_text(self._position)}\n{turn}"

    @property
    def legal_actions(self) -> tuple[str, ...]:
        """The legal moves; () when the game is over."""
        return tuple(self._legal)

    @property
    def legal_numbers(self) -> tuple[int, ...]:
        """The numbers of the legal moves, in the same order."""
        return tuple(self._legal.values())

    @property
    def terminal_text(self) -> str | None:
        """How the game ended; None while it goes on."""
        if self._position.result is None:
            return None
        if self._position.forfeit:
            return f"{self.seats[self._position.seat]} made no legal move and loses."
        return self.ending(self._position)

    @property
    def state(self) -> Position:
        """The position."""
        return self._position

    @property
    def seat(self) -> int:
        """Whose turn it is, 0 or 1."""
        return self._position.seat

    @property
    def result_P(self) -> tuple[float, ...] | None:
        """The return of each seat once the game is over."""
        result = self._position.result
        return None if result is None else (float(result), 0.0 - result)

    def starts(self) -> tuple[Position, ...]:
        """The one position a game begins from."""
        return (self.start(),)

    def reset(self, rng: np.random.Generator, start: Any = None) -> str:
        """Begin a game; returns the observation. Any position that is not over may be a start. Nothing is random.

        Raises:
            ValueError: `start` is no position of this game, or the game is over there.
        """
        position = self.start() if start is None else self._checked(start)
        if position.result is not None:
            raise ValueError(f"The game is over at {self.serialise(position)}; start where it still goes on.")
        self._set(position)
        return self.observation

    def step(self, action: str) -> TextStep:
        """Make a move. Anything that is no legal move ends the game: who made it loses.

        Raises:
            RuntimeError: the game is already over.
        """
        if self._position.result is not None:
            raise RuntimeError("The game is over; call reset() before the next move.")
        mover, number = self._position.seat, self._legal.get(action)
        if number is None:
            self._set(self._position._replace(result=2 * mover - 1, forfeit=True))
        else:
            self._set(self.play(self._position, number))
        rewards_P = self.result_P or (0.0, 0.0)
        over = self._position.result is not None
        return TextStep(
            self.observation,
            rewards_P[mover],
            terminated=over,
            truncated=False,
            legal=number is not None,
            success=rewards_P[mover] > 0,
            rewards_P=rewards_P,
        )

    def set_state(self, state: Any) -> None:
        """Continue from a state obtained earlier.

        Raises:
            ValueError: it is no position of this game.
        """
        self._set(self._checked(state))

    def clone(self) -> Self:
        """An independent copy."""
        return copy(self)

    def render(self) -> str:
        """The board drawn with text."""
        return self.board_text(self._position)

    def describe_start(self, start: Any) -> str:
        """A position in one line, see `serialise`."""
        return self.serialise(start)

    def planes(self, seat: int) -> np.ndarray:
        """The board in numbers as `seat` sees it, int8 (rows, columns, 2): its own squares, then the other's."""
        planes = np.zeros((*self.grid, 2), np.int8)
        for owner, squares in enumerate((self._position.first, self._position.second)):
            for square in bits(squares):
                planes[(*self.cell(square), int(owner != seat))] = 1
        return planes

    def _set(self, position: Position) -> None:
        self._position = position
        # A tuple of str would do for the text; the numbers are wanted as often, and a step looks its move up here.
        self._legal = {} if position.result is not None else self.legal_moves(position)

    def _checked(self, state: Any) -> Position:
        refusal = f"{state!r} is no position of this game; take one that `state` gave."
        try:
            position = Position(*state)
            known = self._position == position or position == self.start()
            settled = None if known else self.settle(position)
        except (TypeError, ValueError) as error:
            raise ValueError(refusal) from error
        forfeited = position.forfeit and settled is None and position.result == 2 * position.seat - 1
        if not (known or forfeited or (not position.forfeit and position.result == settled)):
            raise ValueError(refusal)
        return position


class Solver(ABC):
    """What grades a board game; the module `<name>_solver` of each game has one, made from any game on that board."""

    def __init__(self, game: BoardGame) -> None:
        self._game = game.clone()

    @abstractmethod
    def verdict(self, position: Position) -> Verdict:
        """V* for seat 0."""

    def move_verdicts(self, position: Position) -> dict[str, Verdict]:
        """Q* of each legal move for the one who makes it; {} when the game is over."""
        if position.result is not None:
            return {}
        sign, found = 1 - 2 * position.seat, {}
        for move, number in self._game.legal_moves(position).items():
            value, exact = self.verdict(self._game.play(position, number))
            found[move] = Verdict(sign * value, exact)
        return found
