"""Language TD(lambda): the evaluations after 1..n moves, blended into one.

Source: arXiv 2402.07157 names TD(lambda), "aggregate 1..n-step estimates", as an extension and does not implement it.
This is the forward view of Sutton and Barto (2nd ed., eq. 12.3): G = (1 - lambda) sum over n < N of lambda^(n-1) G_n,
plus lambda^(N-1) G_N, where G_n is the language TD estimate of the same variations cut after n moves, and one more
question (role "blend") joins them, each with its weight.

The longest variation of an action sets its n, so no estimate is asked for that would say the same as a shorter one. An
estimate that failed is left out and the weights of the others are scaled up to 1.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nlrl.ask import Asker, Question, history_text
from nlrl.operators.once import ask_once
from nlrl.types import CallId, Candidate, History, LanguageValue, LookAhead
from nlrl.values.numeric import lambda_weights
from nlrl.values.td import Estimate, LeafValue, ask_the_model, language_td


@dataclass(frozen=True, slots=True)
class Trace:
    """How the estimates of different lengths are weighed and made."""

    decay: float
    """lambda, 0 to 1: 0 is one-step TD, 1 is the longest estimate alone."""
    combine: Literal["fused", "split"] = "fused"

    def __post_init__(self) -> None:
        if not 0 <= self.decay <= 1:
            raise ValueError(f"lambda lies between 0 and 1; {self.decay} does not.")


async def language_td_lambda(
    looks_A_K: Sequence[Sequence[LookAhead]],
    history: History,
    call: CallId,
    *,
    trace: Trace,
    ask: Asker,
    value_ask: Asker | None = None,
    leaf_value: LeafValue = ask_the_model,
) -> Estimate:
    """Q^L(s, a) of every action, blended over the lengths 1..n of its variations; n is that of the longest.

    The estimates of all lengths are asked for at the same time. An action of which only one length has weight needs
    no blending. A candidate of the result has the variations of its longest estimate as evidence.
    """
    looks_A_K = [looks_K for looks_K in looks_A_K if looks_K]
    weights_A_N = {looks_K[0].actions[0]: _weights(looks_K, trace.decay) for looks_K in looks_A_K}

    async def of_length(n: int) -> Estimate:
        cut_A_K = [cut(looks_K, n) for looks_K in looks_A_K if n in weights_A_N[looks_K[0].actions[0]]]
        place = replace(call, ply=n)
        return await language_td(
            cut_A_K, history, place, ask=ask, value_ask=value_ask, combine=trace.combine, leaf_value=leaf_value
        )

    lengths = sorted({n for weights_N in weights_A_N.values() for n in weights_N})
    estimates = await asyncio.gather(*(of_length(n) for n in lengths))
    found_A_N: dict[str, dict[int, Candidate]] = {}
    for n, estimate in zip(lengths, estimates, strict=True):
        for candidate in estimate.candidates_A:
            found_A_N.setdefault(candidate.action, {})[n] = candidate
    several = [action for action in weights_A_N if len(found_A_N.get(action, ())) > 1]
    blended = await ask_once(
        ask, [blend_question(found_A_N[action], weights_A_N[action], history, call, ask) for action in several]
    )
    joined = dict(zip(several, blended.answers_I, strict=True))
    candidates = []
    for action in (action for action in weights_A_N if action in found_A_N):
        longest = found_A_N[action][max(found_A_N[action])]
        if action not in joined:
            candidates.append(longest)
        elif (parsed := joined[action].parsed) is not None:
            candidates.append(replace(longest, value=LanguageValue(parsed.text, parsed.number)))
    failures = (*(f for estimate in estimates for f in estimate.failures), *blended.failures)
    return Estimate(tuple(candidates), failures, sum(e.calls for e in estimates) + blended.calls)


def cut(looks_K: Sequence[LookAhead], n: int) -> list[LookAhead]:
    """The variations as they stood after n moves, or at their ends where those came earlier.

    Some become equal. Each is kept as few times as their proportions allow, so that a mean over them stays the same.
    """
    counts = Counter(_cut(look, n) for look in looks_K)
    least = math.gcd(*counts.values())
    return [look for look, count in counts.items() for _ in range(count // least)]


def _cut(look: LookAhead, n: int) -> LookAhead:
    left_out = max(0, len(look.actions) - n)
    if not left_out:
        return look
    return LookAhead(look.history[: -2 * left_out], look.actions[:n], look.rewards[:n])


def _weights(looks_K: Sequence[LookAhead], decay: float) -> dict[int, float]:
    """Length -> weight of an action's estimates; lengths without weight are left out."""
    weights_N = lambda_weights(decay, max(len(look.actions) for look in looks_K))
    return {n: float(weight) for n, weight in enumerate(weights_N, 1) if weight > 0}


def blend_question(
    found_N: Mapping[int, Candidate], weights_N: Mapping[int, float], history: History, call: CallId, ask: Asker
) -> Question:
    """The estimates of an action after so many moves as one, by their weights, which need not sum to 1."""
    total = sum(weights_N[n] for n in found_N)
    action = next(iter(found_N.values())).action
    line = ask.prompts["estimate"]
    lines = [
        line.render(steps=str(n), weight=f"{weights_N[n] / total:.12g}", evaluation=candidate.value.text)
        for n, candidate in found_N.items()
    ]
    return Question(
        replace(call, role="blend", action=action),
        {"history": history_text(history), "action": action, "count": str(len(lines)), "estimates": "\n".join(lines)},
        (action,),
    )
