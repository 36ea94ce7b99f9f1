"""What can be seen on a board of Breakthrough: how many pawns, how far the best one has to go, how many can capture."""

from __future__ import annotations

from itertools import takewhile

from nlrl.pretrain.corpus.game import Game, last_of
from nlrl_envs.breakthrough import Breakthrough

OTHER = {"black": "white", "white": "black"}
LETTERS = "abcdefgh"


def judge(prompt: str) -> str:
    """The evaluation that the board itself supports, after the move in question if there is one."""
    player, lines, seat, move = last_of(prompt)
    board = [line[1:] for line in takewhile(lambda line: line[0].isdigit(), reversed(lines[1:-3]))]
    if move is not None:
        (column, row), (column_, row_) = _cell(move[:2]), _cell(move[2:4])
        board[row] = _put(board[row], column, ".")
        board[row_] = _put(board[row_], column_, seat[0])
    pawns, to_go, captures = _count(board, player)
    pawns_, to_go_, captures_ = _count(board, OTHER[player])
    worth = BREAKTHROUGH.worth(0.1 * (pawns - pawns_ + to_go_ - to_go + captures - captures_))
    return f"Pawns {pawns} to {pawns_}. Rows to go {to_go} to {to_go_}. Captures {captures} to {captures_}. {worth}"


def _count(board: list[str], seat: str) -> tuple[int, int, int]:
    """Pawns, rows that the foremost has before it, captures; `board` begins with row 1, towards which black moves."""
    mark, other = seat[0], OTHER[seat][0]
    ahead = board[::-1] if seat == "black" else board
    pawns = captures = foremost = 0
    for number, row in enumerate(ahead):
        if mark not in row:
            continue
        foremost = number
        pawns += row.count(mark)
        if number + 1 < len(ahead) and other in ahead[number + 1]:
            targets = f".{ahead[number + 1]}."
            captures += sum(
                (targets[c] == other) + (targets[c + 2] == other) for c, there in enumerate(row) if there == mark
            )
    return pawns, len(ahead) - 1 - foremost, captures


def _cell(name: str) -> tuple[int, int]:
    """Column and row, from 0."""
    return LETTERS.index(name[0]), int(name[1]) - 1


def _put(row: str, column: int, mark: str) -> str:
    return row[:column] + mark + row[column + 1 :]


BREAKTHROUGH = Game("breakthrough", lambda rng: Breakthrough(), judge, draws=False)
