"""What can be turned about the loops of `nlrl.iterate`; every default is the paper's (arXiv 2411.14251)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Literal

from nlrl.operators.masked import Mask
from nlrl.values.games import Form
from nlrl.values.look_ahead import NextActions, uniform_random


@dataclass(frozen=True, slots=True)
class LookAheadKnobs:
    """K variations of l steps, and who plays them."""

    variations: int = 8
    """K: distinct variations an action."""
    steps: int = 3
    """l: steps of the roll-out policy after the candidate action."""
    combine: Literal["fused", "split"] = "fused"
    """G1 and G2 in one call, or G2 for each variation and then G1."""
    rollout: NextActions = field(default=uniform_random)
    distinct: bool = True
    """Variations that differ, as in the paper; False: independent draws, whose mean estimates the expectation."""
    leaf_items: int | None = None
    """Observations and moves of a variation that V^L reads, from its end; None for all. A trained V^L was shown
    `GameKnobs.history_items`."""


EIGHT_OF_THREE = LookAheadKnobs()
"""The paper's best in the maze: K = 8, l = 3."""


@dataclass(frozen=True, slots=True)
class GameKnobs:
    """How the games of a loop are played."""

    history_items: int = 1
    """Observations and moves that the models see of a game, the present one among them; boards show everything."""
    at_once: int = 64
    """Games in progress at a time."""
    temperature: float = 1.0
    """At which pi_L plays the games it learns from; it is evaluated at 0."""
    evaluation_games: int = 512
    """Games after each iteration, and before the first; 0 for none. Seats alternate."""


@dataclass(frozen=True, slots=True)
class PolicyIterationKnobs:
    """Algorithm 1."""

    iterations: int = 1
    look_ahead: LookAheadKnobs = EIGHT_OF_THREE
    play: GameKnobs = GameKnobs(history_items=7, evaluation_games=0)
    sweep: bool = False
    """Improve in each of the given states alone instead of playing on from it: with all states, what policy iteration
    calls an improvement."""
    buffer: int = 1
    """How many of the last iterations' decisions are learned from."""
    agreed: bool = False
    """Whether only the choices of the majority are taught where the student cannot tell situations apart
    (`nlrl.operators.agree`)."""
    every_occurrence: bool = True
    """With `agreed`: whether such a situation is learned as often as it occurred, or once."""


@dataclass(frozen=True, slots=True)
class TdKnobs:
    """Algorithm 2."""

    iterations: int = 50
    variations: int = 2
    """K: distinct continuations of a root by the fixed policy."""
    steps: int = 4
    """l: moves of a continuation, by all seats."""
    combine: Literal["fused", "split"] = "fused"
    distinct: bool = True
    """As in `LookAheadKnobs`."""
    buffer: int = 1
    """How many of the last iterations' evaluations are learned from."""
    merge: Literal["concatenate", "equal"] = "concatenate"
    history_items: int = 1
    """As in `GameKnobs`."""
    held_out: tuple[Hashable, ...] = ()
    """States that the student is asked about, plainly, before the first iteration and after each."""


@dataclass(frozen=True, slots=True)
class ActorCriticKnobs:
    """Algorithm 3."""

    iterations: int = 31
    games: int = 512
    """An iteration, from which values and situations come."""
    k_mc: int = 5
    """K_MC: games that one evaluation is made from, at most."""
    fresh: int = 0
    """K: this many new games are played from each situation, or from each legal move in it, in place of the K_MC that
    happen to exist; 0 for the iteration's own games."""
    form: Form = "Q"
    """What is learned: Q^L of the moves made, or V^L of the situations. Improvement asks for Q^L in both cases."""
    mask: Mask = field(default=Mask(samples=10))
    """Which moves are considered with form "Q"; with "V" all legal ones are."""
    mask_temperature: float = 0.7
    """At which pi_L names the moves that are considered."""
    buffer: int = 3
    """K_buffer: how many of the last iterations' evaluations the value student learns from."""
    merge: Literal["concatenate", "equal"] = "concatenate"
    """The authors' code concatenates them, the paper's text samples equally."""
    random_first: bool = True
    """Whether the first iteration's games are played at random."""
    every_occurrence: bool = True
    """Whether the policy student learns a situation as often as it occurred, as in the authors' code, or once."""
    past_share: float = 0.0
    """Share of an iteration's games that are played against past policies of the run, once there are any."""
    play: GameKnobs = GameKnobs()
