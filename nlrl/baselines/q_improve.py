"""Q^L without look-ahead, then I: the paper's baseline that shows what looking ahead is worth.

Every legal move is evaluated by the plain question (no games, no variations), and the improvement operator chooses by
those evaluations (arXiv 2411.14251, Table 1, "prompted Q^L(s, a) + improvement"; the authors' code has the prompts and
no caller). With a distilled value model it is what one step of masked improvement does over all legal moves.
"""

from __future__ import annotations

import numpy as np

from nlrl.agents import Agent, through_the_eyes_of
from nlrl.ask import Asker
from nlrl.operators.improve import improve
from nlrl.types import CallId, Candidate, Decision, History, Situation
from nlrl.values.direct import language_values
from nlrl_envs.base import TextEnv, seat_of, seats_of


def q_improve_agent(ask: Asker, value_ask: Asker | None = None) -> Agent:
    """The agent; one wave of a call for each legal move, then one call.

    Args:
        ask: who improves.
        value_ask: who evaluates; the same model when None.
    """

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        player = seats_of(env)[seat_of(env)]
        mine, judge = through_the_eyes_of(player, ask), through_the_eyes_of(player, value_ask or ask)
        here = Situation(history, call, env.legal_actions, player)
        values = await language_values([(here, action) for action in env.legal_actions], ask=judge)
        candidates_A = [Candidate(one.action or "", one.value) for one in values.evaluations]
        choice, answer = await improve(candidates_A, history, call, ask=mine, rng=rng)
        failures = (*values.failures, *(answer.failures if answer else ()))
        return Decision(call.game, call.step, history, choice, failures, values.calls + (answer.calls if answer else 0))

    return agent
