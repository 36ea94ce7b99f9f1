"""The numbers that the language estimates stand for: Monte Carlo, n-step TD and TD(lambda) in scalars.

Source: Sutton and Barto, "Reinforcement Learning", 2nd ed., eqs. 5.1, 7.1 and 12.2 to 12.3, undiscounted as the paper's
language Bellman equation is (arXiv 2411.14251, appendix E). With the oracle engine the language estimates must equal
these; they are written from the other side (a backward recursion where the language has weights), so that the two do
not share a mistake.

Axes: T moves after the root; values_T the value of the state after each move, the last one's 0 when the game is over.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def monte_carlo(rewards_K_T: Sequence[Sequence[float]]) -> float:
    """Mean return of games; each has its own length.

    Raises:
        ValueError: there is no game.
    """
    if not rewards_K_T:
        raise ValueError("A mean needs at least one game.")
    return float(np.mean([sum(rewards_T) for rewards_T in rewards_K_T]))


def n_step(rewards_T: Sequence[float], values_T: Sequence[float], n: int) -> float:
    """Rewards of the first n moves and the value of where they lead; a game that ended earlier has all its rewards.

    Raises:
        ValueError: n is below 1, or there is not one value a move.
    """
    _check(rewards_T, values_T)
    if n < 1:
        raise ValueError(f"An estimate looks at least one move ahead, not {n}.")
    last = min(n, len(rewards_T))
    return float(sum(rewards_T[:last]) + values_T[last - 1])


def lambda_return(rewards_T: Sequence[float], values_T: Sequence[float], decay: float) -> float:
    """G_t = r + (1 - lambda) V + lambda G_{t+1}, from the end, where G is r + V.

    Raises:
        ValueError: there is not one value a move, or no move.
    """
    _check(rewards_T, values_T)
    total = values_T[-1]
    for reward, value in zip(reversed(rewards_T), reversed(values_T), strict=True):
        total = reward + (1 - decay) * value + decay * total
    return float(total)


def lambda_weights(decay: float, count: int) -> np.ndarray:
    """The weights of the 1..count-step estimates in a lambda-return, (count,); they sum to 1.

    Raises:
        ValueError: the count is below 1.
    """
    if count < 1:
        raise ValueError("There is at least one estimate to weigh.")
    weights = (1 - decay) * decay ** np.arange(count)
    weights[-1] = decay ** (count - 1)
    return weights


def _check(rewards_T: Sequence[float], values_T: Sequence[float]) -> None:
    if not rewards_T or len(rewards_T) != len(values_T):
        raise ValueError("Give one value a move, that of the state it leads to, for at least one move.")
