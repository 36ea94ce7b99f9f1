"""Exact policy iteration for games of two, through the language operators with an engine that can only do sums.

What `nlrl.exact` is for mazes. V^pi of the present policy against a fixed opponent is computed exactly and given to the
oracle engine as its table; what follows is language: V^L is asked about the position after each legal move, language TD
makes Q^L of it, and I chooses. On Tic-Tac-Toe against random play the policies win 43.65, 94.64, 96.08 and 96.34 % of
their games and then stay as they are, which is what `nlrl_envs.game_table.policy_iteration` finds in numbers alone.

I names one move. Exact policy iteration shares equally among the best, which is read off the candidates' stated numbers
(`nlrl.operators.improve.tied`). Positions all of whose successors are worth what they were are not asked about again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nlrl import registry
from nlrl.ask import Asker
from nlrl.engine.oracle import OracleEngine
from nlrl.errors import EnvError
from nlrl.iterate import decide
from nlrl.knobs import LookAheadKnobs
from nlrl.operators.improve import tied
from nlrl.types import CallId
from nlrl_envs.base import SeatedEnv
from nlrl_envs.game_table import GameTable, Match, joined, match, policy_values, tabulate, uniform_policy
from nlrl_prompts import load

ONE_MOVE = LookAheadKnobs(variations=1, steps=0)


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """One policy of the iteration."""

    improvements: int
    """How many led to it; 0 is uniformly random play."""
    policy_S_A: np.ndarray
    """(S, A) probabilities, by the table's positions and moves."""
    match: Match
    """What it achieves against the opponent."""
    calls: int
    """Questions of the improvement that led to it."""


def policy_iteration(env: SeatedEnv, opponent_S_A: np.ndarray | None = None) -> Iterator[PolicyRecord]:
    """Policies from uniformly random play on, until an improvement changes nothing.

    Args:
        env: a game small enough for `nlrl_envs.game_table.tabulate`, whose observations tell its positions apart.
        opponent_S_A: the opponent's policy, (S, A) over that table; uniformly random play when None.

    Raises:
        ValueError: the game does not fit a table, or two of its positions read the same.
    """
    table = tabulate(env)
    opponent = uniform_policy(table) if opponent_S_A is None else opponent_S_A
    texts_S = _texts(env, table)
    policy_S_A, calls, improvements = uniform_policy(table), 0, 0
    before_P_S = np.full((2, len(table.states_S)), np.nan)
    while True:
        yield PolicyRecord(improvements, policy_S_A, match(table, policy_S_A, opponent), calls)
        improved_S_A, calls = policy_S_A.copy(), 0
        for seat in (0, 1):
            values_S = policy_values(table, joined(table, policy_S_A, opponent, seat)) * (1 - 2 * seat)
            engine = OracleEngine(dict(zip(texts_S, values_S.tolist(), strict=True)))
            ask = Asker(engine, load("arithmetic", "tic_tac_toe"), env.task, env.seats[seat])
            stirred_S = (table.legal_S_A & (values_S != before_P_S[seat])[table.next_S_A]).any(axis=1)
            asked = np.flatnonzero(stirred_S & (table.seat_S == seat))
            before_P_S[seat] = values_S
            calls += asyncio.run(_improve(env, table, asked, ask, improved_S_A))
        if np.array_equal(improved_S_A, policy_S_A):
            return
        policy_S_A, improvements = improved_S_A, improvements + 1


async def _improve(env: SeatedEnv, table: GameTable, asked: np.ndarray, ask: Asker, policy_S_A: np.ndarray) -> int:
    """Writes the improved policy of the positions `asked` into `policy_S_A`; returns the number of questions."""
    column = {move: a for a, move in enumerate(table.moves_A)}
    rng, game, calls = np.random.default_rng(0), env.clone(), 0
    for s in asked:
        game.set_state(table.states_S[s])
        decision = await decide(game, (game.observation,), CallId(0, int(s), "policy"), rng, ask=ask, knobs=ONE_MOVE)
        if decision.choice is None:
            raise ValueError(f"Position {table.states_S[s]!r} got no usable reply, so the iteration has no result.")
        best = [column[move] for move in tied(decision.choice)]
        policy_S_A[s] = 0
        policy_S_A[s, best] = 1 / len(best)
        calls += decision.calls
    return calls


def _texts(env: SeatedEnv, table: GameTable) -> list[str]:
    """What each position reads like, without the final newline: the oracle's key."""
    game, texts = env.clone(), []
    for state in table.states_S:
        game.set_state(state)
        texts.append(game.observation.rstrip("\n"))
    if len(set(texts)) < len(texts):
        raise ValueError("Two positions of the game read the same, so no text can be their key.")
    return texts


def print_policies(env_id: str) -> None:
    """Print a line a policy: what it wins against uniformly random play with each seat.

    Raises:
        EnvError: the game is not one of two, or too large for a table.
        UnknownNameError: there is no such game.
    """
    env = registry.load("env", env_id)()
    if not isinstance(env, SeatedEnv):
        raise EnvError(f"Exact policy iteration is for games of two, and '{env_id}' is not one; take tic_tac_toe.")
    try:
        for record in policy_iteration(env):
            first, second = record.match.outcomes_P_R[:, 2]
            print(
                f"improvement {record.improvements}: wins {record.match.win:7.2%} against random play, {first:7.2%} as "
                f"{env.seats[0]}, {second:7.2%} as {env.seats[1]}, mean return {record.match.mean_return:6.3f}, "
                f"{record.calls:,} questions",
                flush=True,
            )
    except ValueError as error:
        raise EnvError(str(error)) from error
    print("no improvement changes it")
