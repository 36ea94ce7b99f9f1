"""From an observation back to the position it describes: records hold texts, solvers want states.

One function a game, the inverse of its `observation`. Boards may have any size; the map of a lake is in the text, that
of a maze is not (only where the player is).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from nlrl_envs.board_game import BoardGame, Position
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import Rows
from nlrl_envs.maze_maps import Cell
from nlrl_envs.tic_tac_toe import TicTacToe

Board = tuple[BoardGame, Position]
"""A game for its rules (its own state means nothing), and the position that was read."""


class Lake(NamedTuple):
    """A lake as an observation shows it."""

    rows: Rows
    """In gymnasium's letters, the start where the player is; a player who fell or arrived stands on H or G."""
    position: int


def read_board(env_id: str, observation: str) -> Board:
    """The position of a board game in progress.

    Raises:
        ValueError: the text is no observation of that game, or the game is over in it.
    """
    return BOARDS[env_id](observation)


def read_lake(observation: str) -> Lake:
    """The map of a lake and where the player is.

    Raises:
        ValueError: the text is no observation of a lake.
    """
    marks = observation.split()
    rows = len(observation.strip().splitlines())
    player = [i for i, mark in enumerate(marks) if mark in ("P", "X", "√")]
    if len(player) != 1 or len(marks) % rows or not set(marks) <= set("P_OGX√"):
        raise _refusal("frozen_lake", observation)
    letters = "".join({"P": "S", "_": "F", "O": "H", "X": "H", "√": "G"}.get(mark, mark) for mark in marks)
    columns = len(marks) // rows
    return Lake(tuple(letters[i : i + columns] for i in range(0, len(letters), columns)), player[0])


def read_maze(observation: str) -> tuple[Cell, Cell]:
    """Where the player is and where the goal is.

    Raises:
        ValueError: the text is no observation of a maze.
    """
    number = r"(\d(?: \d)*)"
    found = re.search(
        rf"The goal is at position {number}, {number}\. Your current position is at position {number}, {number}\.",
        observation,
    )
    if found is None:
        raise _refusal("maze", observation)
    goal_row, goal_column, row, column = (int(text.replace(" ", "")) for text in found.groups())
    return (row, column), (goal_row, goal_column)


def _tic_tac_toe(observation: str) -> Board:
    board, _, turn = observation.partition("is to move")
    marks = re.findall(r"(?:^|(?<=\| ))[1-9OX](?= \||$)", board, re.MULTILINE)
    mover = re.search(r"([OX]) $", board)
    if len(marks) != 9 or mover is None or not turn:
        raise _refusal("tic_tac_toe", observation)
    sets = [sum(1 << s for s, mark in enumerate(marks) if mark == name) for name in "OX"]
    return TicTacToe(), Position(sets[0], sets[1], "OX".index(mover[1]))


def _breakthrough(observation: str) -> Board:
    lines = re.findall(r"^\d([bw.]+)$", observation, re.MULTILINE)
    mover = re.search(r"^(black|white) is to move\.$", observation, re.MULTILINE)
    if not lines or mover is None:
        raise _refusal("breakthrough", observation)
    squares = "".join(lines)
    sets = [sum(1 << s for s, mark in enumerate(squares) if mark == name) for name in "bw"]
    return _game(Breakthrough, len(lines), len(lines[0])), Position(sets[0], sets[1], int(mover[1] == "white"))


def _connect_four(observation: str) -> Board:
    lines = re.findall(r"^([xo.]+)$", observation, re.MULTILINE)
    mover = re.search(r"^([xo]) is to move\.$", observation, re.MULTILINE)
    if not lines or mover is None:
        raise _refusal("connect_four", observation)
    rows = len(lines)
    sets = [
        sum(
            1 << c * (rows + 1) + rows - 1 - r
            for r, line in enumerate(lines)
            for c, mark in enumerate(line)
            if mark == name
        )
        for name in "xo"
    ]
    return _game(ConnectFour, rows, len(lines[0])), Position(sets[0], sets[1], "xo".index(mover[1]))


BOARDS: dict[str, Callable[[str], Board]] = {
    "tic_tac_toe": _tic_tac_toe,
    "breakthrough": _breakthrough,
    "connect_four": _connect_four,
}


@lru_cache(maxsize=64)
def _game(make: Callable[[str], BoardGame], rows: int, columns: int) -> BoardGame:
    return make(f"{rows}x{columns}")


def _refusal(env_id: str, observation: str) -> ValueError:
    return ValueError(
        f"'{observation[:60]}' is no observation of '{env_id}' with somebody to move; give one that the game gave."
    )
