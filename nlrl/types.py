"""The records of natural-language reinforcement learning; all frozen, all small.

Legend for names with axes: A candidate actions of a state, K variations of a look-ahead or games from a state, G games,
S states, T moves of a game.

Symbols of the paper (Feng et al., arXiv 2411.14251): V^L is `LanguageValue` of a state, Q^L the `LanguageValue` of a
`Candidate`, a "variation" of the language TD estimate (eq. 6, Alg. 2) is a `LookAhead`, the improvement operator I
returns an `ImprovedPolicy`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

History = tuple[str, ...]
"""Observation, action, observation, ..., observation: oldest first, odd length, ends with the present."""

Role = Literal["policy", "value", "combine", "aggregate", "improve", "monte_carlo", "blend"]
"""Who speaks: pi_L, V^L, G2 alone, G1 of variations (with or without G2), I, G1 of whole games, G1 over lengths."""

FailureKind = Literal["empty", "cut", "format", "illegal", "engine"]
"""Why a reply cannot be used: nothing said; stopped at the token limit; not of the asked form; a move that is not
legal; the engine gave no reply."""

UNRECORDED = {"recorded": False}
"""Metadata of a field that `nlrl.codec` leaves out: the record has it elsewhere."""


def truncate_history(history: Sequence[str], items: int) -> History:
    """The last `items` items of a history, never beginning with an action.

    `items` counts observations and actions alike, as the paper's maze code does (7 items = 4 observations, 3 actions).
    """
    if items < 1:
        raise ValueError("A history keeps at least one item: the present observation.")
    kept = tuple(history[-items:])
    return kept if len(kept) % 2 == 1 else kept[1:]


@dataclass(frozen=True, slots=True)
class CallId:
    """Where a call of the language model belongs in a run. No two calls of a run share one: it tells samples apart."""

    game: int
    """Number of the game in the run, from 0."""
    step: int
    """Decision of that game, from 0."""
    role: Role
    action: str | None = None
    """The candidate action the call is about; None for policy and improve."""
    variation: int | None = None
    """The look-ahead's number 0..K-1, or of the draw when the roll-out policy is asked; None otherwise."""
    ply: int = 0
    """Moves already made in the look-ahead when the roll-out policy is asked; the length n of an n-step estimate that
    is one of several; 0 otherwise."""
    attempt: int = 0
    """0 for the first question, 1.. for re-asks after a bad reply."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A reply that could not be used; counted, never replaced by a random move."""

    call: CallId
    kind: FailureKind
    reason: str
    reply: str


@dataclass(frozen=True, slots=True)
class LookAhead:
    """One variation: what was tried from a state and where it led."""

    history: History
    """What V^L reads: the history at the root, then everything the variation added."""
    actions: tuple[str, ...]
    """The candidate action, then the roll-out policy's; at most 1 + l."""
    rewards: tuple[float, ...]
    """One reward an action: what it brought the player at the root, whoever made it."""
    terminal_text: str | None = None
    """How the game ended, when it did: the fixed text that stands in for V^L of a terminal state."""
    game: int | None = field(default=None, repr=False, compare=False, metadata=UNRECORDED)
    """The run's game that this is the rest of; None for what was only imagined. Examples say it in the record."""

    @property
    def total_reward(self) -> float:
        """Undiscounted sum of the rewards on the way."""
        return sum(self.rewards)


@dataclass(frozen=True, slots=True)
class LanguageValue:
    """An evaluation in words (V^L of a state or Q^L of an action), with the number it contains if it has one."""

    text: str
    """The evaluation as the next prompt reads it."""
    number: float | None = None
    """The number stated inside the text, on the scale of the return; None when the format has none."""
    source: Literal["model", "terminal", "table"] = "model"


@dataclass(frozen=True, slots=True)
class Variation:
    """A look-ahead together with the evaluation of the state it ended in."""

    look: LookAhead
    leaf: LanguageValue


@dataclass(frozen=True, slots=True)
class Candidate:
    """A legal action with its language action value Q^L and the evidence it was aggregated from."""

    action: str
    value: LanguageValue
    variations_K: tuple[Variation, ...] = ()


@dataclass(frozen=True, slots=True)
class Situation:
    """A state as the player who is to move knows it: what evaluations and improvements are asked about."""

    history: History
    call: CallId
    """Where it occurred (first, if often): its game and step tell its questions apart from others'."""
    actions: tuple[str, ...] = ()
    """The legal ones."""
    player: str = "player"
    """Name of the seat; evaluations are made for it."""

    @property
    def key(self) -> tuple[str, History]:
        """Equal for situations between which the method sees no difference."""
        return self.player, self.history


@dataclass(frozen=True, slots=True)
class Group:
    """The games that went on from a situation, or from an action in it: evidence for Q^L or, without action, V^L."""

    situation: Situation
    action: str | None
    games_K: tuple[LookAhead, ...]
    """Each to its end. How many there are is the K really achieved."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Q^L of an action in a situation, or V^L of the situation when `action` is None."""

    situation: Situation
    action: str | None
    value: LanguageValue
    games_K: tuple[LookAhead, ...] = ()
    """The games that a Monte Carlo evaluation was made from."""
    reply: str = ""
    """The whole reply: with the plain question, the target of value distillation."""
    token_ids: tuple[int, ...] = field(default=(), repr=False, compare=False, metadata=UNRECORDED)
    """The reply as the engine drew it; the recorded call has them."""


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Values that could be estimated, and what went wrong with the others."""

    evaluations: tuple[Evaluation, ...]
    failures: tuple[Failure, ...]
    calls: int
    achieved_K: dict[int, int]
    """How many groups had how many games or variations: with K_MC = 5, {1: 1220, 2: 90, ...} says that 5 was seldom
    reached."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A whole game as one of its players lived it; T moves by anyone."""

    game: int
    observations: tuple[str, ...]
    """T + 1: one before each move, and the last."""
    actions: tuple[str, ...]
    rewards: tuple[float, ...]
    """Of this player, the consequences of others' moves among them."""
    own: tuple[bool, ...]
    """Whether this player made the move."""
    legal_T_A: tuple[tuple[str, ...], ...]
    """What could have been moved instead."""
    ending: str
    """How it ended, in words."""
    player: str = "player"


@dataclass(frozen=True, slots=True)
class ImprovedPolicy:
    """What the improvement operator I chose, why, and from what."""

    action: str
    thought: str
    """The reply in which the choice was made: with the plain prompt, the target of policy distillation."""
    candidates_A: tuple[Candidate, ...] = ()
    token_ids: tuple[int, ...] = field(default=(), repr=False, compare=False, metadata=UNRECORDED)
    """`thought` as the engine drew it; the recorded call has them."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision of a game: everything the agent thought before it moved."""

    game: int
    step: int
    history: History
    """What the agent knew."""
    choice: ImprovedPolicy | None
    """None when every attempt failed: the game is then forfeited, which is recorded as such."""
    failures: tuple[Failure, ...] = ()
    calls: int = 0
    actions: tuple[str, ...] = ()
    """The moves that were legal."""
    player: str = "player"
    """Name of the seat that moved."""
    own: bool = True
    """False for the move of an opponent."""


@dataclass(frozen=True, slots=True)
class Example:
    """One pair that a model is to be trained on."""

    id: str
    """Names it in its run, so that a resumed run does not store it twice."""
    role: Role
    messages: tuple[tuple[str, str], ...]
    """(role, content) of the prompt."""
    target: str
    """The reply to be learned."""
    target_token_ids: tuple[int, ...] = ()
    """The reply as the engine drew it; training on re-tokenised text would train on other tokens."""
    weight: float = 1.0
    sources: tuple[int, ...] = ()
    """Numbers of the games it came from: that of its situation and those that the teacher read."""


@dataclass(frozen=True, slots=True)
class GameStart:
    """A game begins."""

    game: int
    start: str
    """Where it begins, in the game's own notation ("1, 1")."""
    observation: str
    picture: str
    """The game drawn with text, as `render_mode="ansi"` gives it."""
    optimal_return: float | None = None
    """V* of the start by the exact solver, when the game has one."""


@dataclass(frozen=True, slots=True)
class Step:
    """A move was made."""

    game: int
    step: int
    decision: Decision
    action: str
    reward: float
    total_return: float
    observation: str
    picture: str
    legal: bool = True


@dataclass(frozen=True, slots=True)
class GameEnd:
    """A game is over."""

    game: int
    total_return: float
    steps: int
    outcome: Literal["success", "horizon", "forfeit", "failure"]
    """Reached a success; ran out of steps; the agent gave no usable move; ended otherwise."""
    ending: str = ""
    """How it ended in the game's own words; "" where the game says nothing."""


Event = GameStart | Step | GameEnd
"""What games yield; logging, saving and drawing consume it."""

PhaseName = Literal["collect", "estimate", "distil value", "improve", "distil policy", "evaluate"]
"""The stages of an iteration: games, G1 over them, value training, I, policy training, games to be graded by."""

StudentName = Literal["value", "policy"]
"""Which model learns."""


@dataclass(frozen=True, slots=True)
class PhaseStart:
    """A stage of an iteration begins; iteration 0 is the untrained model, which is only evaluated."""

    iteration: int
    phase: PhaseName
    total: int
    """Games, questions or examples that are coming; 0 when not known yet."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """Language values were estimated: by Monte Carlo from games or by TD from look-aheads."""

    iteration: int
    evaluations: tuple[Evaluation, ...]
    failures: tuple[Failure, ...] = ()
    calls: int = 0
    achieved_K: tuple[tuple[int, int], ...] = ()
    """(K, groups that had K games), ascending."""


@dataclass(frozen=True, slots=True)
class Improved:
    """The improvement operator was applied: one choice a situation, None where it gave no usable reply."""

    iteration: int
    situations_S: tuple[Situation, ...]
    choices_S: tuple[ImprovedPolicy | None, ...]
    failures: tuple[Failure, ...] = ()
    calls: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """A student learned, and answers with its new weights from here on."""

    iteration: int
    student: StudentName
    checkpoint: str
    """Name of its checkpoint in the run; "" where nothing is written (a table that learns)."""
    examples: int
    tokens: int
    """Of the targets, over all epochs."""
    losses_T: tuple[float, ...] = ()
    """Mean cross-entropy a target token, one an optimizer step."""


LoopEvent = Event | PhaseStart | Estimated | Improved | Trained
"""What a loop that learns yields."""
