"""The language policy pi_L: from what was observed to a thought and a move, without looking ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlrl.ask import Asker, Question, history_text
from nlrl.types import CallId, Decision, History, ImprovedPolicy, Situation, truncate_history


async def act(ask: Asker, history: History, actions: Sequence[str], call: CallId) -> Decision:
    """One move of the plain policy. Every attempt failed: the decision's choice is None."""
    situation = Situation(history, call, tuple(actions), ask.player)
    (answer,) = await ask.ask([policy_question(situation, ask.policy_items)])
    action = None if answer.parsed is None else answer.parsed.action
    choice = None if action is None else ImprovedPolicy(action, answer.reply, token_ids=answer.token_ids)
    return Decision(call.game, call.step, history, choice, answer.failures, answer.calls)


def policy_question(situation: Situation, items: int | None = None) -> Question:
    """The plain question: what a policy is asked, and what it is trained to be asked.

    Args:
        situation: where it is asked.
        items: observations and moves that it reads, from the end of the history (`Asker.policy_items`); None for all.
    """
    history = situation.history if items is None else truncate_history(situation.history, items)
    return Question(
        replace(situation.call, role="policy"),
        {"history": history_text(history), "player": situation.player},
        situation.actions,
    )
