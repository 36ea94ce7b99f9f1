"""Opponents for games of two: each is a function from a batch of games in progress to their next moves.

    opponent = make_opponent("mcts:100:10", Breakthrough())
    moves = opponent(games, np.random.default_rng(0))

Whoever's turn it is in a game, the opponent moves for that seat, so it can take either. All randomness comes from the
generator: the same games and the same generator give the same moves. With a generator a game, a game's move does not
depend on which others are in the batch. A past policy of a run is an `Opponent` too, and `Pool` draws from many.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrl_envs.base import SeatedEnv
from nlrl_envs.board_game import BoardGame, Solver

Randomness = np.random.Generator | Sequence[np.random.Generator]
"""One generator for all games, drawn from game after game, or one for each."""

Opponent = Callable[[Sequence[SeatedEnv], Randomness], list[str]]
"""(games in progress, randomness) -> a legal move in each, for the seat whose turn it is."""

KNOWN = "random, first, minimax, minimax:DEPTH, mcts, mcts:SIMULATIONS:ROLLOUTS"


class OpponentError(ValueError):
    """There is no such opponent, or the game lacks what it needs; one sentence."""


def one_each(rng: Randomness, games: int) -> Sequence[np.random.Generator]:
    """The generator of each game.

    Raises:
        ValueError: there are generators, but not one a game.
    """
    rngs_G = [rng] * games if isinstance(rng, np.random.Generator) else rng
    if len(rngs_G) != games:
        raise ValueError(f"Give one generator for all games or one for each, not {len(rngs_G)} for {games}.")
    return rngs_G


def uniform_random(games: Sequence[SeatedEnv], rng: Randomness) -> list[str]:
    """Every legal move with the same probability."""
    drawn = zip(games, one_each(rng, len(games)), strict=True)
    return [game.legal_actions[int(own.integers(len(game.legal_actions)))] for game, own in drawn]


def first_legal(games: Sequence[SeatedEnv], rng: Randomness) -> list[str]:
    """The first legal move in the game's order."""
    return [game.legal_actions[0] for game in games]


@dataclass(frozen=True)
class Minimax:
    """The best moves by a solver, each with the same probability: perfect play where the solver is exact."""

    solver: Solver

    def __call__(self, games: Sequence[SeatedEnv], rng: Randomness) -> list[str]:
        """An `Opponent`."""
        moves = []
        for game, own in zip(games, one_each(rng, len(games)), strict=True):
            position: Any = game.state
            values = {move: verdict.value for move, verdict in self.solver.move_verdicts(position).items()}
            best = [move for move, value in values.items() if value == max(values.values())]
            moves.append(best[int(own.integers(len(best)))])
        return moves


@dataclass(frozen=True)
class Mcts:
    """Monte Carlo tree search (`nlrl_envs.mcts_core`), the games of a batch on all cores.

    The paper's Breakthrough data come from 2 to 1,000 simulations with 1 to 100 roll-outs, its labels from 1,000 with
    100; UCT's constant is 1.
    """

    core: Any
    """The compiled rules of the game, a module `<name>_core`."""
    rules: np.ndarray
    simulations: int = 1000
    roll_outs: int = 100
    exploration: float = 1.0

    def __call__(self, games: Sequence[SeatedEnv], rng: Randomness) -> list[str]:
        """An `Opponent`."""
        from nlrl_envs.mcts_core import best_move

        def move(game: SeatedEnv, seed: int) -> str:
            state: Any = game
            words = np.array(state.state[:3], np.uint64)
            knobs = (self.simulations, self.roll_outs, self.exploration, np.uint64(seed))
            number = best_move(self.core.moves, self.core.play, self.rules, words, *knobs)
            return state.legal_actions[state.legal_numbers.index(number)]

        seeds = [int(own.integers(2**63)) for own in one_each(rng, len(games))]
        with ThreadPoolExecutor(min(len(games), os.cpu_count() or 1) or 1) as threads:
            return list(threads.map(move, games, seeds))


@dataclass(frozen=True)
class Pool:
    """Opponents to draw from, such as the past policies of a run: one a game, and the same until the game ends."""

    members: tuple[Opponent, ...]
    weights: tuple[float, ...] | None = None
    """How often each is drawn, relative to the others; None for equally often."""

    def draw(self, rng: np.random.Generator, games: int) -> list[Opponent]:
        """An opponent for each of so many games.

        Raises:
            OpponentError: the pool is empty, or its weights are not one positive number a member.
        """
        weights = np.ones(len(self.members)) if self.weights is None else np.array(self.weights, float)
        if not self.members or len(weights) != len(self.members) or (weights < 0).any() or not weights.any():
            raise OpponentError("A pool has at least one opponent, and one weight for each or none at all.")
        drawn = rng.choice(len(self.members), size=games, p=weights / weights.sum())
        return [self.members[i] for i in drawn]


def make_opponent(name: str, game: SeatedEnv) -> Opponent:
    """The opponent a name stands for, in a game.

    Raises:
        OpponentError: there is no such opponent, the game lacks what it needs, or numba is not installed.
    """
    kind, *knobs = name.split(":")
    most = {"minimax": 1, "mcts": 2}.get(kind, 0)
    if len(knobs) > most or not all(knob.isdecimal() and int(knob) > 0 for knob in knobs):
        raise OpponentError(f"'{name}' is no opponent; known: {KNOWN}.")
    numbers = [int(knob) for knob in knobs]
    if kind == "random":
        return uniform_random
    if kind == "first":
        return first_legal
    if kind not in ("minimax", "mcts"):
        raise OpponentError(f"Unknown opponent '{name}'; known: {KNOWN}.")
    reference = (game.solver if kind == "minimax" else game.core) if isinstance(game, BoardGame) else None
    if reference is None:
        raise OpponentError(f"{type(game).__name__} has nothing that '{kind}' needs; take 'random' or 'first'.")
    try:
        found = _load(reference)
        if kind == "mcts":
            return Mcts(found, found.rules_of(game), *numbers)
        return Minimax(found(game, *numbers))
    except TypeError as error:
        raise OpponentError(f"The solver of {type(game).__name__} looks to the end; write 'minimax'.") from error
    except ModuleNotFoundError as error:
        raise OpponentError(f"'{kind}' needs {error.name}: pip install 'nlrl[search]', or take 'random'.") from error
    except ValueError as error:
        raise OpponentError(str(error)) from error


def _load(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found
