"""A whole game as arrays: V* and V^pi of games of two that are small enough to be written down.

V* is what both seats get from perfect play, V^pi what a policy gets against a given opponent. They are kept apart by
name, because a correct evaluation of a weak policy must disagree with V*: on Tic-Tac-Toe the sign of the exact
Q^random is that of perfect play for only 70.6 % of all moves.

Axes: S positions, the start first; A the game's move strings, in the order in which they turned up; R the three results
loss, draw, win. Values are the return of seat 0 unless a name says otherwise. Policies are arrays policy_S_A of
probabilities over the legal moves of whoever moves; rows of finished games are not read. Everything is a pure function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrl_envs.base import SeatedEnv

RETURN_R = np.array([-1.0, 0.0, 1.0])
"""What the results loss, draw and win are worth."""
WIN_R = np.array([0.0, 0.0, 1.0])
"""The utility of one who counts wins alone."""


@dataclass(frozen=True)
class GameTable:
    """Every position that can be reached by legal moves."""

    states_S: tuple[Any, ...]
    moves_A: tuple[str, ...]
    seat_S: np.ndarray
    """(S,) whose turn it is."""
    next_S_A: np.ndarray
    """(S, A) the position a move leads to; -1 where it is not legal."""
    result_S: np.ndarray
    """(S,) the return of seat 0 in finished games; NaN in others."""
    layers: tuple[np.ndarray, ...]
    """Positions by the length of the longest game from there; finished ones first, so that backups go forwards."""

    @property
    def legal_S_A(self) -> np.ndarray:
        """(S, A) bool."""
        return self.next_S_A >= 0

    @property
    def over_S(self) -> np.ndarray:
        """(S,) bool: finished games."""
        return ~np.isnan(self.result_S)


@dataclass(frozen=True)
class Match:
    """What a policy achieves against an opponent from the start, exactly."""

    outcomes_P_R: np.ndarray
    """(2, 3) probabilities of loss, draw and win, as seat 0 and as seat 1."""

    @property
    def win(self) -> float:
        """Probability of a win with both seats equally often."""
        return float(self.outcomes_P_R[:, 2].mean())

    @property
    def mean_return(self) -> float:
        """Expected return with both seats equally often."""
        return float((self.outcomes_P_R @ RETURN_R).mean())


def tabulate(env: SeatedEnv, start: Any = None, limit: int = 200_000) -> GameTable:
    """Write down every position that follows from `start` (the game's first one when None). Two seats, no chance.

    Raises:
        ValueError: there are more than `limit` positions, or the game can repeat a position.
    """
    index: dict[Any, int] = {}
    rows: list[tuple[SeatedEnv, dict[str, int]]] = []
    height: dict[int, int] = {}

    def visit(game: SeatedEnv) -> int:
        if len(rows) >= limit:
            raise ValueError(f"The game has more than {limit} positions from there; a table is for smaller ones.")
        index[game.state] = len(rows)
        rows.append((game, {}))
        return len(rows) - 1

    root = env.clone()
    root.set_state(env.starts()[0] if start is None else start)
    stack = [(visit(root), iter(root.legal_actions))]
    while stack:
        here, moves = stack[-1]
        game, followers = rows[here]
        move = next(moves, None)
        if move is None:
            height[here] = 1 + max((height[s] for s in followers.values()), default=-1)
            stack.pop()
            continue
        after = game.clone()
        after.step(move)
        known = index.get(after.state)
        followers[move] = visit(after) if known is None else known
        if known is None:
            stack.append((followers[move], iter(after.legal_actions)))
        elif known not in height:
            raise ValueError("The game can come back to a position; a table is for games that cannot.")
    return _as_table(rows, height)


def _as_table(rows: list[tuple[SeatedEnv, dict[str, int]]], height: dict[int, int]) -> GameTable:
    moves_A = tuple(dict.fromkeys(move for _, followers in rows for move in followers))
    column = {move: a for a, move in enumerate(moves_A)}
    next_S_A = np.full((len(rows), len(moves_A)), -1, np.int32)
    for s, (_, followers) in enumerate(rows):
        for move, follower in followers.items():
            next_S_A[s, column[move]] = follower
    height_S = np.array([height[s] for s in range(len(rows))])
    return GameTable(
        states_S=tuple(game.state for game, _ in rows),
        moves_A=moves_A,
        seat_S=np.array([game.seat for game, _ in rows]),
        next_S_A=next_S_A,
        result_S=np.array([np.nan if game.result_P is None else game.result_P[0] for game, _ in rows]),
        layers=tuple(np.flatnonzero(height_S == h) for h in range(height_S.max() + 1)),
    )


def sign_S(table: GameTable) -> np.ndarray:
    """(S,) 1 where seat 0 moves, -1 where seat 1 does: turns values of seat 0 into values of the mover and back."""
    return 1.0 - 2.0 * table.seat_S


def optimal_values(table: GameTable) -> np.ndarray:
    """V*, (S,): the return of seat 0 when both play perfectly."""
    values_S, sign = np.nan_to_num(table.result_S), sign_S(table)
    for layer in table.layers[1:]:
        q = np.where(table.legal_S_A[layer], sign[layer, None] * values_S[table.next_S_A[layer]], -np.inf)
        values_S[layer] = sign[layer] * q.max(axis=1)
    return values_S


def action_values(table: GameTable, values_S: np.ndarray) -> np.ndarray:
    """Q, (S, A): the value of the position a move leads to; NaN where it is not legal."""
    return np.where(table.legal_S_A, values_S[table.next_S_A], np.nan)


def greedy_policy(table: GameTable, q_S_A: np.ndarray, tolerance: float = 1e-9) -> np.ndarray:
    """The mover's best moves by Q, all with the same probability, (S, A); 0 in finished games."""
    mine_S_A = np.where(table.legal_S_A, sign_S(table)[:, None] * q_S_A, -np.inf)
    best_S_A = table.legal_S_A & (mine_S_A >= mine_S_A.max(axis=1, keepdims=True) - tolerance)
    return _normalised(best_S_A)


def optimal_policy(table: GameTable) -> np.ndarray:
    """Every move of perfect play, with the same probability, (S, A)."""
    return greedy_policy(table, action_values(table, optimal_values(table)))


def uniform_policy(table: GameTable) -> np.ndarray:
    """Every legal move with the same probability, (S, A)."""
    return _normalised(table.legal_S_A)


def first_policy(table: GameTable) -> np.ndarray:
    """The first legal move, (S, A), first in the order of `moves_A`."""
    policy_S_A = np.zeros(table.next_S_A.shape)
    going = np.flatnonzero(~table.over_S)
    policy_S_A[going, table.legal_S_A[going].argmax(axis=1)] = 1
    return policy_S_A


def joined(table: GameTable, learner_S_A: np.ndarray, opponent_S_A: np.ndarray, seat: int) -> np.ndarray:
    """The policy of both seats, the learner's where `seat` moves, (S, A)."""
    return np.where((table.seat_S == seat)[:, None], learner_S_A, opponent_S_A)


def policy_outcomes(table: GameTable, policy_S_A: np.ndarray) -> np.ndarray:
    """Probabilities that seat 0 loses, draws, wins when both seats follow the policy, (S, R).

    Raises:
        ValueError: a row of the policy is no distribution over legal moves.
    """
    _check_policy(table, policy_S_A)
    outcomes_S_R = (table.result_S[:, None] == RETURN_R).astype(float)
    for layer in table.layers[1:]:
        outcomes_S_R[layer] = np.einsum("sa,sar->sr", policy_S_A[layer], outcomes_S_R[table.next_S_A[layer]])
    return outcomes_S_R


def policy_values(table: GameTable, policy_S_A: np.ndarray) -> np.ndarray:
    """V^pi, (S,): the expected return of seat 0 when both seats follow the policy; see `joined` for two policies."""
    return policy_outcomes(table, policy_S_A) @ RETURN_R


def match(table: GameTable, learner_S_A: np.ndarray, opponent_S_A: np.ndarray) -> Match:
    """What the learner achieves from the start with either seat."""
    as_first, as_second = (
        policy_outcomes(table, joined(table, learner_S_A, opponent_S_A, seat))[0] for seat in (0, 1)
    )
    return Match(np.stack([as_first, as_second[::-1]]))


def best_response(
    table: GameTable, opponent_S_A: np.ndarray, seat: int, utility_R: np.ndarray = RETURN_R
) -> tuple[np.ndarray, np.ndarray]:
    """The best one can do with `seat` against a known opponent.

    Returns (values_S, policy_S_A): the expected utility of `seat`, and a policy of that seat that reaches it, tied
    moves shared equally; its rows where the opponent moves are 0.

    Raises:
        ValueError: a row of the opponent's policy is no distribution over legal moves.
    """
    _check_policy(table, opponent_S_A)
    mine_R = utility_R if seat == 0 else utility_R[::-1]
    values_S = (table.result_S[:, None] == RETURN_R) @ mine_R
    for layer in table.layers[1:]:
        q = np.where(table.legal_S_A[layer], values_S[table.next_S_A[layer]], -np.inf)
        expected = (opponent_S_A[layer] * np.where(table.legal_S_A[layer], q, 0)).sum(axis=1)
        values_S[layer] = np.where(table.seat_S[layer] == seat, q.max(axis=1), expected)
    q_S_A = np.where(table.legal_S_A, values_S[table.next_S_A], -np.inf)
    best_S_A = (
        table.legal_S_A & (table.seat_S == seat)[:, None] & (q_S_A >= q_S_A.max(axis=1, keepdims=True) - 1e-9)
    )
    return values_S, _normalised(best_S_A)


def policy_iteration(table: GameTable, opponent_S_A: np.ndarray) -> Iterator[tuple[np.ndarray, Match]]:
    """Exact policy iteration against a fixed opponent, from uniformly random play until the policy stays as it is.

    Yields (policy_S_A, match) for the initial policy and after each improvement. Each step evaluates Q^pi for each of
    the two seats (the learner continues with its present policy, the opponent with its own) and moves greedily by it,
    ties shared equally. On Tic-Tac-Toe against random play it wins 43.65, 94.64, 96.08 and 96.34 % and stops.
    """
    policy_S_A = uniform_policy(table)
    while True:
        yield policy_S_A, match(table, policy_S_A, opponent_S_A)
        improved_S_A = np.zeros_like(policy_S_A)
        for seat in (0, 1):
            values_S = policy_values(table, joined(table, policy_S_A, opponent_S_A, seat))
            greedy_S_A = greedy_policy(table, action_values(table, values_S))
            improved_S_A = joined(table, greedy_S_A, improved_S_A, seat)
        if np.array_equal(improved_S_A, policy_S_A):
            return
        policy_S_A = improved_S_A


def _normalised(chosen_S_A: np.ndarray) -> np.ndarray:
    return chosen_S_A / np.maximum(chosen_S_A.sum(axis=1, keepdims=True), 1)


def _check_policy(table: GameTable, policy_S_A: np.ndarray) -> None:
    if policy_S_A.shape != table.next_S_A.shape:
        raise ValueError(f"The policy has shape {policy_S_A.shape}; give one of {table.next_S_A.shape}.")
    going = ~table.over_S
    rows, legal = policy_S_A[going], table.legal_S_A[going]
    if (rows < 0).any() or rows[~legal].any() or not np.allclose(rows.sum(axis=1), 1):
        raise ValueError("A row of the policy is no distribution over legal moves; let its probabilities sum to 1.")
