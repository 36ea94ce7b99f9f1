"""A game written down move by move: the golden logs in envs/golden.

`python -m nlrl_envs.playthrough maze > envs/golden/maze.txt` writes one anew; a difference is a change of behaviour and
is reviewed like code.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Hashable

import numpy as np

from nlrl_envs import ENVS
from nlrl_envs.base import TextEnv


def play_through(env: TextEnv, seed: int = 0) -> str:
    """The task, then a random game from the first and one from the last start, an illegal move in each."""
    starts = env.starts()
    lines = [f"task: {env.task}", f"starts: {'; '.join(env.describe_start(start) for start in starts)}"]
    rng = np.random.default_rng(seed)
    for start in (starts[0], starts[-1]):
        lines += _game(env, start, rng)
    return "\n".join(lines) + "\n"


def _game(env: TextEnv, start: Hashable, rng: np.random.Generator) -> list[str]:
    observation = env.reset(rng, start)
    lines = ["", f"start {env.describe_start(start)}", env.render(), observation.rstrip("\n")]
    lines.append(f"legal: {', '.join(env.legal_actions)}")
    total, moves = 0.0, 0
    while env.legal_actions:
        move = "sing" if moves == 1 else env.legal_actions[int(rng.integers(len(env.legal_actions)))]
        result = env.step(move)
        total, moves = total + result.reward, moves + 1
        mark = "" if result.legal else " (illegal)"
        lines.append(f"{moves}. {move}{mark}: {result.reward:g} | {result.observation.rstrip()}")
    lines += [env.render(), f"{env.terminal_text} Moves {moves}, return {total:g}"]
    return lines


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
