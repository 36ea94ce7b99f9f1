"""Policy iteration in exact numbers: the language operators with an engine that can only do sums.

`nlrl sweep` prints what the tests assert: sweeps alternate one language TD backup over all actions with one
improvement until nothing changes, and the policy they end with is held against the solver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlrl.ask import Asker
from nlrl.engine.oracle import OracleEngine
from nlrl.errors import EnvError, UnknownNameError
from nlrl.iterate import chosen_value, sweep
from nlrl.types import ImprovedPolicy, LanguageValue
from nlrl_envs.base import TextEnv
from nlrl_envs.maze import MazeText
from nlrl_envs.maze_maps import ACTIONS, Cell
from nlrl_envs.maze_solver import MazeTable, evaluate_policy, optimal_actions, optimal_values, start_mean, tabulate
from nlrl_prompts import load

ArithmeticValues = Mapping[Cell, LanguageValue]


@dataclass(frozen=True, slots=True)
class SweepRecord:
    """What one sweep did."""

    sweep: int
    values_S: dict[Cell, LanguageValue]
    policy_S: dict[Cell, ImprovedPolicy]
    largest_error: float
    """Largest distance of a value from V*."""
    optimal_choices: int
    """In how many states the improved policy's move begins a shortest way."""
    mean_return: float
    """Of the improved policy from all starts, within the horizon."""


COLUMN_FIRST = ("move up", "move down", "move left", "move right")
"""How equals are told apart: a straight-line evaluator is worth -21.32 on double_t with this order of preference."""


def sweeps(
    env: MazeText, values_S: ArithmeticValues | None = None, order: Sequence[str] = COLUMN_FIRST
) -> Iterator[SweepRecord]:
    """Sweeps over all states of a maze, from all zero or from `values_S` by cell, until no value changes."""
    table = tabulate(env.maze)
    exact = dict(zip(table.cells_S, optimal_values(table), strict=True))
    states = list(env.starts())
    values = dict(values_S or {state.position: LanguageValue("0.0", 0.0, "table") for state in states})
    ask = Asker(OracleEngine({}), load("arithmetic", "maze"), env.task)
    number = 0
    while True:
        number += 1
        improved = asyncio.run(sweep(env, values, ask=ask, key=_cell, states_S=states, order=order))
        policy = {state.position: improved[state] for state in states}
        updated = {cell: chosen_value(choice) for cell, choice in policy.items()}
        error = max(abs(_number(updated[cell]) - exact[cell]) for cell in updated)
        chosen_S_A = _tabular(table, policy)
        right = int((chosen_S_A * optimal_actions(table))[table.starts].sum())
        mean_return = start_mean(table, evaluate_policy(table, chosen_S_A, env.horizon).values_S)
        yield SweepRecord(number, updated, policy, error, right, mean_return)
        if all(_number(updated[cell]) == _number(values[cell]) for cell in updated):
            return
        values = updated


def manhattan_values(env: MazeText) -> dict[Cell, LanguageValue]:
    """An evaluator that knows the straight-line distance to the goal and nothing of walls."""
    goal = env.maze.goal
    distances = {
        start.position: abs(start.position[0] - goal[0]) + abs(start.position[1] - goal[1]) for start in env.starts()
    }
    return {cell: LanguageValue(repr(-float(d)), -float(d), "table") for cell, d in distances.items()}


def print_sweeps(map_: str, start: str) -> None:
    """Print a line a sweep and how the last policy compares with the optimum."""
    if start not in ("zero", "manhattan"):
        raise UnknownNameError("start of the sweeps", start, ("zero", "manhattan"))
    try:
        env = MazeText(map_)
    except ValueError as error:
        raise EnvError(str(error)) from error
    table = tabulate(env.maze)
    optimum = start_mean(table, optimal_values(table))
    print(f"{env.maze.name}: {len(env.starts())} starts, optimum {optimum:.2f}")
    for record in sweeps(env, manhattan_values(env) if start == "manhattan" else None):
        print(
            f"sweep {record.sweep:2d}: largest error {record.largest_error:6.2f}, optimal move in "
            f"{record.optimal_choices}/{len(env.starts())} states, mean return {record.mean_return:.2f}"
        )
        if start == "manhattan":
            return


def _cell(env: TextEnv) -> Cell:
    assert isinstance(env, MazeText)
    return env.state.position


def _tabular(table: MazeTable, policy: Mapping[Cell, ImprovedPolicy]) -> np.ndarray:
    """The improved policy as probabilities, (S, A); the goal's row is uniform."""
    chosen_S_A = np.full(table.next_S_A.shape, 1 / len(ACTIONS))
    for s, cell in enumerate(table.cells_S):
        if cell in policy:
            chosen_S_A[s] = np.eye(len(ACTIONS))[ACTIONS.index(policy[cell].action)]
    return chosen_S_A


def _number(value: LanguageValue) -> float:
    assert value.number is not None, "arithmetic replies always hold a number"
    return value.number
