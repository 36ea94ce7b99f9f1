"""The language-MDP face of a game: what the method needs, in text, whatever the game underneath.

States, actions, transitions and rewards are rendered as text before a language model sees them (arXiv 2411.14251,
section 3). This module imports nothing of ours; a game outside this repository implements `TextEnv` and is checked by
`nlrl_envs.check.check_env`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@dataclass(frozen=True, slots=True)
class TextStep:
    """What a move led to."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    legal: bool
    success: bool = False
    """Only meaningful with `terminated`: the goal was reached, the game was won."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Exact answers for given starts, by a game's solver: what a run's results are held against."""

    optimal_returns_G: tuple[float, ...]
    """V* of each start."""
    random_returns_G: tuple[float, ...]
    """Expected return of uniformly random play from each start."""
    random_success_G: tuple[float, ...]
    """Probability that uniformly random play succeeds."""


@runtime_checkable
class TextEnv(Protocol):
    """One game in progress; single player. Observations are one or more lines of text and end with a newline."""

    @property
    def task(self) -> str:
        """The language task instruction T_L: rules and goal in a few sentences."""
        ...

    @property
    def observation(self) -> str:
        """The present state in words."""
        ...

    @property
    def legal_actions(self) -> tuple[str, ...]:
        """The legal moves now, as the game's own strings; () when the game is over."""
        ...

    @property
    def terminal_text(self) -> str | None:
        """How the game ended, in words; None while it goes on."""
        ...

    @property
    def state(self) -> Hashable:
        """The exact state; `set_state` takes it back. Step count included where the horizon matters."""
        ...

    def starts(self) -> tuple[Hashable, ...]:
        """Every state a game may start from, in a fixed order."""
        ...

    def reset(self, rng: np.random.Generator, start: Hashable | None = None) -> str:
        """Begin a game, from `start` or a random one; returns the observation. All randomness comes from `rng`."""
        ...

    def step(self, action: str) -> TextStep:
        """Make a move. An illegal or unknown move is never an exception: it costs what the game says it costs."""
        ...

    def set_state(self, state: Hashable) -> None:
        """Continue from a state obtained earlier."""
        ...

    def clone(self) -> TextEnv:
        """An independent copy: stepping it leaves this one as it is."""
        ...

    def render(self) -> str:
        """The position drawn with text (`render_mode="ansi"`)."""
        ...

    def describe_start(self, start: Hashable) -> str:
        """A start in the game's own notation, for tables and replays."""
        ...
