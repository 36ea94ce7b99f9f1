"""Language temporal-difference estimates: V^L on the leaves of a look-ahead, then G1 and G2 back to the root.

Source: arXiv 2411.14251, eq. 6: V^L(s) ~ G1({G2(d(s, a_n, r_n, s'_n), V^L(s'_n))}). G2 (combine) joins one
variation's transition description with the evaluation of the state it ended in; G1 (aggregate) fuses the results of
all variations. As in the authors' code one prompt may do both ("fused"); "split" asks for G2 variation by variation.

A leaf in which the game is over is not asked about: a fixed text stands for its value. Leaves that read the same are
asked about once. Nothing is discounted (paper, appendix E). In games of two every evaluation is made for the player at
the root (`Asker.player`), also of states in which the opponent is to move; the authors' code judges for a fixed colour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nlrl.ask import Answer, Asker, Question, history_text
from nlrl.operators.once import ask_once
from nlrl.types import CallId, Candidate, Failure, History, LanguageValue, LookAhead, Variation

LeafValue = Callable[[LookAhead], LanguageValue | None]
"""Looks a leaf's value up (a table of earlier estimates); None sends the question to the model."""


def ask_the_model(look: LookAhead) -> LanguageValue | None:
    """The usual `LeafValue`: no table, every leaf is evaluated by V^L."""
    return None


@dataclass(frozen=True, slots=True)
class Estimate:
    """Q^L of the actions that could be estimated, and what went wrong with the others."""

    candidates_A: tuple[Candidate, ...]
    failures: tuple[Failure, ...]
    calls: int


async def language_td(
    looks_A_K: Sequence[Sequence[LookAhead]],
    history: History,
    call: CallId,
    *,
    ask: Asker,
    value_ask: Asker | None = None,
    combine: Literal["fused", "split"] = "fused",
    leaf_value: LeafValue = ask_the_model,
) -> Estimate:
    """Q^L(s, a) of every action from its variations: at most three waves of calls (V^L; G2 when split; G1).

    `value_ask` is the model that speaks as V^L when it is not the one that aggregates. A variation without a usable
    evaluation is left out of its action's aggregate; an action without any is left out of the result.
    """
    looks = [look for looks_K in looks_A_K for look in looks_K]
    calls_of = [
        replace(call, action=look.actions[0], variation=k) for looks_K in looks_A_K for k, look in enumerate(looks_K)
    ]
    leaves, answers = await _leaves(looks, calls_of, value_ask or ask, leaf_value)
    variations = [
        (c, Variation(k, leaf)) for c, k, leaf in zip(calls_of, looks, leaves, strict=True) if leaf is not None
    ]
    lines: list[tuple[CallId, Variation, str]] = []
    if combine == "split":
        combined = await ask.ask([combine_question(c, v, history) for c, v in variations])
        answers += combined
        for (c, variation), answer in zip(variations, combined, strict=True):
            if answer.parsed is not None:
                lines.append((c, variation, answer.parsed.text))
    else:
        lines = [(c, variation, variation.leaf.text) for c, variation in variations]
    candidates, aggregated = await _aggregate(lines, history, call, ask, combine)
    answers += aggregated
    failures = tuple(failure for answer in answers for failure in answer.failures)
    return Estimate(tuple(candidates), failures, sum(answer.calls for answer in answers))


async def _leaves(
    looks: Sequence[LookAhead], calls: Sequence[CallId], ask: Asker, leaf_value: LeafValue
) -> tuple[list[LanguageValue | None], list[Answer]]:
    leaves: list[LanguageValue | None] = [
        leaf_value(look) if look.terminal_text is None else _terminal_value(look.terminal_text, ask) for look in looks
    ]
    asked = [i for i, leaf in enumerate(leaves) if leaf is None]
    found = await ask_once(
        ask, [Question(replace(calls[i], role="value"), {"history": history_text(looks[i].history)}) for i in asked]
    )
    for i, answer in zip(asked, found.answers_I, strict=True):
        if answer.parsed is not None:
            leaves[i] = LanguageValue(answer.parsed.text, answer.parsed.number)
    return leaves, list(found.distinct)


def _terminal_value(terminal_text: str, ask: Asker) -> LanguageValue:
    return LanguageValue(ask.prompts["terminal"].render(terminal_text=terminal_text), 0.0, "terminal")


def combine_question(call: CallId, variation: Variation, history: History) -> Question:
    """G2 of one variation."""
    return Question(
        replace(call, role="combine"),
        {
            "history": history_text(history),
            "action": call.action or "",
            "moves": ", ".join(variation.look.actions),
            "reward": reward_text(variation.look),
            "evaluation": variation.leaf.text,
        },
    )


async def _aggregate(
    lines: Sequence[tuple[CallId, Variation, str]],
    history: History,
    call: CallId,
    ask: Asker,
    combine: Literal["fused", "split"],
) -> tuple[list[Candidate], list[Answer]]:
    """G1: one question an action, over the lines of its variations."""
    actions = list(dict.fromkeys(c.action or "" for c, _, _ in lines))
    variations_A = [[(v, text) for c, v, text in lines if c.action == action] for action in actions]
    questions = [
        aggregate_question(variations_K, history, replace(call, action=action), ask, combine)
        for action, variations_K in zip(actions, variations_A, strict=True)
    ]
    answers = await ask.ask(questions)
    candidates = [
        Candidate(action, LanguageValue(a.parsed.text, a.parsed.number), tuple(v for v, _ in variations_K))
        for action, variations_K, a in zip(actions, variations_A, answers, strict=True)
        if a.parsed is not None
    ]
    return candidates, answers


def aggregate_question(
    variations_K: Sequence[tuple[Variation, str]],
    history: History,
    call: CallId,
    ask: Asker,
    combine: Literal["fused", "split"] = "fused",
) -> Question:
    """G1 over the variations of `call.action`, each with the evaluation of its leaf or what G2 made of it."""
    line = ask.prompts["look" if combine == "fused" else "combined_look"]
    looks = [
        line.render(number=str(k + 1), moves=", ".join(v.look.actions), reward=reward_text(v.look), evaluation=text)
        for k, (v, text) in enumerate(variations_K)
    ]
    action = call.action or ""
    return Question(
        replace(call, role="aggregate"),
        {"history": history_text(history), "action": action, "count": str(len(looks)), "looks": "\n".join(looks)},
        (action,),
    )


def reward_text(look: LookAhead) -> str:
    """-3 rather than -3.0: whole rewards are written as whole numbers, others so that nothing is lost."""
    total = look.total_reward
    return str(int(total)) if total == int(total) else repr(float(total))
