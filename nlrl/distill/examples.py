"""Pairs for context distillation: the plain question, and what the teacher answered to a richer one.

Source: arXiv 2411.14251, section 4.3. The teacher (G1 over games or looks, or I over candidates) saw evidence; the
student is to give the same reply without it. So a prompt is, message by message, the one that `language_values` or
`act` sends when the student is asked, and a target is the teacher's whole reply, token by token where the engine showed
tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from nlrl.ask import Asker, Question
from nlrl.errors import ConfigError, ParseError
from nlrl.parse import parse_reply
from nlrl.policy import policy_question
from nlrl.types import Evaluation, Example, ImprovedPolicy, Situation
from nlrl.values.direct import value_question


def value_examples(evaluations: Sequence[Evaluation], *, ask: Asker, iteration: int) -> list[Example]:
    """One pair an evaluation that a model made; `ask` is how the value student is asked.

    Several evaluations of one situation and action are several targets of one prompt.

    Raises:
        ConfigError: a reply is not of the form in which the student may answer.
    """
    made = [(one, value_question(one.situation, one.action)) for one in evaluations if one.value.source == "model"]
    seen: Counter[tuple] = Counter()
    examples = []
    for one, question in made:
        games = (one.situation.call.game, *(look.game for look in one.games_K if look.game is not None))
        example = _example(question, one.reply, one.token_ids, games, ask, iteration, seen)
        examples.append(example)
    return examples


def policy_examples(
    situations_S: Sequence[Situation], choices_S: Sequence[ImprovedPolicy | None], *, ask: Asker, iteration: int
) -> list[Example]:
    """One pair a situation in which I made a choice; `ask` is how the policy student is asked.

    Raises:
        ConfigError: a reply is not of the form in which the student may answer.
        ValueError: there is not one choice (or None) a situation.
    """
    seen: Counter[tuple] = Counter()
    return [
        _example(
            policy_question(situation, ask.policy_items),
            choice.thought,
            choice.token_ids,
            (situation.call.game,),
            ask,
            iteration,
            seen,
        )
        for situation, choice in zip(situations_S, choices_S, strict=True)
        if choice is not None
    ]


def _example(
    question: Question,
    reply: str,
    token_ids: tuple[int, ...],
    games: tuple[int, ...],
    ask: Asker,
    iteration: int,
    seen: Counter[tuple],
) -> Example:
    call = question.call
    form = ask.prompts[call.role].reply
    assert form is not None
    try:
        parse_reply(reply, form, question.actions)
    except ParseError as error:
        raise ConfigError(
            f"The teacher's reply {reply[:80]!r} cannot be taught: the student's form of '{call.role}' does not allow "
            f"it ({error.reason.rstrip('.')}); give both one prompt set."
        ) from error
    place = (call.game, call.step, call.action)
    name = f"{iteration}/{call.role}/{call.game}/{call.step}/{call.action or ''}/{seen[place]}"
    seen[place] += 1
    messages = tuple((message.role, message.content) for message in ask.messages(question))
    return Example(name, call.role, messages, reply, token_ids, sources=tuple(sorted(set(games))))
