"""Every operator asks with the prompts that are in the box, in every game."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from nlrl import registry
from nlrl.ask import Asker
from nlrl.engine.base import Completion, Request
from nlrl.estimate import DryEngine
from nlrl.operators.masked import Mask, Models, improve_masked
from nlrl.policy import policy_question
from nlrl.types import CallId, Situation
from nlrl.values.games import FreshGames, fresh_games
from nlrl.values.look_ahead import look_ahead, uniform_random
from nlrl.values.monte_carlo import language_monte_carlo
from nlrl.values.td_lambda import Trace, language_td_lambda
from nlrl_envs import ENVS
from nlrl_envs.base import seat_of, seats_of
from nlrl_prompts import load


class Reading(DryEngine):
    """Gives the shortest reply that a form allows, and keeps what it read."""

    def __init__(self, prompt_set):
        super().__init__(prompt_set)
        self.read: list[Request] = []

    async def generate(self, requests):
        self.read += requests
        return await super().generate(requests)


async def use_all(env, ask):
    """Monte Carlo, TD(lambda) with G2 apart, and masked improvement at the state that a game is in."""
    rng = np.random.default_rng(0)
    player = seats_of(env)[seat_of(env)]
    situation = Situation((env.observation,), CallId(0, 0, "policy"), env.legal_actions, player)
    groups, _ = await fresh_games([(env, situation)], FreshGames(2, uniform_random), rng)
    values = await language_monte_carlo(groups[:3], ask=ask)
    knobs = {"variations": 2, "steps": 2, "rollout": uniform_random, "rng": rng}
    looks_A_K, _ = await look_ahead(env, situation.history, situation.call, **knobs)
    lengths = await language_td_lambda(
        looks_A_K[:2], situation.history, situation.call, trace=Trace(0.5, "split"), ask=ask
    )
    improved = await improve_masked([situation], Mask(samples=3), models=Models(ask, ask, ask), rng=rng)
    return values, lengths, improved


@pytest.mark.parametrize("prompt_set", ["full", "compact"])
@pytest.mark.parametrize("game", sorted(ENVS))
def test_the_operators_speak_every_games_language(game, prompt_set):
    env = registry.load("env", game)()
    env.reset(np.random.default_rng(0))
    if len(seats_of(env)) > 1:
        env.step(env.legal_actions[0])
    player = seats_of(env)[seat_of(env)]
    engine = Reading(prompt_set)
    ask = Asker(engine, load(prompt_set, game), env.task, player, attempts=1, seed=0)
    values, lengths, improved = asyncio.run(use_all(env, ask))
    assert not (*values.failures, *lengths.failures, *improved.failures)
    assert len(values.evaluations) == min(3, len(env.legal_actions))
    assert len(lengths.candidates_A) == 2
    assert improved.choices_S[0] is not None
    asked = Counter(request.call.role for request in engine.read if request.call)
    assert set(asked) == {"policy", "value", "combine", "aggregate", "monte_carlo", "blend", "improve"}
    assert sum(asked.values()) == values.calls + lengths.calls + improved.calls


def test_what_was_cut_is_asked_again_in_a_form_that_ends():
    asked = []

    class Babbles:
        prompt_set = "compact"

        async def generate(self, requests):
            asked.extend(requests)
            again = len(asked) > 1
            return [Completion("go: up." if again else "and on", finish_reason="stop" if again else "length")]

    ask = Asker(Babbles(), load("compact", "maze"), "task")  # type: ignore[arg-type]
    question = policy_question(Situation(("here",), CallId(0, 0, "policy"), ("up",)))
    (answer,) = asyncio.run(ask.ask([question]))
    assert answer.parsed is not None
    assert answer.failures[0].kind == "cut"
    first, second = (str(request.constraint.value) for request in asked)
    assert "+" in first
    assert "{1,48}" in second
