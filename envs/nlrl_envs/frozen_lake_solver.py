"""Exact answers for FrozenLake within its horizon: V*, Q*, and V^pi and Q^pi of any tabular policy.

Axes: S squares of the map, row by row; A the four moves; K the outcomes of a move, three on slippery ice, else one;
F moves that are left, from 0 to the horizon. The transitions are those of gymnasium's own game. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nlrl_envs.base import Reference
from nlrl_envs.frozen_lake import ACTIONS, FrozenLakeState, FrozenLakeText, Rows, distances, lake_of


@dataclass(frozen=True)
class LakeTable:
    """A map as arrays."""

    probability_S_A_K: np.ndarray
    next_S_A_K: np.ndarray
    reward_S_A: np.ndarray
    """(S, A) the expected reward of a move."""
    over_S: np.ndarray
    """(S,) bool: holes and the goal."""
    goal: int


@dataclass(frozen=True)
class LakeValues:
    """What a policy, or perfect play, is worth. Return and probability of success are the same number here."""

    values_F_S: np.ndarray
    """(horizon + 1, S): with so many moves left; 0 where the game is over."""
    q_F_S_A: np.ndarray
    """(horizon + 1, S, A): of a move first; all 0 with no move left."""


def tabulate(rows: Rows, slippery: bool) -> LakeTable:
    """The arrays of a map."""
    transitions = lake_of(rows, slippery).P
    flat = "".join(rows)
    over_S = np.array([letter in "GH" for letter in flat])
    outcomes = 3 if slippery else 1
    probability = np.zeros((len(flat), len(ACTIONS), outcomes))
    following, reward = np.zeros(probability.shape, np.int64), np.zeros(probability.shape[:2])
    for s in range(len(flat)):
        for a in range(len(ACTIONS)):
            for k, (chance, after, gain, _) in enumerate(transitions[s][a]):
                probability[s, a, k], following[s, a, k] = chance, after
                reward[s, a] += chance * gain
    return LakeTable(probability, following, reward, over_S, flat.index("G"))


def action_values(table: LakeTable, values_S: np.ndarray) -> np.ndarray:
    """One-step look-ahead, (S, A): expected reward plus the expected value of where a move leads; 0 when over."""
    q_S_A = table.reward_S_A + (table.probability_S_A_K * values_S[table.next_S_A_K]).sum(axis=2)
    return np.where(table.over_S[:, None], 0.0, q_S_A)


def optimal_values(table: LakeTable, horizon: int) -> LakeValues:
    """V* and Q* for every number of moves that are left."""
    values, q = [np.zeros(len(table.over_S))], [np.zeros(table.reward_S_A.shape)]
    for _ in range(horizon):
        q.append(action_values(table, values[-1]))
        values.append(q[-1].max(axis=1))
    return LakeValues(np.stack(values), np.stack(q))


def policy_values(table: LakeTable, policy_S_A: np.ndarray, horizon: int) -> LakeValues:
    """V^pi and Q^pi of a policy that looks at the square alone.

    Raises:
        ValueError: a row of the policy where the game goes on is no distribution.
    """
    going = ~table.over_S
    if policy_S_A.shape != table.reward_S_A.shape:
        raise ValueError(f"The policy has shape {policy_S_A.shape}; give one of {table.reward_S_A.shape}.")
    if (policy_S_A[going] < 0).any() or not np.allclose(policy_S_A[going].sum(axis=1), 1):
        raise ValueError("A row of the policy is not a distribution; make its probabilities sum to 1.")
    values, q = [np.zeros(len(table.over_S))], [np.zeros(table.reward_S_A.shape)]
    for _ in range(horizon):
        q.append(action_values(table, values[-1]))
        values.append((policy_S_A * q[-1]).sum(axis=1))
    return LakeValues(np.stack(values), np.stack(q))


def uniform_policy(table: LakeTable) -> np.ndarray:
    """Every move with probability 1/4, (S, A)."""
    return np.full(table.reward_S_A.shape, 1 / len(ACTIONS))


def greedy_policy(q_S_A: np.ndarray, tolerance: float = 1e-12) -> np.ndarray:
    """The best moves of each square with the same probability, (S, A)."""
    best_S_A = q_S_A >= q_S_A.max(axis=1, keepdims=True) - tolerance
    return best_S_A / best_S_A.sum(axis=1, keepdims=True)


def shortest_path_policy(rows: Rows) -> np.ndarray:
    """A baseline that ignores slipping, (S, A): the first move on a shortest way around the holes."""
    dry = tabulate(rows, slippery=False)
    left_S_A = np.where(dry.over_S, np.inf, distances(rows))[dry.next_S_A_K[:, :, 0]]
    left_S_A = np.where(dry.next_S_A_K[:, :, 0] == dry.goal, 0, left_S_A)
    return np.eye(len(ACTIONS))[left_S_A.argmin(axis=1)]


def reference(env: FrozenLakeText, starts_G: Sequence[FrozenLakeState]) -> Reference:
    """Optimum and uniformly random play from each start, exactly, within the game's horizon."""
    optimal, random = [], []
    tables = {m: tabulate(env.maps[m], env.slippery) for m in {start[0] for start in starts_G}}
    best = {m: optimal_values(table, env.horizon).values_F_S for m, table in tables.items()}
    chance = {m: policy_values(t, uniform_policy(t), env.horizon).values_F_S for m, t in tables.items()}
    for map_, position, steps in starts_G:
        optimal.append(float(best[map_][env.horizon - steps, position]))
        random.append(float(chance[map_][env.horizon - steps, position]))
    return Reference(tuple(optimal), tuple(random), tuple(random))
