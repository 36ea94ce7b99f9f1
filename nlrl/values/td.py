"""Language temporal-difference estimates: V^L on the leaves of a look-ahead, then G1 and G2 back to the root.

Source: arXiv 2411.14251, eq. 6: V^L(s) ~ G1({G2(d(s, a_n, r_n, s'_n), V^L(s'_n))}). G2 (combine) joins one
variation's transition description with the evaluation of the state it ended in; G1 (aggregate) fuses the results of
all variations. As in the authors' code one prompt may do both ("fused"); "split" asks for G2 variation by variation.

A leaf in which the game is over is not asked about: a fixed text stands for its value. Leaves that read the same are
asked about once. Nothing is discounted (paper, appendix E). In games of two every evaluation is made for the player at
the root (`Asker.player`), also of states in which the opponent is to move; the authors' code judges for a fixed colour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nlrl.ask import Answer, Asker, Question, history_text
from nlrl.operators.once import ask_once
from nlrl.types import (
    CallId,
    Candidate,
    Evaluation,
    Evaluations,
    Failure,
    Group,
    History,
    LanguageValue,
    LookAhead,
    Situation,
    Variation,
)

Combine = Literal["fused", "split"]

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
    combine: Combine = "fused",
    leaf_value: LeafValue = ask_the_model,
) -> Estimate:
    """Q^L(s, a) of every action from its variations: at most three waves of calls (V^L; G2 when split; G1).

    `value_ask` is the model that speaks as V^L when it is not the one that aggregates. A variation without a usable
    evaluation is left out of its action's aggregate; an action without any is left out of the result.
    """
    here = Situation(history, call, player=ask.player)
    groups = [Group(here, looks_K[0].actions[0], tuple(looks_K)) for looks_K in looks_A_K if looks_K]
    made, answers = await back_up(groups, ask=ask, value_ask=value_ask, combine=combine, leaf_value=leaf_value)
    candidates = [
        Candidate(group.action or "", LanguageValue(a.parsed.text, a.parsed.number), variations_K)
        for group, (variations_K, a) in zip(groups, made, strict=True)
        if a is not None and a.parsed is not None
    ]
    failures = tuple(failure for answer in answers for failure in answer.failures)
    return Estimate(tuple(candidates), failures, sum(answer.calls for answer in answers))


async def language_td_values(
    groups: Sequence[Group], *, ask: Asker, value_ask: Asker | None = None, combine: Combine = "fused"
) -> Evaluations:
    """V^L(s) of each group's situation, or Q^L(s, a) of its action, in many situations at once: the same three waves.

    Here a group's games are variations that may end anywhere; V^L reads each one's `history`.
    """
    made, answers = await back_up(groups, ask=ask, value_ask=value_ask, combine=combine)
    evaluations = tuple(
        Evaluation(
            g.situation, g.action, LanguageValue(a.parsed.text, a.parsed.number), g.games_K, a.reply, a.token_ids
        )
        for g, (_, a) in zip(groups, made, strict=True)
        if a is not None and a.parsed is not None
    )
    failures = tuple(failure for answer in answers for failure in answer.failures)
    achieved = Counter(len(variations_K) for variations_K, _ in made)
    return Evaluations(evaluations, failures, sum(a.calls for a in answers), dict(sorted(achieved.items())))


async def back_up(
    groups: Sequence[Group],
    *,
    ask: Asker,
    value_ask: Asker | None = None,
    combine: Combine = "fused",
    leaf_value: LeafValue = ask_the_model,
) -> tuple[list[tuple[tuple[Variation, ...], Answer | None]], list[Answer]]:
    """Each group's usable variations with the answer of G1 (None without any), and all answers that were asked for."""
    places = [
        (g, look, replace(group.situation.call, action=group.action, variation=k))
        for g, group in enumerate(groups)
        for k, look in enumerate(group.games_K)
    ]
    situations = [group.situation for group in groups]
    leaves, answers = await _leaves(
        [(look, call, situations[g].player) for g, look, call in places], value_ask or ask, leaf_value
    )
    evaluated = [
        (g, call, Variation(look, leaf))
        for (g, look, call), leaf in zip(places, leaves, strict=True)
        if leaf is not None
    ]
    said: list[str | None] = [variation.leaf.text for _, _, variation in evaluated]
    if combine == "split":
        combined = await ask.ask(
            [
                _seen_by(situations[g].player, combine_question(call, variation, situations[g].history))
                for g, call, variation in evaluated
            ]
        )
        answers += combined
        said = [None if answer.parsed is None else answer.parsed.text for answer in combined]
    lines_I_K: list[list[tuple[Variation, str]]] = [[] for _ in groups]
    for (g, _, variation), text in zip(evaluated, said, strict=True):
        if text is not None:
            lines_I_K[g].append((variation, text))
    asked = [g for g, lines_K in enumerate(lines_I_K) if lines_K]
    aggregated = await ask.ask([_aggregate(groups[g], lines_I_K[g], ask, combine) for g in asked])
    made = dict(zip(asked, aggregated, strict=True))
    found = [(tuple(v for v, _ in lines_K), made.get(g)) for g, lines_K in enumerate(lines_I_K)]
    return found, answers + aggregated


def _aggregate(group: Group, lines_K: Sequence[tuple[Variation, str]], ask: Asker, combine: Combine) -> Question:
    situation = group.situation
    call = replace(situation.call, action=group.action)
    return _seen_by(situation.player, aggregate_question(lines_K, situation.history, call, ask, combine))


async def _leaves(
    looks: Sequence[tuple[LookAhead, CallId, str]], ask: Asker, leaf_value: LeafValue
) -> tuple[list[LanguageValue | None], list[Answer]]:
    """V^L where each (variation, its place, player whose view is wanted) ended."""
    leaves: list[LanguageValue | None] = [
        leaf_value(look) if look.terminal_text is None else _terminal_value(look.terminal_text, ask)
        for look, _, _ in looks
    ]
    asked = [i for i, leaf in enumerate(leaves) if leaf is None]
    questions = [
        Question(replace(call, role="value"), {"history": history_text(look.history), "player": player})
        for look, call, player in (looks[i] for i in asked)
    ]
    found = await ask_once(ask, questions)
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


def aggregate_question(
    variations_K: Sequence[tuple[Variation, str]],
    history: History,
    call: CallId,
    ask: Asker,
    combine: Combine = "fused",
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


def _seen_by(player: str, question: Question) -> Question:
    return replace(question, variables={**question.variables, "player": player})


def reward_text(look: LookAhead) -> str:
    """-3 rather than -3.0: whole rewards are written as whole numbers, others so that nothing is lost."""
    total = look.total_reward
    return str(int(total)) if total == int(total) else repr(float(total))
