"""The improvement operator I: read the language action values, choose an action, say why.

Source: arXiv 2411.14251, section 3.3: pi_new(.|s), c = I({Q^L_pi(s, a_i)}). The model sees the candidates' evaluations
and is to judge by them alone.

Deviation: the candidates are shown in a random order (argument `rng`), so that a model's liking for the first or the
last of a list does not become a liking for one direction. Pass `rng=None` for the given order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nlrl.ask import Answer, Asker, Question, history_text
from nlrl.operators.once import ask_once
from nlrl.types import CallId, Candidate, Failure, History, ImprovedPolicy, Situation


async def improve(
    candidates_A: Sequence[Candidate],
    history: History,
    call: CallId,
    *,
    ask: Asker,
    rng: np.random.Generator | None = None,
) -> tuple[ImprovedPolicy | None, Answer | None]:
    """The improved policy's choice among the candidates; None when there is no candidate or no usable reply."""
    if not candidates_A:
        return None, None
    (answer,) = await ask.ask([improve_question(candidates_A, Situation(history, call, player=ask.player), ask, rng)])
    return _choice(candidates_A, answer), answer


@dataclass(frozen=True, slots=True)
class Improvements:
    """The improved policy in many situations."""

    choices_S: tuple[ImprovedPolicy | None, ...]
    """None where there was no candidate or no usable reply."""
    failures: tuple[Failure, ...]
    calls: int


async def improve_all(
    situations_S: Sequence[Situation],
    candidates_S_A: Sequence[Sequence[Candidate]],
    *,
    ask: Asker,
    rng: np.random.Generator | None = None,
) -> Improvements:
    """`improve` in many situations: one wave of calls, equal situations with equal candidates asked once."""
    asked = [s for s, candidates_A in enumerate(candidates_S_A) if candidates_A]
    # A seed a call of this function rather than the generator itself: equal situations must show equal orders.
    seed = None if rng is None else int(rng.integers(2**63))
    questions = [
        improve_question(
            candidates_S_A[s],
            situations_S[s],
            ask,
            None if seed is None else _order_of(situations_S[s], candidates_S_A[s], seed),
        )
        for s in asked
    ]
    found = await ask_once(ask, questions)
    choices: list[ImprovedPolicy | None] = [None] * len(situations_S)
    for s, answer in zip(asked, found.answers_I, strict=True):
        choices[s] = _choice(candidates_S_A[s], answer)
    return Improvements(tuple(choices), found.failures, found.calls)


def tied(choice: ImprovedPolicy, tolerance: float = 1e-9) -> tuple[str, ...]:
    """The moves whose evaluations state the same number as the chosen one's: an improved policy may share among them.

    The chosen move alone when its evaluation states no number. In the order of the candidates.
    """
    numbers = {c.action: c.value.number for c in choice.candidates_A}
    chosen = numbers.get(choice.action)
    if chosen is None:
        return (choice.action,)
    return tuple(a for a, number in numbers.items() if number is not None and abs(number - chosen) <= tolerance)


def improve_question(
    candidates_A: Sequence[Candidate], situation: Situation, ask: Asker, rng: np.random.Generator | None
) -> Question:
    """I over the candidates, shown in a random order or, without `rng`, in the given one."""
    order = range(len(candidates_A)) if rng is None else rng.permutation(len(candidates_A))
    line = ask.prompts["candidate"]
    text = "\n".join(line.render(action=candidates_A[i].action, evaluation=candidates_A[i].value.text) for i in order)
    return Question(
        replace(situation.call, role="improve"),
        {"candidates": text, "history": history_text(situation.history), "player": situation.player},
        tuple(c.action for c in candidates_A),
        tuple((c.action, c.value.number) for c in candidates_A),
    )


def _choice(candidates_A: Sequence[Candidate], answer: Answer) -> ImprovedPolicy | None:
    if answer.parsed is None or answer.parsed.action is None:
        return None
    return ImprovedPolicy(answer.parsed.action, answer.reply, tuple(candidates_A), answer.token_ids)


def _order_of(situation: Situation, candidates_A: Sequence[Candidate], seed: int) -> np.random.Generator:
    said = repr((situation.key, [(c.action, c.value.text) for c in candidates_A]))
    return np.random.default_rng((seed, int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big")))
