"""Exact answers for the maze: V*, Q*, and V^pi and Q^pi of any tabular policy.

Axes in names: S free cells in row order, the goal among them; A the four actions in the order of `ACTIONS`.
Policies are arrays policy_S_A of probabilities; the goal's row is not read. Everything here is a pure function.

The optimum is stated without a horizon: as long as no distance exceeds the horizon, which holds for all known maps and
all generated ones at 100, the optimum with a horizon is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nlrl_envs.base import Reference
from nlrl_envs.maze import GOAL_REWARD, HORIZON, RAN_OUT_REWARD, STEP_REWARD, MazeState, MazeText
from nlrl_envs.maze_maps import ACTIONS, Cell, MazeMap


@dataclass(frozen=True)
class MazeTable:
    """A maze as arrays."""

    cells_S: tuple[Cell, ...]
    goal: int
    """Index of the goal in S."""
    next_S_A: np.ndarray
    """(S, A) int: the cell an action leads to; the goal's row leads to the goal."""
    reward_S_A: np.ndarray
    """(S, A) float: the reward of an action before the horizon; 0 in the goal's row."""
    bump_S_A: np.ndarray
    """(S, A) bool: the action runs into a wall; False in the goal's row."""

    @property
    def starts(self) -> np.ndarray:
        """Indices in S of all cells but the goal."""
        return np.flatnonzero(np.arange(len(self.cells_S)) != self.goal)


@dataclass(frozen=True)
class PolicyValues:
    """What a policy is worth within a horizon."""

    values_S: np.ndarray
    """Expected return; 0 at the goal."""
    q_S_A: np.ndarray
    """Expected return of an action first and the policy after it; 0 at the goal."""
    success_S: np.ndarray
    """Probability to reach the goal; 1 at the goal."""


def tabulate(maze: MazeMap) -> MazeTable:
    """The arrays of a maze."""
    cells_S = maze.free_cells
    index = {cell: s for s, cell in enumerate(cells_S)}
    goal = index[maze.goal]
    next_S_A = np.array([[index[maze.next_cell(cell, a)] for a in range(len(ACTIONS))] for cell in cells_S])
    bump_S_A = next_S_A == np.arange(len(cells_S))[:, None]
    next_S_A[goal], bump_S_A[goal] = goal, False
    reward_S_A = np.where(next_S_A == goal, GOAL_REWARD, STEP_REWARD)
    return MazeTable(cells_S, goal, next_S_A, reward_S_A, bump_S_A)


def shortest_distances(table: MazeTable) -> np.ndarray:
    """Moves to the goal on a shortest way, (S,) float; infinity where there is none."""
    distances_S = np.full(len(table.cells_S), np.inf)
    distances_S[table.goal] = 0
    while True:
        shorter_S = np.minimum(distances_S, 1 + distances_S[table.next_S_A].min(axis=1))
        if np.array_equal(shorter_S, distances_S):
            return distances_S
        distances_S = shorter_S


def optimal_values(table: MazeTable) -> np.ndarray:
    """V*, (S,): -(d - 1) at distance d, 0 at the goal."""
    distances_S = shortest_distances(table)
    return np.where(distances_S > 1, STEP_REWARD * (distances_S - 1), GOAL_REWARD)


def action_values(table: MazeTable, values_S: np.ndarray) -> np.ndarray:
    """One-step look-ahead, (S, A): reward plus the value of the cell it leads to."""
    return table.reward_S_A + values_S[table.next_S_A]


def optimal_action_values(table: MazeTable) -> np.ndarray:
    """Q*, (S, A); 0 in the goal's row."""
    return action_values(table, optimal_values(table))


def best_actions(q_S_A: np.ndarray, tolerance: float = 1e-9) -> np.ndarray:
    """Which actions are greedy, (S, A) bool; values within `tolerance` of the best are tied."""
    return q_S_A >= q_S_A.max(axis=1, keepdims=True) - tolerance


def optimal_actions(table: MazeTable) -> np.ndarray:
    """Which actions begin a shortest way, (S, A) bool; all of them in the goal's row."""
    return best_actions(optimal_action_values(table))


def uniform_policy(table: MazeTable) -> np.ndarray:
    """Every action with probability 1/4, (S, A)."""
    return np.full(table.next_S_A.shape, 1 / len(ACTIONS))


def greedy_policy(q_S_A: np.ndarray) -> np.ndarray:
    """The greedy action of each state, (S, A) of 0 and 1; of tied actions the first."""
    return np.eye(q_S_A.shape[1])[best_actions(q_S_A).argmax(axis=1)]


def manhattan_action_values(table: MazeTable) -> np.ndarray:
    """A baseline that cannot see dead ends, (S, A): minus the Manhattan distance of the cell an action leads to.

    Its greedy policy depends on how ties are broken. `manhattan_policy` prefers moves along the column (down, then up)
    to moves along the row, which gives -21.32 and 21 of 25 starts on double_t, -31.24 and 18 of 25 on medium.
    """
    cells_S_2 = np.array(table.cells_S)
    distances_S = np.abs(cells_S_2 - cells_S_2[table.goal]).sum(axis=1)
    return -distances_S[table.next_S_A].astype(float)


def manhattan_policy(table: MazeTable) -> np.ndarray:
    """Greedy on the Manhattan distance, (S, A) of 0 and 1; ties in the order down, up, left, right."""
    preferred = [ACTIONS.index(f"move {way}") for way in ("down", "up", "left", "right")]
    policy_S_A = np.zeros(table.next_S_A.shape)
    policy_S_A[:, preferred] = greedy_policy(manhattan_action_values(table)[:, preferred])
    return policy_S_A


def evaluate_policy(table: MazeTable, policy_S_A: np.ndarray, horizon: int = HORIZON) -> PolicyValues:
    """V^pi, Q^pi and the probability of success of a policy by dynamic programming over the moves that are left.

    V_0 is the reward of running out (0 at the goal); Q_h = r + V_{h-1} of the next cell; V_h = sum over a of pi Q_h.

    Raises:
        ValueError: a row of the policy is not a distribution, or the horizon is below 1.
    """
    policy_S_A = _checked(table, policy_S_A)
    if horizon < 1:
        raise ValueError(f"A horizon has at least 1 move, not {horizon}.")
    success_S = (np.arange(len(table.cells_S)) == table.goal).astype(float)
    values_S = RAN_OUT_REWARD * (1 - success_S)
    q_S_A = np.zeros_like(policy_S_A)
    for _ in range(horizon):
        q_S_A = table.reward_S_A + values_S[table.next_S_A]
        values_S = (policy_S_A * q_S_A).sum(axis=1)
        success_S = (policy_S_A * success_S[table.next_S_A]).sum(axis=1)
    return PolicyValues(values_S, q_S_A, success_S)


def evaluate_policy_forever(table: MazeTable, policy_S_A: np.ndarray) -> np.ndarray:
    """V^pi without a horizon, (S,): the solution of V = sum over a of pi (r + V of the next cell).

    Minus infinity where the policy may wander for ever. With horizon 100 the values of weak policies are cut off, and
    their order can change: greedy on uniform random's values is optimal from 45 of 45 starts of `large` with the
    horizon and from 43 without.

    Raises:
        ValueError: a row of the policy is not a distribution.
    """
    policy_S_A = _checked(table, policy_S_A)
    count = len(table.cells_S)
    transition_S_S = np.zeros((count, count))
    np.add.at(transition_S_S, (np.arange(count)[:, None], table.next_S_A), policy_S_A)
    # Paths of up to `count` moves decide who can reach whom; the arrows are what counts, not their weights.
    reach_S_S = np.linalg.matrix_power((transition_S_S > 0) + np.eye(count), count) > 0
    lost_S = ~reach_S_S[:, table.goal]
    ends_S = ~(reach_S_S & lost_S).any(axis=1)
    inner = np.flatnonzero(ends_S & (np.arange(count) != table.goal))
    values_S = np.where(ends_S, 0.0, -np.inf)
    reward_S = (policy_S_A * table.reward_S_A).sum(axis=1)
    values_S[inner] = np.linalg.solve(np.eye(len(inner)) - transition_S_S[np.ix_(inner, inner)], reward_S[inner])
    return values_S


def _checked(table: MazeTable, policy_S_A: np.ndarray) -> np.ndarray:
    """A copy of a policy that is a distribution in every row but the goal's, with a uniform row there."""
    if policy_S_A.shape != table.next_S_A.shape:
        raise ValueError(f"The policy has shape {policy_S_A.shape}; give one of {table.next_S_A.shape}.")
    rows = policy_S_A[table.starts]
    if (rows < 0).any() or not np.allclose(rows.sum(axis=1), 1):
        raise ValueError("A row of the policy is not a distribution; make its probabilities sum to 1.")
    policy_S_A = policy_S_A.copy()
    policy_S_A[table.goal] = 1 / len(ACTIONS)
    return policy_S_A


def start_mean(table: MazeTable, values_S: np.ndarray) -> float:
    """Mean over all starts."""
    return float(values_S[table.starts].mean())


def reference(env: MazeText, starts_G: Sequence[MazeState]) -> Reference:
    """Optimum and uniformly random play from each start, exactly, within the game's horizon."""
    table = tabulate(env.maze)
    random = evaluate_policy(table, uniform_policy(table), env.horizon)
    cells_G = [table.cells_S.index(start.position) for start in starts_G]
    return Reference(
        optimal_returns_G=tuple(env.optimal_return(start) for start in starts_G),
        random_returns_G=tuple(float(random.values_S[s]) for s in cells_G),
        random_success_G=tuple(float(random.success_S[s]) for s in cells_G),
    )
