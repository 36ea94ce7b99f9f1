"""Positions that players of every strength come to, and how such players go on from them.

Source: arXiv 2411.14251, appendix on Breakthrough: states come from MCTS against MCTS over a grid of simulations and
roll-outs, so that good and bad positions occur; a state's label is the mean result of 30 games that a strong MCTS plays
on from it against itself.

Deviations on purpose: a position and its mirror image are one position, before anything is held out (the authors split
raw strings, so a test position's image may be in training); every game and every label has a seed of its own, so the
same arguments give the same positions and labels on any number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from nlrl_envs.board_game import Position
from nlrl_envs.breakthrough import Breakthrough

Result = TypeVar("Result")
PAPER_GRID = tuple((simulations, roll_outs) for simulations in (2, 10, 100, 1000) for roll_outs in (1, 10, 100))
"""The players of the authors' script; the paper has 1,000 roll-outs besides."""
SMALL_GRID = tuple((simulations, roll_outs) for simulations in (2, 10, 100) for roll_outs in (1, 10))
"""Those of them that a laptop can play thousands of games with."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A position and where it was first met."""

    position: Position
    ply: int
    """Moves made before it."""


@dataclass(frozen=True, slots=True)
class Player:
    """Monte Carlo tree search (`nlrl_envs.mcts_core`)."""

    simulations: int
    roll_outs: int
    exploration: float = 1.0

    def __str__(self) -> str:
        return f"mcts:{self.simulations}:{self.roll_outs}"


def mixed_positions(
    game: Breakthrough, players: Sequence[Player], games: int, seed: int, enough: int | None = None
) -> list[Occurrence]:
    """Every position, up to mirroring, in games of each ordered pair of players; those of early games first.

    Args:
        game: the board.
        players: all pairs of them play.
        games: rounds: games a pair.
        seed: of all games.
        enough: stop after the round in which so many different positions were met; None to play all rounds.
    """
    pairs = [(first, second) for first in players for second in players]
    found: dict[Position, Occurrence] = {}
    for round_ in range(games):
        jobs = [partial(_moves_of, game, pair, (seed, round_, number)) for number, pair in enumerate(pairs)]
        for positions, _ in _on_all_cores(jobs):
            for ply, position in enumerate(positions):
                found.setdefault(canonical(game, position), Occurrence(position, ply))
        if enough is not None and len(found) >= enough:
            break
    return list(found.values())


def held_out(occurrences: Sequence[Occurrence], count: int, seed: int) -> tuple[list[Occurrence], list[Occurrence]]:
    """(train, test): `count` positions drawn for testing, the others; in the order of `occurrences`.

    Positions are unlike up to mirroring when they come from `mixed_positions`, so no test position has its image in
    training.

    Raises:
        ValueError: there are fewer than `count` positions.
    """
    if count > len(occurrences):
        raise ValueError(f"{len(occurrences)} positions are too few to hold {count} out; play more games.")
    chosen = set(np.random.default_rng(seed).permutation(len(occurrences))[:count].tolist())
    train = [one for i, one in enumerate(occurrences) if i not in chosen]
    return train, [one for i, one in enumerate(occurrences) if i in chosen]


def mean_results(
    game: Breakthrough, positions: Sequence[Position], player: Player, games: int, seed: int
) -> np.ndarray:
    """V^pi of black by sampling: mean result of `games` games of `player` against itself from each position, (S,)."""
    jobs = [partial(_mean_from, game, position, player, games, (seed, s)) for s, position in enumerate(positions)]
    return np.array(list(_on_all_cores(jobs)), float)


def exact_results(game: Breakthrough, positions: Iterable[Position]) -> np.ndarray:
    """V* of black, 1 or -1, (S,)."""
    from nlrl_envs.breakthrough_solver import solver_of

    solver = solver_of(game)
    return np.array([solver.verdict(position).value for position in positions])


def canonical(game: Breakthrough, position: Position) -> Position:
    """The lesser of a position and its mirror image: equal for both."""
    mirrored = Position(_mirror(game, position.first), _mirror(game, position.second), position.seat)
    return min(Position(position.first, position.second, position.seat), mirrored)


def _mirror(game: Breakthrough, squares: int) -> int:
    rows, columns = game.grid
    row = (1 << columns) - 1
    lines = [squares >> r * columns & row for r in range(rows)]
    return sum(int(f"{line:0{columns}b}"[::-1], 2) << r * columns for r, line in enumerate(lines))


def _moves_of(
    game: Breakthrough, players: tuple[Player, Player], seed: Sequence[int], start: Position | None = None
) -> tuple[list[Position], float]:
    """The positions of one game, in each of which somebody is to move, and what it brought black."""
    from nlrl_envs import breakthrough_core as core
    from nlrl_envs.mcts_core import best_move

    rules, rng = core.rules_of(game), np.random.default_rng(seed)
    words = np.array((start or game.start())[:3], np.uint64)
    positions = []
    while True:
        black, white, mover = (int(word) for word in words)
        positions.append(Position(black, white, mover))
        player = players[mover]
        knobs = (player.simulations, player.roll_outs, player.exploration, np.uint64(rng.integers(2**63)))
        number = best_move(core.moves, core.play, rules, words, *knobs)
        if core.play(rules, words, number):
            return positions, 1.0 - 2.0 * mover


def _mean_from(game: Breakthrough, start: Position, player: Player, games: int, seed: Sequence[int]) -> float:
    return float(np.mean([_moves_of(game, (player, player), (*seed, g), start)[1] for g in range(games)]))


def _on_all_cores(jobs: Sequence[Callable[[], Any]]) -> Iterable[Any]:
    """What each job returns, in their order; the search lets go of Python's lock while it runs."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        yield from threads.map(lambda job: job(), jobs)
