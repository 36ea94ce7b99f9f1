"""The language policy pi_L: from what was observed to a thought and a move, without looking ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlrl.ask import Asker, Question, history_text
from nlrl.types import CallId, Decision, History, ImprovedPolicy


async def act(ask: Asker, history: History, actions: Sequence[str], call: CallId) -> Decision:
    """One move of the plain policy. Every attempt failed: the decision's choice is None."""
    question = Question(replace(call, role="policy"), {"history": history_text(history)}, tuple(actions))
    (answer,) = await ask.ask([question])
    action = None if answer.parsed is None else answer.parsed.action
    choice = None if action is None else ImprovedPolicy(action, answer.reply, token_ids=answer.token_ids)
    return Decision(call.game, call.step, history, choice, answer.failures, answer.calls)
