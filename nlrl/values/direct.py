"""Evaluations asked for straight out, without evidence: V^L(s) and Q^L(s, a) as a value model gives them.

This is what a distilled value model answers (arXiv 2411.14251, Alg. 3, step 5) and, with a model that was not trained,
the paper's baseline "prompted Q^L + improvement". Both forms are the one role "value": its record ends with an
observation for V^L(s), and with the move in question for Q^L(s, a).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlrl.ask import Asker, Question, history_text
from nlrl.operators.once import ask_once
from nlrl.types import Evaluation, Evaluations, LanguageValue, Situation


async def language_values(pairs_I: Sequence[tuple[Situation, str | None]], *, ask: Asker) -> Evaluations:
    """Q^L of each (situation, action), V^L where the action is None: one wave of calls, equal pairs asked once.

    Pairs whose replies could not be used are left out.
    """
    found = await ask_once(ask, [value_question(situation, action) for situation, action in pairs_I])
    evaluations = tuple(
        Evaluation(situation, action, LanguageValue(a.parsed.text, a.parsed.number), (), a.reply, a.token_ids)
        for (situation, action), a in zip(pairs_I, found.answers_I, strict=True)
        if a.parsed is not None
    )
    return Evaluations(evaluations, found.failures, found.calls, {})


def value_question(situation: Situation, action: str | None) -> Question:
    """The plain question: what a value model is asked, and what it is trained to be asked."""
    record = situation.history if action is None else (*situation.history, action)
    return Question(
        replace(situation.call, role="value", action=action),
        {"history": history_text(record), "player": situation.player, "action": action or ""},
        situation.actions,
    )
