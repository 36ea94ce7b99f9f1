"""Games between opponents, many at a time: who wins how often from which seat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlrl_envs.base import SeatedEnv
from nlrl_envs.opponents import Opponent

BATCH = 64


def play_games(
    env: SeatedEnv, seats_G: Sequence[tuple[Opponent, Opponent]], rng: np.random.Generator, batch: int = BATCH
) -> np.ndarray:
    """The result of seat 0, 1, 0 or -1, of each game, (G,).

    `seats_G` says who takes seat 0 and seat 1 in each game. At most `batch` games are in progress at a time, and an
    opponent is asked at once for all of them in which it moves.
    """
    results_G = np.zeros(len(seats_G))
    waiting, going = list(range(len(seats_G)))[::-1], {}
    while waiting or going:
        while waiting and len(going) < batch:
            game = waiting.pop()
            going[game] = env.clone()
            going[game].reset(rng)
        asked: dict[int, tuple[Opponent, list[int]]] = {}
        for game, position in going.items():
            mover = seats_G[game][position.seat]
            asked.setdefault(id(mover), (mover, []))[1].append(game)
        for mover, games in asked.values():
            for game, move in zip(games, mover([going[g] for g in games], rng), strict=True):
                going[game].step(move)
        for game in [g for g, position in going.items() if position.result_P is not None]:
            results_G[game] = going.pop(game).result_P[0]
    return results_G


def play_match(
    env: SeatedEnv, learner: Opponent, opponent: Opponent, games: int, rng: np.random.Generator
) -> np.ndarray:
    """How often the learner loses, draws and wins, (2, 3): as seat 0 in half of the games, then as seat 1.

    Raises:
        ValueError: the number of games is odd, so that the seats cannot be shared.
    """
    if games % 2:
        raise ValueError(f"Seats are shared equally, so a match has an even number of games, not {games}.")
    half = games // 2
    results_G = play_games(env, [(learner, opponent)] * half + [(opponent, learner)] * half, rng)
    mine_P_G = np.stack([results_G[:half], -results_G[half:]])
    return np.stack([(mine_P_G == result).sum(axis=1) for result in (-1, 0, 1)], axis=1)
