"""Improvement over masked candidates: which moves are evaluated at all, then their values, then I.

Source: arXiv 2411.14251, section 4.3 and Alg. 3: in each own-turn state 10 moves are drawn from pi_L (temperature 0.7),
the top m by frequency are kept (the "action-selection mask"), each is evaluated by the value model, and I chooses. With
0 samples all legal moves are candidates.

Deviations from the authors' code, on purpose:
- equal situations are one situation: the empty board is not improved 256 times an iteration, and what was drawn in a
  situation is shared by all its occurrences;
- a sample whose reply cannot be used is no vote; theirs is a random legal move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nlrl.ask import Asker
from nlrl.operators.improve import Improvements, improve_all
from nlrl.policy import policy_question
from nlrl.types import Candidate, Failure, ImprovedPolicy, Situation, Trained
from nlrl.values.direct import language_values


@dataclass(frozen=True, slots=True)
class Mask:
    """How many candidates a situation has, and where they come from."""

    samples: int = 10
    """Moves drawn from the policy; 0: all legal moves are candidates."""
    top: int | None = None
    """m: how many of the most frequent are kept; None for all that were drawn."""

    def __post_init__(self) -> None:
        if self.samples < 0 or (self.top is not None and self.top < 1):
            raise ValueError("A mask draws 0 samples or more and keeps at least one move.")


@dataclass(frozen=True, slots=True)
class Masked:
    """The candidates of each situation."""

    votes_S: tuple[dict[str, int], ...]
    """Move -> how often it was drawn, most frequent first, of equals the game's first; 0 for a move not drawn but
    legal under `samples=0`. Empty where no sample could be used."""
    failures: tuple[Failure, ...]
    calls: int


async def masked_actions(situations_S: Sequence[Situation], mask: Mask, *, ask: Asker) -> Masked:
    """Each situation's candidates, by one wave of `mask.samples` calls a situation; pass each situation once.

    The asker needs a `seed`: it is what tells samples apart, and without it an engine may answer all of them at once.
    """
    if mask.samples == 0:
        return Masked(tuple(dict.fromkeys(s.actions[: mask.top], 0) for s in situations_S), (), 0)
    questions = [
        replace(question, call=replace(question.call, variation=k))
        for question in (policy_question(situation, ask.policy_items) for situation in situations_S)
        for k in range(mask.samples)
    ]
    answers = await ask.ask(questions)
    votes_S = []
    for s, situation in enumerate(situations_S):
        drawn = answers[s * mask.samples : (s + 1) * mask.samples]
        votes = Counter(a.parsed.action for a in drawn if a.parsed is not None and a.parsed.action is not None)
        ranked = sorted(votes, key=lambda action: (-votes[action], situation.actions.index(action)))
        votes_S.append({action: votes[action] for action in ranked[: mask.top]})
    failures = tuple(failure for answer in answers for failure in answer.failures)
    return Masked(tuple(votes_S), failures, sum(answer.calls for answer in answers))


@dataclass(frozen=True, slots=True)
class Models:
    """Who speaks in which role; they may be one model."""

    policy: Asker
    """pi_L, which the policy student becomes."""
    value: Asker
    """V^L and Q^L, which the value student becomes."""
    improver: Asker
    """I."""
    teacher: Asker | None = None
    """G1 and G2; None for the improver."""
    past: Callable[[Trained], Asker] | None = None
    """pi_L as it was after a training, for games against past policies of the run."""

    @property
    def estimator(self) -> Asker:
        """Who makes evaluations out of games and look-aheads."""
        return self.teacher or self.improver


async def improve_masked(
    situations_I: Sequence[Situation], mask: Mask, *, models: Models, rng: np.random.Generator | None = None
) -> Improvements:
    """pi_new in each situation: candidates by the mask, Q^L by the value model, then I. Three waves of calls.

    Choices come one an entry of `situations_I`; equal situations are worked on once and share theirs.
    """
    distinct = unique(situations_I)
    masked = await masked_actions(distinct, mask, ask=models.policy)
    pairs = [(s, action) for s, votes in zip(distinct, masked.votes_S, strict=True) for action in votes]
    values = await language_values(pairs, ask=models.value)
    candidates: dict[tuple, list[Candidate]] = {situation.key: [] for situation in distinct}
    for evaluation in values.evaluations:
        candidates[evaluation.situation.key].append(Candidate(evaluation.action or "", evaluation.value))
    improved = await improve_all(distinct, [candidates[s.key] for s in distinct], ask=models.improver, rng=rng)
    choices: dict[tuple, ImprovedPolicy | None] = {
        situation.key: choice for situation, choice in zip(distinct, improved.choices_S, strict=True)
    }
    return Improvements(
        tuple(choices[situation.key] for situation in situations_I),
        (*masked.failures, *values.failures, *improved.failures),
        masked.calls + values.calls + improved.calls,
    )


def unique(situations_I: Sequence[Situation]) -> list[Situation]:
    """The first of each kind, in order."""
    first: dict[tuple, Situation] = {}
    for situation in situations_I:
        first.setdefault(situation.key, situation)
    return list(first.values())
