"""The rules of the games against other people's: OpenSpiel for board games, gymnasium for FrozenLake.

`python -m nlrl_envs.verify --plies 100000` plays random games in both at once and stops at the first ply at which legal
moves, turn, end or outcome differ. OpenSpiel starts 5x5 Breakthrough with one row of pawns, so that board is compared
with one row; the paper's two rows are compared on 6x5, 6x6 and 8x8, and by perft in the tests.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from nlrl_envs.base import SeatedEnv
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import ACTIONS, FrozenLakeText
from nlrl_envs.tic_tac_toe import TicTacToe


class Difference(AssertionError):
    """Two implementations of one game disagree; the message says where."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared without finding a difference."""

    plies: int
    games: int
    outcomes: dict[Any, int]
    """How often games ended in which way."""


def compare_board_game(env: SeatedEnv, opened: str, names: bool, plies: int, seed: int = 0) -> Comparison:
    """Random games in ours and in OpenSpiel's `opened`; moves are matched by `names`, or else by their numbers.

    Raises:
        Difference: at the first ply that differs.
        ModuleNotFoundError: OpenSpiel is not installed.
    """
    spiel: Any = importlib.import_module("pyspiel")
    game, rng, ours = spiel.load_game(opened), np.random.default_rng(seed), env
    done, games, outcomes = 0, 0, {}
    while done < plies:
        theirs, history = game.new_initial_state(), []
        ours.reset(rng)
        while ours.legal_actions:
            where = f"{opened} after {' '.join(history) or 'the start'}"
            legal = theirs.legal_actions()
            found = sorted(map(theirs.action_to_string, legal)) if names else legal
            mine = sorted(ours.legal_actions) if names else list(getattr(ours, "legal_numbers", ()))
            _same(mine, found, f"Legal moves differ in {where}")
            _same(ours.seat, theirs.current_player(), f"The turn differs in {where}")
            move = ours.legal_actions[int(rng.integers(len(ours.legal_actions)))]
            number = theirs.string_to_action(move) if names else legal[ours.legal_actions.index(move)]
            ours.step(move)
            theirs.apply_action(number)
            history.append(move)
            done += 1
            _same(ours.result_P is not None, theirs.is_terminal(), f"The end differs in {where} {move}")
        _same(ours.result_P, tuple(theirs.returns()), f"The outcome differs in {opened} after {' '.join(history)}")
        games += 1
        outcomes[ours.result_P] = outcomes.get(ours.result_P, 0) + 1
    return Comparison(done, games, outcomes)


def compare_lake(ours: FrozenLakeText, plies: int, seed: int = 0) -> Comparison:
    """Random games in ours and in gymnasium's FrozenLake on the same map, with the same luck.

    Raises:
        Difference: at the first ply that differs.
    """
    theirs: Any = gymnasium.make(
        "FrozenLake-v1", desc=list(ours.rows), is_slippery=ours.slippery, max_episode_steps=ours.horizon
    )
    rng, done, games, outcomes = np.random.default_rng(seed), 0, 0, {}
    while done < plies:
        ours.reset(rng)
        theirs.reset(seed=games)
        theirs.unwrapped.np_random = deepcopy(ours.chance)
        while ours.legal_actions:
            action = int(rng.integers(len(ACTIONS)))
            step = ours.step(ACTIONS[action])
            position, reward, terminated, truncated, _ = theirs.step(action)
            done += 1
            mine = ours.state.position, step.reward, step.terminated, step.truncated
            _same(mine, (position, reward, terminated, truncated and not terminated), f"Ply {done} differs")
        games += 1
        outcomes[ours.terminal_text] = outcomes.get(ours.terminal_text, 0) + 1
    return Comparison(done, games, outcomes)


def _same(ours: Any, theirs: Any, what: str) -> None:
    if ours != theirs:
        raise Difference(f"{what}: ours {ours}, theirs {theirs}.")


COMPARISONS: dict[str, Callable[[int], Comparison]] = {
    "tic_tac_toe": lambda plies: compare_board_game(TicTacToe(), "tic_tac_toe", False, plies),
    "connect_four": lambda plies: compare_board_game(ConnectFour(), "connect_four", False, plies),
    **{
        f"breakthrough {size}, {rows} rows of pawns": lambda plies, size=size, rows=rows: compare_board_game(
            Breakthrough(size, rows), "breakthrough(rows={},columns={})".format(*size.split("x")), True, plies
        )
        for size, rows in (("5x5", 1), ("6x5", 2), ("6x6", 2), ("8x8", 2))
    },
    **{
        f"frozen_lake {map_}, {'slippery' if slippery else 'dry'}": lambda plies, map_=map_, slippery=slippery: (
            compare_lake(FrozenLakeText(map_, slippery), plies)
        )
        for map_ in ("4x4", "8x8", "random:3")
        for slippery in (True, False)
    },
}
"""What can be compared with what other people wrote, by name."""


def main() -> None:
    """Compare every game and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plies", type=int, default=100_000, help="plies a game, at least")
    plies = parser.parse_args().plies
    for name, compare in COMPARISONS.items():
        begun = time.perf_counter()
        found = compare(plies)
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in found.outcomes.items())
        seconds = time.perf_counter() - begun
        print(f"{name}: {found.plies} plies, {found.games} games, no difference ({outcomes}; {seconds:.0f} s)")


if __name__ == "__main__":
    main()
