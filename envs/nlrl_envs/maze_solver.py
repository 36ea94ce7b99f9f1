"""Exact answers for the maze: V*, Q*, and V^pi and Q^pi of any tabular policy.

Axes in names: S free cells in row order, the goal among them; A the four actions in the order of `ACTIONS`.
Policies are arrays policy_S_A of probabilities; the goal's row is not read. Everything here is a pure function.

The optimum is stated without a horizon: as long as no distance exceeds the horizon, which holds for all known maps and
all generated ones at 100, the optimum with a horizon is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nlrl_envs.maze import GOAL_REWARD, HORIZON, RAN_OUT_REWARD, STEP_REWARD
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
    return STEP_REWARD * np.maximum(shortest_distances(table) - 1, 0)


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
    """A baseline that cannot see walls ahead, (S, A): minus the Manhattan distance of the cell an action leads to."""
    cells_S_2 = np.array(table.cells_S)
    distances_S = np.abs(cells_S_2 - cells_S_2[table.goal]).sum(axis=1)
    return -distances_S[table.next_S_A].astype(float)


def evaluate_policy(table: MazeTable, policy_S_A: np.ndarray, horizon: int = HORIZON) -> PolicyValues:
    """V^pi, Q^pi and the probability of success of a policy by dynamic programming over the moves that are left.

    V_0 is the reward of running out (0 at the goal); Q_h = r + V_{h-1} of the next cell; V_h = sum over a of pi Q_h.

    Raises:
        ValueError: a row of the policy is not a distribution, or the horizon is below 1.
    """
    others = table.starts
    if policy_S_A.shape != table.next_S_A.shape:
        raise ValueError(f"The policy has shape {policy_S_A.shape}; give one of {table.next_S_A.shape}.")
    if (policy_S_A[others] < 0).any() or not np.allclose(policy_S_A[others].sum(axis=1), 1):
        raise ValueError("A row of the policy is not a distribution; make its probabilities sum to 1.")
    if horizon < 1:
        raise ValueError(f"A horizon has at least 1 move, not {horizon}.")
    policy_S_A = policy_S_A.copy()
    policy_S_A[table.goal] = 1 / len(ACTIONS)
    success_S = (np.arange(len(table.cells_S)) == table.goal).astype(float)
    values_S = RAN_OUT_REWARD * (1 - success_S)
    q_S_A = np.zeros_like(policy_S_A)
    for _ in range(horizon):
        q_S_A = table.reward_S_A + values_S[table.next_S_A]
        values_S = (policy_S_A * q_S_A).sum(axis=1)
        success_S = (policy_S_A * success_S[table.next_S_A]).sum(axis=1)
    return PolicyValues(values_S, q_S_A, success_S)


def start_mean(table: MazeTable, values_S: np.ndarray) -> float:
    """Mean over all starts."""
    return float(values_S[table.starts].mean())
