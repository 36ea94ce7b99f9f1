"""What exact play would get in a run's games: the last rows of its table."""

from __future__ import annotations

import numpy as np

from nlrl.config import RunConfig
from nlrl.scores import mean_row
from nlrl.task import Task
from nlrl.terminal.result import ResultRow
from nlrl_envs.base import SeatedEnv, seats_of
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.game_table import (
    Match,
    best_response,
    first_policy,
    joined,
    match,
    optimal_policy,
    tabulate,
    uniform_policy,
)

TABULATED = ("tic_tac_toe",)
"""Games of two that are small enough to be written down whole."""
_OPPONENTS = {"random": uniform_policy, "first": first_policy, "minimax": optimal_policy}


def exact_rows(config: RunConfig, task: Task) -> list[ResultRow]:
    """Uniformly random play and the best there can be, where a solver knows them; [] elsewhere.

    In games of two the best is the most wins that are possible against the run's opponent with each seat.
    """
    if config.loop == "td_values":
        return []
    if task.reference is not None:
        exact = task.reference
        random = mean_row("random policy (exact)", exact.random_returns_G, exact.random_success_G, exact=True)
        # On ice a game is worth 1 when the goal is reached; in a maze the best way always reaches it.
        reached = exact.optimal_returns_G if isinstance(task.env, FrozenLakeText) else [1.0] * len(task.starts_G)
        optimum = mean_row("optimum (exact)", exact.optimal_returns_G, reached, exact=True)
        return [random, optimum]
    opponent = _OPPONENTS.get(config.env.opponent)
    if opponent is None or task.id not in TABULATED or not isinstance(task.env, SeatedEnv):
        return []
    table = tabulate(task.env)
    against, seats = opponent(table), seats_of(task.env)
    wins_R = np.array([0.0, 0.0, 1.0])
    best_P = [best_response(table, against, seat, wins_R)[1] for seat in (0, 1)]
    return [
        _row("random policy (exact)", match(table, uniform_policy(table), against), seats),
        _row("optimum (exact)", match(table, joined(table, best_P[0], best_P[1], 0), against), seats),
    ]


def _row(name: str, found: Match, seats: tuple[str, ...]) -> ResultRow:
    loss, draw, win = found.outcomes_P_R.mean(axis=0).tolist()
    by_seat = tuple(zip(seats, found.outcomes_P_R[:, 2].tolist(), strict=True))
    return ResultRow(name, found.mean_return, None, win, draw=draw, loss=loss, win_by_seat=by_seat)
