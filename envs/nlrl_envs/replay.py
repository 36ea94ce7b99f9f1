"""What the adapters share: games whose state is how they came about, over an environment that cannot be copied.

A state is the seed of the reset, then each move with the seed that its chance was drawn from; `set_state` plays that
again. Copies share one environment, which is brought to where it is needed, so interleaving copies costs moves, and
threads must not share them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np


class ReplayState(NamedTuple):
    """How a game came about."""

    seed: int
    """Of the reset."""
    moves: tuple[tuple[str, int], ...] = ()
    """Each move, "" for an illegal one, with the seed of its chance."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a game shows after its last move."""

    text: str
    drawn: str
    legal: tuple[str, ...]
    seat: int = 0
    rewards_P: tuple[float, ...] = (0.0,)
    terminated: bool = False
    truncated: bool = False


@dataclass
class Stage:
    """One environment and the state it is in; all copies of a game share it."""

    env: Any
    state: ReplayState | None = None


class ReplayGame(ABC):
    """A game in progress; a subclass knows the environment."""

    def __init__(self, env: Any, moves: Sequence[str], starts: Sequence[int], horizon: int) -> None:
        self._stage = Stage(env)
        self._moves = tuple(moves)
        self._starts = tuple(int(seed) for seed in starts)
        self._horizon = horizon
        self._chance = np.random.default_rng(0)
        self.set_state(ReplayState(self._starts[0]))

    @abstractmethod
    def _begin(self, seed: int) -> Scene:
        """Reset the environment."""

    @abstractmethod
    def _move(self, number: int, chance: int) -> Scene:
        """Make a legal move, its chance drawn from a seed."""

    @abstractmethod
    def _illegal(self, scene: Scene) -> Scene:
        """What an illegal move makes of a scene; the environment is not asked."""

    @property
    def observation(self) -> str:
        """The present state in words."""
        return self._scene.text

    @property
    def legal_actions(self) -> tuple[str, ...]:
        """The moves the game's mask allows, all of them without a mask; () when the game is over."""
        return () if self._scene.terminated or self._scene.truncated else self._scene.legal

    @property
    def state(self) -> ReplayState:
        """How the game came about."""
        return self._state

    def starts(self) -> tuple[ReplayState, ...]:
        """The games of the given seeds."""
        return tuple(ReplayState(seed) for seed in self._starts)

    def reset(self, rng: np.random.Generator, start: Any = None) -> str:
        """Begin one of `starts()`, or from any state; returns the observation."""
        self._chance = np.random.default_rng(int(rng.integers(2**63)))
        seed = self._starts[int(self._chance.integers(len(self._starts)))]
        self.set_state(ReplayState(seed) if start is None else start)
        return self.observation

    def set_state(self, state: Any) -> None:
        """Play a game again as it came about.

        Raises:
            ValueError: it is no state of such a game.
        """
        try:
            seed, moves = state
            known = all(move in (*self._moves, "") and isinstance(chance, int) for move, chance in moves)
        except (TypeError, ValueError):
            known = False
        if not known:
            raise ValueError(f"{state!r} is no state of this game; take one that `state` gave.")
        self._scene = self._begin(seed)
        self._state = self._stage.state = ReplayState(seed)
        self._totals_P = np.zeros(len(self._scene.rewards_P))
        for move, chance in moves:
            self._play(move, chance)

    def clone(self) -> Self:
        """A copy that shares the environment underneath, with luck of its own."""
        twin = copy(self)
        twin._chance = self._chance.spawn(1)[0]
        return twin

    def render(self) -> str:
        """The environment's own drawing with render_mode "ansi", else the observation."""
        return self._scene.drawn

    def describe_start(self, start: Any) -> str:
        """The seed."""
        return f"seed {start[0]}"

    def _advance(self, action: str) -> bool:
        """Make any move; returns whether it was legal.

        Raises:
            RuntimeError: the game is already over.
        """
        if not self.legal_actions:
            raise RuntimeError("The game is over; call reset() before the next move.")
        legal = action in self._scene.legal
        self._play(action if legal else "", int(self._chance.integers(2**31)))
        return legal

    def _play(self, move: str, chance: int) -> None:
        on_stage = self._stage.state == self._state
        if move and not on_stage:
            here = self._state
            self.set_state(here)
        scene = self._move(self._moves.index(move), chance) if move else self._illegal(self._scene)
        self._state = ReplayState(self._state.seed, (*self._state.moves, (move, chance)))
        if move or on_stage:
            self._stage.state = self._state
        self._totals_P = self._totals_P + scene.rewards_P
        if not scene.terminated and len(self._state.moves) >= self._horizon:
            scene = replace(scene, truncated=True)
        self._scene = scene

    def _legal(self, mask: Any) -> tuple[str, ...]:
        if mask is None:
            return self._moves
        return tuple(move for move, allowed in zip(self._moves, mask, strict=True) if allowed)


def check_actions(space: Any, moves: Sequence[str]) -> None:
    """Raise a ValueError unless the space is Discrete(n) with a string for each action."""
    if getattr(space, "n", None) != len(moves) or getattr(space, "start", 0) != 0:
        raise ValueError(
            f"The game has the actions {space} and {len(moves)} strings; give one for each of Discrete(n)."
        )
