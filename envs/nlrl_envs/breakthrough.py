"""Breakthrough in the notation of arXiv 2411.14251 (that is OpenSpiel's): black is on top, moves down and begins.

The paper plays 5x5 with two rows of pawns a side, which it patched into OpenSpiel; there a board has two rows of pawns
from six rows on. Here `pawn_rows` says it, and two is the default from five rows on.

Where we differ from the authors: who makes no legal move loses; a game won by capture is told as such; and letters of
columns and numbers of rows are the only names of squares.
"""

from __future__ import annotations

import re

from pettingzoo import AECEnv

from nlrl_envs.aec import BoardEnv, wrapped
from nlrl_envs.board_game import BoardGame, Position, bits

BLACK, WHITE = 0, 1
SMALLEST, LARGEST = (3, 2), (8, 8)
"""Rows and columns; with 64 squares a board still is one machine word for compiled search."""


class Breakthrough(BoardGame):
    """Breakthrough as a `SeatedEnv`; seat 0 is black.

    Squares are numbered row by row from the top left, so black moves towards higher numbers. Move 3 s + d goes from
    square s by d - 1 columns. In text it is from-square and to-square, with a star for a capture: d5d4, d5e4*.

    Args:
        size: "ROWSxCOLUMNS", 3 to 8 rows and 2 to 8 columns.
        pawn_rows: rows of pawns a side; None for two from five rows on, else one.

    Raises:
        ValueError: there is no such board.
    """

    seats = ("black", "white")
    core = "nlrl_envs.breakthrough_core"
    solver = "nlrl_envs.breakthrough_solver:solver_of"

    def __init__(self, size: str = "5x5", pawn_rows: int | None = None) -> None:
        if not (found := re.fullmatch(r"(\d)x(\d)", size)) or not all(
            low <= int(n) <= high for low, n, high in zip(SMALLEST, found.groups(), LARGEST, strict=True)
        ):
            raise ValueError(f"A board is '5x5' or the like, 3 to 8 rows and 2 to 8 columns, not '{size}'.")
        rows, columns = int(found[1]), int(found[2])
        self.pawn_rows = (2 if rows >= 5 else 1) if pawn_rows is None else pawn_rows
        if not 1 <= self.pawn_rows <= (rows - 1) // 2:
            raise ValueError(
                f"A board of {rows} rows has 1 to {(rows - 1) // 2} rows of pawns a side, not {self.pawn_rows}."
            )
        self.grid = (rows, columns)
        self.action_count = 3 * rows * columns
        self._row = (1 << columns) - 1
        self._all = (1 << rows * columns) - 1
        self._bottom = self._row << (rows - 1) * columns
        self._names = tuple(f"{'abcdefgh'[s % columns]}{rows - s // columns}" for s in range(rows * columns))
        super().__init__()

    @property
    def task(self) -> str:
        """The rules and the goal."""
        rows, columns = self.grid
        return (
            f"Two players, black and white, play Breakthrough on a board of {rows} rows and {columns} columns; black "
            f"begins. Columns are letters from the left, rows are numbers from the bottom. Black's pawns (b) start at "
            f"the top and move down, white's pawns (w) start at the bottom and move up. A move takes one pawn one row "
            f"forward, straight or diagonally, onto an empty square; it captures an enemy pawn diagonally, never "
            f"straight ahead. A move is written as the square it leaves and the square it enters, with a star for a "
            f"capture. Who first brings a pawn to the far row, or captures all enemy pawns, wins. Who makes no legal "
            f"move loses."
        )

    def start(self) -> Position:
        """The pawns in their home rows, black to move."""
        rows, columns = self.grid
        pawns = (1 << self.pawn_rows * columns) - 1
        return Position(pawns, pawns << (rows - self.pawn_rows) * columns, BLACK)

    def legal_moves(self, position: Position) -> dict[str, int]:
        """Every step of every pawn of the mover, pawns in the order of their squares and steps from the left."""
        first, second, seat, *_ = position
        mine, theirs = (second, first) if seat else (first, second)
        columns, names, moves = self.grid[1], self._names, {}
        forward = -columns if seat else columns
        for square in bits(mine):
            column = square % columns
            for side in (-1, 0, 1):
                if 0 <= column + side < columns:
                    target = square + forward + side
                    mark = 1 << target
                    if mark & mine or (side == 0 and mark & theirs):
                        continue
                    capture = "*" if mark & theirs else ""
                    moves[f"{names[square]}{names[target]}{capture}"] = 3 * square + side + 1
        return moves

    def play(self, position: Position, number: int) -> Position:
        """A step of a pawn; what stands on its target is captured."""
        first, second, seat, *_ = position
        square, side = divmod(number, 3)
        target = 1 << square + (-self.grid[1] if seat else self.grid[1]) + side - 1
        moved = 1 << square | target
        board = (first & ~target, second ^ moved) if seat else (first ^ moved, second & ~target)
        won = target & (self._row if seat else self._bottom) or not board[1 - seat]
        return Position(*board, 1 - seat, 1 - 2 * seat if won else None)

    def settle(self, position: Position) -> int | None:
        """Who has a pawn on the far row or has captured all; None if the game goes on."""
        first, second, seat, *_ = position
        most = self.pawn_rows * self.grid[1]
        won = bool(first & self._bottom) or not second, bool(second & self._row) or not first
        overlap = first & second or (first | second) & ~self._all or min(first, second) < 0
        if overlap or max(first.bit_count(), second.bit_count()) > most or seat not in (0, 1) or won[seat]:
            raise ValueError("no such board")
        return 2 * seat - 1 if won[1 - seat] else None

    def board_text(self, position: Position) -> str:
        """OpenSpiel's drawing: the number of a row and its squares, the letters of the columns below."""
        rows, columns = self.grid
        squares = self.serialise(position)
        lines = [f"{rows - r}{squares[r * columns : (r + 1) * columns]}" for r in range(rows)]
        return "\n".join([*lines, " " + "abcdefgh"[:columns]])

    @property
    def observation(self) -> str:
        """The board, the squares of both sides, and whose turn it is while the game goes on."""
        board, turn = f"{self.board_text(self._position)}\n", ""
        for name, pawns in zip(self.seats, (self._position.first, self._position.second), strict=True):
            board += f"{name.capitalize()} pawns: {', '.join(self._names[s] for s in bits(pawns)) or 'none'}\n"
        if self._position.result is None:
            turn = f"{self.seats[self._position.seat]} is to move.\n"
        return board + turn

    def ending(self, position: Position) -> str:
        """Who won, and how."""
        winner = BLACK if position.result == 1 else WHITE
        if not (position.first, position.second)[1 - winner]:
            return f"{self.seats[winner]} wins: {self.seats[1 - winner]} has no pawn left."
        arrived = (position.first & self._bottom, position.second & self._row)[winner]
        return f"{self.seats[winner]} wins: its pawn has reached {self._names[next(bits(arrived))]}."

    def cell(self, square: int) -> tuple[int, int]:
        """Row and column."""
        return divmod(square, self.grid[1])


def raw_env(
    size: str = "5x5", pawn_rows: int | None = None, max_cycles: int | None = None, render_mode: str | None = None
) -> BoardEnv:
    """The PettingZoo environment without wrappers; see `Breakthrough` and `nlrl_envs.aec.BoardEnv`."""
    return BoardEnv(Breakthrough(size, pawn_rows), "breakthrough_v0", max_cycles, render_mode)


def env(
    size: str = "5x5", pawn_rows: int | None = None, max_cycles: int | None = None, render_mode: str | None = None
) -> AECEnv:
    """What `pettingzoo.make("aec", "nlrl/breakthrough-v0")` gives."""
    return wrapped(raw_env(size, pawn_rows, max_cycles, render_mode))
