"""A game written down move by move: the golden logs in envs/golden.

`python -m nlrl_envs.playthrough maze > envs/golden/maze.txt` writes one anew; a difference is a change of behaviour and
is reviewed like code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Hashable, Iterable

import numpy as np

from nlrl_envs import ENVS
from nlrl_envs.base import TextEnv, TextStep, rewards_of, seat_of, seats_of


def play_through(env: TextEnv, seed: int = 0) -> str:
    """The task, then a random game from the first and one from the last start.

    The second move of each is illegal; with several seats, where that ends the game, only the last game's is.
    """
    starts = env.starts()
    lines = [f"task: {env.task}", f"starts: {'; '.join(env.describe_start(start) for start in starts)}"]
    if len(seats_of(env)) > 1:
        lines.append(f"seats: {', '.join(seats_of(env))}")
    rng = np.random.default_rng(seed)
    for start, illegal_move in ((starts[0], 1 if len(seats_of(env)) == 1 else -1), (starts[-1], 1)):
        lines += _game(env, start, rng, illegal_move)
    return "\n".join(lines) + "\n"


def _game(env: TextEnv, start: Hashable, rng: np.random.Generator, illegal_move: int) -> list[str]:
    observation = env.reset(rng, start)
    lines = ["", f"start {env.describe_start(start)}", env.render(), observation.rstrip("\n")]
    lines.append(f"legal: {', '.join(env.legal_actions)}")
    total_P, moves = np.zeros(len(seats_of(env))), 0
    while env.legal_actions:
        seat = seat_of(env)
        move = "sing" if moves == illegal_move else env.legal_actions[int(rng.integers(len(env.legal_actions)))]
        result = env.step(move)
        total_P, moves = total_P + rewards_of(result), moves + 1
        who = f"{seats_of(env)[seat]} " if len(total_P) > 1 else ""
        lines.append(f"{moves}. {who}{move}{_outcome(result)}")
    lines += [env.render(), f"{env.terminal_text} Moves {moves}, return {_numbers(total_P)}"]
    return lines


def _outcome(result: TextStep) -> str:
    mark = "" if result.legal else " (illegal)"
    gap = "\n" if "\n" in result.observation.rstrip() else " "
    return f"{mark}: {_numbers(rewards_of(result))} |{gap}{result.observation.rstrip()}"


def _numbers(values_P: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values_P)


def main(name: str) -> None:
    """Print the log of a game of the table ENVS.

    Raises:
        SystemExit: there is no such game.
    """
    if name not in ENVS:
        raise SystemExit(f"Unknown game '{name}'; known: {', '.join(ENVS)}.")
    module, attribute = ENVS[name].split(":")
    sys.stdout.write(play_through(getattr(importlib.import_module(module), attribute)()))


if __name__ == "__main__":
    main(*sys.argv[1:2] or [""])
