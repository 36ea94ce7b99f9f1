"""The game of a run: what is played, from where, against whom, and what is known about it exactly."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrl import registry
from nlrl.config import RunConfig
from nlrl.errors import ConfigError, EnvError
from nlrl_envs import REFERENCES
from nlrl_envs.base import Reference, TextEnv, seats_of
from nlrl_envs.opponents import Opponent, OpponentError, make_opponent, uniform_random
from nlrl_envs.symmetry import canonical


@dataclass(frozen=True, slots=True)
class Task:
    """The game of a run, where its games start, and the exact answers when the game has a solver."""

    id: str
    env: TextEnv
    starts_G: tuple[Hashable, ...]
    reference: Reference | None
    opponent: Opponent | None = None
    """Of the run's player; None in games of one."""
    policy_items: int | None = None
    """See `nlrl.ask.Asker`."""


def build_task(config: RunConfig) -> Task:
    """The game, its starts, its opponent and its exact answers.

    Raises:
        EnvError: the game has no such map, option or opponent.
        ConfigError: there are to be no games.
    """
    env = _game(config)
    starts = env.starts()
    if isinstance(config.env.starts, int):
        if config.env.starts < 1:
            raise ConfigError("env.starts must be 'all' or a positive number of games.")
        rng = np.random.default_rng((config.seed, 1))
        starts = tuple(starts[i] for i in rng.integers(len(starts), size=config.env.starts))
    opponent = opponent_of(config.env.opponent, config, env)
    return Task(
        config.env.id, env, starts, exact_reference(config.env.id, env, starts), opponent, config.env.policy_items
    )


def _game(config: RunConfig) -> TextEnv:
    make = registry.load("env", config.env.id)
    known = [name for name in inspect.signature(make).parameters if name not in ("map_", "size", "self")]
    for name in config.env.options:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise EnvError(f"env.options.{name} cannot be used: '{config.env.id}' has the options: {listed}.")
    try:
        return make(*filter(None, (config.env.map,)), **config.env.options)
    except (ValueError, TypeError) as error:
        raise EnvError(str(error)) from error


def opponent_of(name: str, config: RunConfig, env: TextEnv) -> Opponent | None:
    """The opponent that a recipe names; None in a game of one. "pool" begins with random moves.

    Raises:
        EnvError: the game lacks that opponent, or a pool has no past policies to come from.
    """
    if len(seats_of(env)) == 1:
        if name != "random":
            raise EnvError(f"'{config.env.id}' is a game of one and has no opponent '{name}'; leave env.opponent out.")
        return None
    if name == "pool":
        if config.loop != "actor_critic":
            raise EnvError("env.opponent = 'pool' needs a policy that learns: take loop = 'actor_critic'.")
        return uniform_random
    try:
        return make_opponent(name, env)  # type: ignore[arg-type]  it has seats
    except OpponentError as error:
        raise EnvError(str(error)) from error


def exact_reference(env_id: str, env: TextEnv, starts: Sequence[Hashable]) -> Reference | None:
    """The solver's answers for these starts; None for a game without a solver of this kind."""
    solver = REFERENCES.get(env_id)
    return registry.resolve(solver)(env, starts) if solver else None


def exact_values(task: Task) -> dict[str, float]:
    """V* by observation text (without its final newline), for the oracle engine."""
    env = task.env.clone()
    starts = env.starts()
    exact = exact_reference(task.id, env, starts)
    if exact is None:
        raise ConfigError(
            f"The oracle engine has no exact values of '{task.id}' to look ahead with; take loop = 'actor_critic', in "
            "which it learns them, or another engine."
        )
    values: dict[str, float] = {}
    for start, value in zip(starts, exact.optimal_returns_G, strict=True):
        env.set_state(start)
        values[env.observation.rstrip("\n")] = value
    return values


def positions(task: Task, config: RunConfig) -> tuple[tuple[Hashable, ...], tuple[Hashable, ...]]:
    """(what is learned from, what is only asked about) in the loop td_values: different positions of seeded games.

    The games are played by the recipe's opponent on every seat (at random in games of one), so that positions are of
    the kind that such games bring; a game that is over is no position.
    """
    rng = np.random.default_rng((config.seed, 3))
    found: dict[Any, Any] = {}
    going = []
    for _ in range(config.training.games):
        game = task.env.clone()
        game.reset(rng, task.starts_G[int(rng.integers(len(task.starts_G)))])
        going.append(game)
    mover = task.opponent or uniform_random
    while going:
        for game in going:
            # A position and its mirror image are one: none is learned from while the other is judged.
            found.setdefault(canonical(game, game.state), game.state)
        moved = [(game, game.step(move)) for game, move in zip(going, mover(going, rng), strict=True)]  # type: ignore[arg-type]
        going = [game for game, result in moved if not (result.terminated or result.truncated)]
    states = list(found.values())
    order, learned, held = rng.permutation(len(states)), config.training.positions, config.training.held_out
    learned = len(states) - held if learned is None else learned
    if learned < 1 or learned + held > len(states):
        raise ConfigError(
            f"{config.training.games} games have {len(states)} different positions, which is too few for "
            f"training.positions and training.held_out; play more with training.games."
        )
    shuffled = tuple(states[i] for i in order)
    return shuffled[:learned], shuffled[learned : learned + held]
