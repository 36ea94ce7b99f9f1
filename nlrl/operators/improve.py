"""The improvement operator I: read the language action values, choose an action, say why.

Source: arXiv 2411.14251, section 3.3: pi_new(.|s), c = I({Q^L_pi(s, a_i)}). The model sees the candidates' evaluations
and is to judge by them alone.

Deviation: the candidates are shown in a random order (argument `rng`), so that a model's liking for the first or the
last of a list does not become a liking for one direction. Pass `rng=None` for the given order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nlrl.ask import Answer, Asker, Question, history_text
from nlrl.types import CallId, Candidate, History, ImprovedPolicy


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
    order = range(len(candidates_A)) if rng is None else rng.permutation(len(candidates_A))
    line = ask.prompts["candidate"]
    text = "\n".join(line.render(action=candidates_A[i].action, evaluation=candidates_A[i].value.text) for i in order)
    question = Question(
        replace(call, role="improve"),
        {"candidates": text, "history": history_text(history)},
        tuple(c.action for c in candidates_A),
        tuple((c.action, c.value.number) for c in candidates_A),
    )
    (answer,) = await ask.ask([question])
    if answer.parsed is None or answer.parsed.action is None:
        return None, answer
    return ImprovedPolicy(answer.parsed.action, answer.reply, tuple(candidates_A)), answer
