"""Connect Four: x moves first, columns are 1 to 7, the board is drawn as OpenSpiel draws it with the columns below."""

from __future__ import annotations

import re

from pettingzoo import AECEnv

from nlrl_envs.aec import BoardEnv, wrapped
from nlrl_envs.board_game import DRAWN, BoardGame, Position, bits

SMALLEST, LARGEST = 4, 8
"""Rows and columns; with one row more than is played on, 63 squares still are one machine word."""


class ConnectFour(BoardGame):
    """Connect Four as a `SeatedEnv`; seat 0 is x.

    Squares are numbered column by column from the bottom left, with one square above each column that stays empty, so
    that lines are found by shifts. A move's number is its column, 0 to 6.

    Args:
        size: "ROWSxCOLUMNS", each 4 to 8, at most 7 rows.

    Raises:
        ValueError: there is no such board.
    """

    seats = ("x", "o")
    core = "nlrl_envs.connect_four_core"
    solver = "nlrl_envs.connect_four_solver:ConnectFourSolver"

    def __init__(self, size: str = "6x7") -> None:
        found = re.fullmatch(r"(\d)x(\d)", size)
        rows, columns = (int(found[1]), int(found[2])) if found else (0, 0)
        if not (SMALLEST <= rows < LARGEST and SMALLEST <= columns <= LARGEST):
            raise ValueError(f"A board is '6x7' or the like, 4 to 7 rows and 4 to 8 columns, not '{size}'.")
        self.grid = (rows, columns)
        self.action_count = columns
        self._bottom = sum(1 << c * (rows + 1) for c in range(columns))
        self._all = self._bottom * ((1 << rows) - 1)
        super().__init__()

    @property
    def task(self) -> str:
        """The rules and the goal."""
        rows, columns = self.grid
        return (
            f"Two players, x and o, play Connect Four on a board of {rows} rows and {columns} columns; x begins. A "
            f"move names a column, 1 to {columns} from the left, and drops the player's stone onto the lowest empty "
            f"square of it; a full column is no move. The first player with four stones in a row, horizontally, "
            f"vertically or diagonally, wins. If the board is full before that, the game is a draw. Who makes no legal "
            f"move loses."
        )

    def start(self) -> Position:
        """The empty board."""
        return Position(0, 0, 0)

    def legal_moves(self, position: Position) -> dict[str, int]:
        """The columns that are not full."""
        columns = (square // (self.grid[0] + 1) for square in bits(self._free(position)))
        return {str(column + 1): column for column in columns}

    def play(self, position: Position, number: int) -> Position:
        """A stone of the mover on the lowest empty square of a column."""
        first, second, seat, *_ = position
        column = ((1 << self.grid[0]) - 1) << number * (self.grid[0] + 1)
        mine = (second if seat else first) | self._free(position) & column
        board = (first, mine) if seat else (mine, second)
        if self._line(mine):
            return Position(*board, 1 - seat, 1 - 2 * seat)
        return Position(*board, 1 - seat, DRAWN if board[0] | board[1] == self._all else None)

    def settle(self, position: Position) -> int | None:
        """Who has four in a row, or a draw on a full board; None if the game goes on."""
        first, second, seat, *_ = position
        stones = first | second
        won = bool(self._line(first)), bool(self._line(second))
        floating = (stones + self._bottom) & stones
        wrong = first & second or stones & ~self._all or floating or first.bit_count() - second.bit_count() != seat
        if wrong or seat not in (0, 1) or won[seat]:
            raise ValueError("no such board")
        if won[1 - seat]:
            return 2 * seat - 1
        return DRAWN if stones == self._all else None

    def board_text(self, position: Position) -> str:
        """The rows from the top, and below them the numbers of the columns."""
        rows, columns = self.grid
        squares = self.serialise(position)
        lines = [squares[r * columns : (r + 1) * columns] for r in range(rows)]
        return "\n".join([*lines, "12345678"[:columns]])

    def ending(self, position: Position) -> str:
        """Who won along which squares, or a draw."""
        if position.result == DRAWN:
            return "The board is full: a draw."
        winner = 0 if position.result == 1 else 1
        start, step = self._line((position.first, position.second)[winner]) or (0, 0)
        line = [divmod(start + i * step, self.grid[0] + 1) for i in range(4)]
        places = ", ".join(f"column {column + 1} row {row + 1}" for column, row in line)
        return f"{self.seats[winner]} wins with four in a row: {places}."

    def cell(self, square: int) -> tuple[int, int]:
        """Row from the top, and column."""
        column, row = divmod(square, self.grid[0] + 1)
        return self.grid[0] - 1 - row, column

    def _free(self, position: Position) -> int:
        """Where the next stone of each column comes to lie."""
        return ((position.first | position.second) + self._bottom) & self._all

    def _line(self, stones: int) -> tuple[int, int] | None:
        """The first square and the step of four in a row; None if there is none."""
        rows = self.grid[0]
        for step in (1, rows, rows + 1, rows + 2):
            pairs = stones & stones >> step
            if fours := pairs & pairs >> 2 * step:
                return next(bits(fours)), step
        return None


def raw_env(size: str = "6x7", max_cycles: int | None = None, render_mode: str | None = None) -> BoardEnv:
    """The PettingZoo environment without wrappers; see `ConnectFour` and `nlrl_envs.aec.BoardEnv`."""
    return BoardEnv(ConnectFour(size), "connect_four_v0", max_cycles, render_mode)


def env(size: str = "6x7", max_cycles: int | None = None, render_mode: str | None = None) -> AECEnv:
    """What `pettingzoo.make("aec", "nlrl/connect_four-v0")` gives."""
    return wrapped(raw_env(size, max_cycles, render_mode))
