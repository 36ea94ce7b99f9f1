"""Tic-Tac-Toe in the notation of arXiv 2411.14251: O moves first, squares are 1 to 9, an empty square shows its number.

Where we differ from the authors' environment: an occupied square is no move (theirs overwrites it), and who makes no
legal move loses (theirs plays a random one unseen).
"""

from __future__ import annotations

from pettingzoo import AECEnv

from nlrl_envs.aec import BoardEnv, wrapped
from nlrl_envs.board_game import DRAWN, BoardGame, Position, bits

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
"""The eight lines of three squares, rows, columns, diagonals."""
LINE_SETS = tuple(sum(1 << square for square in line) for line in LINES)
FULL = (1 << 9) - 1


def line_of(squares: int) -> tuple[int, ...] | None:
    """The first complete line of a set of squares; None if there is none."""
    return next((LINES[i] for i, line in enumerate(LINE_SETS) if squares & line == line), None)


class TicTacToe(BoardGame):
    """Tic-Tac-Toe as a `SeatedEnv`; seat 0 is O. A move's number is its square, 0 to 8, row by row.

    Args:
        size: "3x3"; every game takes its board or map as its first option.

    Raises:
        ValueError: another size.
    """

    seats = ("O", "X")
    core = "nlrl_envs.tic_tac_toe_core"
    solver = "nlrl_envs.tic_tac_toe_solver:TicTacToeSolver"
    action_count = 9
    grid = (3, 3)

    def __init__(self, size: str = "3x3") -> None:
        if size != "3x3":
            raise ValueError(f"Tic-Tac-Toe is played on a board of '3x3', not '{size}'.")
        super().__init__()

    @property
    def task(self) -> str:
        """The rules and the goal."""
        return (
            "Two players, O and X, take turns on a board of three rows and three columns; O begins. A move puts the "
            "player's mark on an empty square. Squares are numbered 1 to 9, row by row from the top left; an empty "
            "square shows its number. The first player with three marks in a row, column or diagonal wins. If the "
            "board is full before that, the game is a draw. Who makes no legal move loses."
        )

    def start(self) -> Position:
        """The empty board."""
        return Position(0, 0, 0)

    def legal_moves(self, position: Position) -> dict[str, int]:
        """The empty squares."""
        return {str(s + 1): s for s in bits(FULL & ~(position.first | position.second))}

    def play(self, position: Position, number: int) -> Position:
        """The mover's mark on a square."""
        first, second, seat, *_ = position
        mark = 1 << number
        mine = (second if seat else first) | mark
        board = (first, mine) if seat else (mine, second)
        if any(mine & line == line for line in LINE_SETS):
            return Position(*board, 1 - seat, 1 - 2 * seat)
        return Position(*board, 1 - seat, DRAWN if board[0] | board[1] == FULL else None)

    def settle(self, position: Position) -> int | None:
        """Who has a line, or a draw on a full board; None if the game goes on."""
        first, second, seat, *_ = position
        surplus = first.bit_count() - second.bit_count()
        won = line_of(first) is not None, line_of(second) is not None
        # The winner moved last, so with a line of O it would be X's turn, and the other way round.
        if first & second or (first | second) & ~FULL or surplus != seat or seat not in (0, 1) or won[seat]:
            raise ValueError("no such board")
        if won[1 - seat]:
            return 2 * seat - 1
        return DRAWN if first | second == FULL else None

    def board_text(self, position: Position) -> str:
        """Three rows "a | b | c" with nine dashes between."""
        marks = [str(s + 1) for s in range(9)]
        for name, squares in zip(self.seats, (position.first, position.second), strict=True):
            for s in bits(squares):
                marks[s] = name
        return "\n---------\n".join(" | ".join(marks[row : row + 3]) for row in (0, 3, 6))

    def ending(self, position: Position) -> str:
        """Who won with which line, or a draw."""
        if position.result == DRAWN:
            return "The board is full: a draw."
        winner = 0 if position.result == 1 else 1
        line = line_of((position.first, position.second)[winner]) or ()
        return f"{self.seats[winner]} wins with {', '.join(str(s + 1) for s in line)}."

    def cell(self, square: int) -> tuple[int, int]:
        """Row and column."""
        return divmod(square, 3)


def raw_env(max_cycles: int | None = None, render_mode: str | None = None) -> BoardEnv:
    """The PettingZoo environment without wrappers; see `nlrl_envs.aec.BoardEnv`."""
    return BoardEnv(TicTacToe(), "tic_tac_toe_v0", max_cycles, render_mode)


def env(max_cycles: int | None = None, render_mode: str | None = None) -> AECEnv:
    """What `pettingzoo.make("aec", "nlrl/tic_tac_toe-v0")` gives."""
    return wrapped(raw_env(max_cycles, render_mode))
