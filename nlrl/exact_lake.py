"""Value iteration on FrozenLake, ice and all, through the language operators with an engine that can only do sums.

What `nlrl.exact` is for mazes, where moves can go astray: the variations of a move are all its outcomes (three on
slippery ice, equally likely, repeated where two lead to the same square), so that G1's mean is the expectation. V^L is
the oracle's table of values with one move less, and I takes the best move. As many sweeps as the horizon has moves give
V* of the whole game, which the solver computes in numbers alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nlrl.ask import Asker
from nlrl.engine.oracle import OracleEngine
from nlrl.errors import EnvError
from nlrl.iterate import chosen_value
from nlrl.operators.improve import improve
from nlrl.types import CallId, LookAhead
from nlrl.values.td import language_td
from nlrl_envs.frozen_lake import ACTIONS, FrozenLakeState, FrozenLakeText
from nlrl_envs.frozen_lake_solver import LakeTable, optimal_values, tabulate
from nlrl_prompts import load


@dataclass(frozen=True, slots=True)
class LakeRecord:
    """What one sweep found."""

    moves_left: int
    values_S: np.ndarray
    """(S,) by square, 0 where the game is over."""
    actions_S: tuple[str | None, ...]
    """The improved policy's move in each square; None where the game is over."""
    largest_error: float
    """Largest distance of a value from V* with so many moves left."""


def lake_sweeps(env: FrozenLakeText) -> Iterator[LakeRecord]:
    """A sweep over all squares of the lake's first map for each number of moves left, from 1 to the horizon."""
    table = tabulate(env.maps[0], env.slippery)
    exact_F_S = optimal_values(table, env.horizon).values_F_S
    values_S = np.zeros(len(table.over_S))
    for moves_left in range(1, env.horizon + 1):
        values_S, actions_S = asyncio.run(_sweep(env, table, values_S, moves_left))
        error = float(np.abs(values_S - exact_F_S[moves_left]).max())
        yield LakeRecord(moves_left, values_S, actions_S, error)


async def _sweep(
    env: FrozenLakeText, table: LakeTable, values_S: np.ndarray, moves_left: int
) -> tuple[np.ndarray, tuple[str | None, ...]]:
    """Values with `moves_left` moves, and the moves that earn them, from those with one move less."""
    lake, steps = env.clone(), env.horizon - moves_left
    going = [int(s) for s in np.flatnonzero(~table.over_S)]
    texts = {}
    for s in going:
        lake.set_state(FrozenLakeState(0, s, steps))
        texts[s] = lake.observation
    engine = OracleEngine({texts[s].rstrip("\n"): float(values_S[s]) for s in going})
    ask = Asker(engine, load("arithmetic", "frozen_lake"), env.task)
    updated_S = np.zeros_like(values_S)
    actions_S: list[str | None] = [None] * len(values_S)
    for s in going:
        call = CallId(0, s, "value")
        looks_A_K = [
            [_outcome(lake, texts[s], action, int(after), steps + 1) for after in table.next_S_A_K[s, a]]
            for a, action in enumerate(ACTIONS)
        ]
        estimate = await language_td(looks_A_K, (texts[s],), call, ask=ask)
        choice, _ = await improve(estimate.candidates_A, (texts[s],), call, ask=ask)
        number = None if choice is None else chosen_value(choice).number
        if choice is None or number is None:
            raise ValueError(f"Square {s} got no usable reply, so the sweep has no result.")
        updated_S[s], actions_S[s] = number, choice.action
    return updated_S, tuple(actions_S)


def _outcome(lake: FrozenLakeText, before: str, action: str, after: int, steps: int) -> LookAhead:
    """One way a move can go."""
    lake.set_state(FrozenLakeState(0, after, steps))
    row, column = divmod(after, len(lake.rows[0]))
    reward = float(lake.rows[row][column] == "G")
    return LookAhead((before, action, lake.observation), (action,), (reward,), lake.terminal_text)


def print_lake(map_: str) -> None:
    """Print what sweeps at some numbers of moves left find, on slippery ice.

    Raises:
        EnvError: there is no such map.
    """
    try:
        env = FrozenLakeText(map_)
    except ValueError as error:
        raise EnvError(str(error)) from error
    start, worst = env.starts()[0].position, 0.0
    for record in lake_sweeps(env):
        worst = max(worst, record.largest_error)
        if record.moves_left % max(1, env.horizon // 10) == 0:
            print(
                f"{record.moves_left:3d} moves left: the start is worth {record.values_S[start]:.4f}, first move "
                f"{record.actions_S[start]}, largest error so far {worst:.1e}"
            )
