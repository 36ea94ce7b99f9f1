"""Positions and mazes that are the same but for a turn or a mirror: what is held out has no image in training.

Tic-Tac-Toe has the eight symmetries of the square, Breakthrough and Connect Four the mirror image from left to right;
a maze may be turned and mirrored whole, its goal with it. Where a game is not listed, every state is its own form.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import lru_cache
from typing import Any

from nlrl_envs.base import TextEnv
from nlrl_envs.board_game import BoardGame, Position
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.maze_maps import Cell, MazeMap
from nlrl_envs.tic_tac_toe import TicTacToe

Squares = tuple[int, ...]
"""Where each square goes, by its number."""


def canonical(env: TextEnv, state: Any) -> Hashable:
    """A form of a state that is equal for all its images, and unequal for others."""
    if not isinstance(env, BoardGame) or not isinstance(state, Position):
        return state
    first, second = int(state.first), int(state.second)
    images = [(_moved(first, to), _moved(second, to)) for to in _symmetries(type(env), env.grid)]
    return (*min(images, default=(first, second)), *state[2:])


def shared(env: TextEnv, learned: Iterable[Any], reported: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Pairs (learned, reported) that are one position up to symmetry: none where the two are kept apart."""
    known = {canonical(env, state): state for state in learned}
    return [(known[form], state) for state in reported if (form := canonical(env, state)) in known]


def canonical_maze(maze: MazeMap) -> tuple[tuple[str, ...], Cell]:
    """A form of a maze that is equal for its eight turned and mirrored images: the least (rows, goal) of them."""
    rows, (r, c) = maze.rows, maze.goal
    images = []
    for _ in range(4):
        rows, (r, c) = tuple("".join(column) for column in zip(*rows[::-1], strict=True)), (c, len(rows) - 1 - r)
        images += [(rows, (r, c)), (tuple(row[::-1] for row in rows), (r, len(rows[0]) - 1 - c))]
    return min(images)


@lru_cache(maxsize=64)
def _symmetries(game: type, grid: tuple[int, int]) -> tuple[Squares, ...]:
    """Where the squares go in each symmetry, the one that moves nothing among them."""
    rows, columns = grid
    number: Callable[[int, int], int]
    if issubclass(game, ConnectFour):
        # A column's bits lie together, with one above them that no piece takes.
        number, count = (lambda r, c: c * (rows + 1) + r), columns * (rows + 1)
    else:
        number, count = (lambda r, c: r * columns + c), rows * columns
    turns: list[Callable[[int, int], tuple[int, int]]] = [lambda r, c: (r, c), lambda r, c: (r, columns - 1 - c)]
    if issubclass(game, TicTacToe):
        turns += [
            lambda r, c: (2 - r, c), lambda r, c: (2 - r, 2 - c), lambda r, c: (c, r),
            lambda r, c: (c, 2 - r), lambda r, c: (2 - c, r), lambda r, c: (2 - c, 2 - r),
        ]  # fmt: skip
    elif not issubclass(game, Breakthrough | ConnectFour):
        return ()
    found = []
    for turn in turns:
        to = list(range(count))
        for r in range(rows):
            for c in range(columns):
                to[number(r, c)] = number(*turn(r, c))
        found.append(tuple(to))
    return tuple(found)


def _moved(squares: int, to: Squares) -> int:
    return sum(1 << to[s] for s in range(len(to)) if squares >> s & 1)
