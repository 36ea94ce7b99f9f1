"""Language Monte Carlo: one evaluation out of whole games.

Source: arXiv 2411.14251, eq. 5: Q^L(s, a) ~ G1({tau_k}), k = 1..K_MC, and V^L(s) likewise from games that begin in s,
whatever was moved there. One question (role "monte_carlo") holds all games of a group, each from the situation on with
every observation, its return and how it ended; G1 alone stands for the sum over time and the mean over games. Where
the games come from is `nlrl.values.games`'s business: a run's own (`group`, `chunk`) or fresh ones (`fresh_games`).

Deviations from the authors' code, on purpose:
- evaluations are made for the player who is to move, on the scale of the return; theirs state +1 for O, whoever moves;
- a group without games is no question: it is left out, and `achieved` shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlrl.ask import Asker, Question, history_text
from nlrl.operators.once import ask_once
from nlrl.types import Evaluation, Evaluations, Group, LanguageValue, LookAhead
from nlrl.values.games import achieved
from nlrl.values.td import reward_text


async def language_monte_carlo(groups: Sequence[Group], *, ask: Asker) -> Evaluations:
    """Q^L of each group's action, or V^L of its situation: one wave of calls, one question a group.

    Several groups of one situation and action (`nlrl.values.games.chunk`) are several estimates.
    """
    place: dict[tuple, int] = {}
    questions, asked = [], [one for one in groups if one.games_K]
    for one in asked:
        key = (one.situation.key, one.action)
        place[key] = place.get(key, -1) + 1
        questions.append(games_question(one, place[key], ask))
    # Equal questions are equal samples of the same games; to ask again would add nothing.
    found = await ask_once(ask, questions)
    evaluations = tuple(
        Evaluation(
            one.situation,
            one.action,
            LanguageValue(a.parsed.text, a.parsed.number),
            one.games_K,
            a.reply,
            a.token_ids,
        )
        for one, a in zip(asked, found.answers_I, strict=True)
        if a.parsed is not None
    )
    return Evaluations(evaluations, found.failures, found.calls, achieved(groups))


def games_question(one: Group, number: int, ask: Asker) -> Question:
    """G1 over the games of a group, which is the `number`-th of its situation and action."""
    situation, action = one.situation, one.action
    line = ask.prompts["game"]
    games = [
        line.render(
            number=str(k + 1),
            moves=", ".join(game.actions),
            record=history_text(_after(game, len(situation.history))),
            reward=reward_text(game),
            ending=game.terminal_text or "",
        )
        for k, game in enumerate(one.games_K)
    ]
    return Question(
        replace(situation.call, role="monte_carlo", action=action, variation=number),
        {
            "history": history_text(situation.history),
            "player": situation.player,
            "action": action or "",
            "count": str(len(games)),
            "games": "\n".join(games),
        },
        situation.actions if action is None else (action,),
    )


def _after(game: LookAhead, root_items: int) -> tuple[str, ...]:
    """What the game added to the history of its root: move, observation, move, ..., last observation."""
    return game.history[root_items:]
