"""Generalised advantage estimation over a learner's own turns.

Source: Schulman et al., "High-dimensional continuous control using generalized advantage estimation", arXiv 1506.02438,
eq. 16: A_t = delta_t + gamma lambda A_{t+1} with delta_t = r_t + gamma V_{t+1} - V_t; nothing follows a terminal turn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def advantages(
    rewards_T: Sequence[float],
    values_T: Sequence[float],
    terminal: bool,
    gamma: float,
    decay: float,
    after: float = 0.0,
) -> np.ndarray:
    """A of each turn of one episode, (T,); A + V is what the critic should have said.

    Args:
        rewards_T: of each turn (`nlrl.baselines.episodes.Turn`).
        values_T: V as the critic said it when the turn was made.
        terminal: whether the game ended with the last turn.
        gamma: discount a turn.
        decay: lambda.
        after: V of what follows the last turn, when it is not terminal.

    Raises:
        ValueError: there is not one value a reward.
    """
    if len(rewards_T) != len(values_T):
        raise ValueError(f"{len(values_T)} values for {len(rewards_T)} rewards; give one for each turn.")
    found_T = np.zeros(len(rewards_T))
    following, total = 0.0 if terminal else after, 0.0
    for t in reversed(range(len(rewards_T))):
        total = rewards_T[t] + gamma * following - values_T[t] + gamma * decay * total
        found_T[t], following = total, values_T[t]
    return found_T
