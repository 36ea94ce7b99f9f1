"""The language-MDP face of a game: what the method needs, in text, whatever the game underneath.

States, actions, transitions and rewards are rendered as text before a language model sees them (arXiv 2411.14251,
section 3). This module imports nothing of ours; a game outside this repository implements `TextEnv` and is checked by
`nlrl_envs.check.check_env`.

A game of several seats implements `SeatedEnv`, which is `TextEnv` and says besides whose turn it is. `seats_of` and
`seat_of` let a caller treat both kinds alike. Axis in names: P seats, in the order in which they move first.
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
    """Of the player who moved."""
    terminated: bool
    truncated: bool
    legal: bool
    success: bool = False
    """Only meaningful with `terminated`: the goal was reached, the player who moved has won."""
    rewards_P: tuple[float, ...] = ()
    """Of every seat, the one that moved among them: what a move does to the others is never lost. () with one seat."""


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
    """One game in progress. Observations are one or more lines of text and end with a newline."""

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
        """The exact state; `set_state` takes it back. Step count included where the horizon matters.

        What chance will bring is no part of it: that lies in a generator, which no state shows.
        """
        ...

    def starts(self) -> tuple[Hashable, ...]:
        """Every state a game may start from, in a fixed order."""
        ...

    def reset(self, rng: np.random.Generator, start: Hashable | None = None) -> str:
        """Begin a game, from `start` or a random one; returns the observation. All randomness comes from `rng`.

        A game with chance in its moves seeds a generator of its own from `rng` and does not keep `rng`: what the
        caller draws afterwards changes no game.
        """
        ...

    def step(self, action: str) -> TextStep:
        """Make a move. An illegal or unknown move is never an exception: it costs what the game says it costs."""
        ...

    def set_state(self, state: Hashable) -> None:
        """Continue from a state obtained earlier."""
        ...

    def clone(self) -> TextEnv:
        """An independent copy: stepping it leaves this one as it is.

        Where chance has a part, each copy has luck of its own, so that looking ahead in copies foresees nothing.
        """
        ...

    def render(self) -> str:
        """The position drawn with text (`render_mode="ansi"`)."""
        ...

    def describe_start(self, start: Hashable) -> str:
        """A start in the game's own notation, for tables and replays."""
        ...


@runtime_checkable
class SeatedEnv(TextEnv, Protocol):
    """A game of several seats that move in turn, with everything in the open; the sum of their returns is zero.

    An illegal move ends the game: who makes it loses, the others win (`result_P`). Who asks a language model for moves
    asks again as often as it likes before it makes one.
    """

    @property
    def seats(self) -> tuple[str, ...]:
        """Names of the seats, in the order in which they move first."""
        ...

    @property
    def seat(self) -> int:
        """Index in `seats` of whose turn it is; once the game is over, of whose turn it would be."""
        ...

    @property
    def result_P(self) -> tuple[float, ...] | None:
        """The return of each seat, 1 won, -1 lost, 0 drawn; None while the game goes on."""
        ...

    def clone(self) -> SeatedEnv:
        """See `TextEnv.clone`."""
        ...


def seats_of(env: TextEnv) -> tuple[str, ...]:
    """Names of a game's seats; ("player",) for a game of one."""
    return getattr(env, "seats", ("player",))


def seat_of(env: TextEnv) -> int:
    """Whose turn it is; 0 in a game of one."""
    return getattr(env, "seat", 0)


def rewards_of(step: TextStep) -> tuple[float, ...]:
    """The reward of every seat of a step; of the only one in a game of one."""
    return step.rewards_P or (step.reward,)
