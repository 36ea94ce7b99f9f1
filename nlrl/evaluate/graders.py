"""What the exact solvers say of recorded situations: V* of where somebody stood, Q* of what could be moved there.

V* is perfect play's value and never that of a policy: an evaluation that describes a weak policy truly must disagree
with it (`nlrl.evaluate.values`). A grader answers None where it is not certain, which is Connect Four's opening.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np

from nlrl.errors import EnvError
from nlrl.evaluate.reading import Lake, read_board, read_lake, read_maze
from nlrl_envs.base import TextEnv
from nlrl_envs.board_game import Solver
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import ACTIONS as LAKE_ACTIONS
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.frozen_lake_solver import LakeValues, optimal_values, tabulate
from nlrl_envs.maze import MazeState, MazeText
from nlrl_envs.tic_tac_toe import TicTacToe

KEPT = 100_000
"""Positions a grader remembers."""


class Grader(Protocol):
    """Exact answers about one game."""

    low: float
    """The smallest return there can be."""
    high: float

    def moves(self, observation: str, step: int) -> Mapping[str, float] | None:
        """Q* of each legal move for the one who is to move; None where the solver is not certain of all of them.

        Args:
            observation: where the mover stands.
            step: moves made in the game before, which matters where a horizon does.

        Raises:
            ValueError: the text is no observation of this game in progress.
        """
        ...

    def mover(self, observation: str) -> str:
        """Name of the seat that is to move."""
        ...


def exact_value(grader: Grader, observation: str, step: int, player: str, action: str | None = None) -> float | None:
    """V* of a situation, or Q* of a move there, for the seat `player`; None where the solver is not certain.

    Raises:
        ValueError: the text is no observation of this game in progress, or the move is not legal there.
    """
    values = grader.moves(observation, step)
    if values is None:
        return None
    if action is not None and action not in values:
        raise ValueError(f"'{action}' is no legal move there, so it has no value; legal are: {', '.join(values)}.")
    value = max(values.values()) if action is None else values[action]
    # Games of several seats are of two, and what one wins the other loses.
    return value if grader.mover(observation) == player else -value


def make_grader(env: TextEnv, depth: int = 14) -> Grader | None:
    """The grader of a game; None for a game that no solver knows.

    Args:
        env: the game; of a maze the one map it has.
        depth: plies that Connect Four's search looks ahead; with 14 it answers in a fraction of a second.

    Raises:
        EnvError: the solver needs a package that is not installed, or the board is too large for it.
    """
    try:
        if isinstance(env, TicTacToe):
            from nlrl_envs.tic_tac_toe_solver import TicTacToeSolver

            return BoardGrader("tic_tac_toe", TicTacToeSolver(env))
        if isinstance(env, Breakthrough):
            from nlrl_envs.breakthrough_solver import solver_of

            return BoardGrader("breakthrough", solver_of(env))
        if isinstance(env, ConnectFour):
            from nlrl_envs.connect_four_solver import ConnectFourSolver

            return BoardGrader("connect_four", ConnectFourSolver(env, depth))
    except ModuleNotFoundError as error:
        raise EnvError(f"Exact grading needs {error.name}: pip install 'nlrl[search]'.") from error
    except ValueError as error:
        raise EnvError(str(error)) from error
    if isinstance(env, FrozenLakeText):
        return LakeGrader(env)
    return MazeGrader(env) if isinstance(env, MazeText) else None


class BoardGrader:
    """A game of two by its solver."""

    low, high = -1.0, 1.0

    def __init__(self, env_id: str, solver: Solver) -> None:
        self._id = env_id
        self._solver = solver
        self._known = lru_cache(maxsize=KEPT)(self._look_up)

    def moves(self, observation: str, step: int) -> Mapping[str, float] | None:
        """See `Grader`; the number of moves made does not matter."""
        return self._known(observation)

    def mover(self, observation: str) -> str:
        """See `Grader`."""
        game, position = read_board(self._id, observation)
        return game.seats[position.seat]

    def _look_up(self, observation: str) -> Mapping[str, float] | None:
        _, position = read_board(self._id, observation)
        verdicts = self._solver.move_verdicts(position)
        if not all(verdict.exact for verdict in verdicts.values()):
            return None
        return {move: verdict.value for move, verdict in verdicts.items()}


class MazeGrader:
    """A maze by its distances, within what is left of its horizon."""

    high = 0.0

    def __init__(self, env: MazeText) -> None:
        self._env = env.clone()
        self.low = -float(env.horizon + 1)

    def moves(self, observation: str, step: int) -> Mapping[str, float] | None:
        """See `Grader`."""
        env, found = self._env, {}
        cell, goal = read_maze(observation)
        if goal != env.maze.goal:
            raise ValueError(f"That is another maze than '{env.maze.name}'; grade with the map that was played.")
        env.set_state(MazeState(cell, step))
        for action in env.legal_actions:
            env.set_state(MazeState(cell, step))
            result = env.step(action)
            over = result.terminated or result.truncated
            found[action] = result.reward + (0.0 if over else env.optimal_return(env.state))
        return found

    def mover(self, observation: str) -> str:
        """See `Grader`."""
        return "player"


class LakeGrader:
    """A lake by dynamic programming over its map, which every observation shows, within what is left of its horizon."""

    low, high = 0.0, 1.0

    def __init__(self, env: FrozenLakeText) -> None:
        self._horizon, self._slippery = env.horizon, env.slippery
        self._solved = lru_cache(maxsize=KEPT // 100)(self._solve)

    def moves(self, observation: str, step: int) -> Mapping[str, float] | None:
        """See `Grader`."""
        lake = read_lake(observation)
        q_A = self._solved(lake).q_F_S_A[max(self._horizon - step, 0), lake.position]
        return {action: float(q) for action, q in zip(LAKE_ACTIONS, q_A, strict=True)}

    def mover(self, observation: str) -> str:
        """See `Grader`."""
        return "player"

    def _solve(self, lake: Lake) -> LakeValues:
        with np.errstate(all="ignore"):
            return optimal_values(tabulate(lake.rows, self._slippery), self._horizon)
