"""What a run would cost: exact where it can be, a range where games differ."""

import asyncio
import json

import numpy as np
import pytest
from small_runs import config

from nlrl.ask import Asker
from nlrl.cast import open_cast
from nlrl.engine.base import Constraint, Request, Sampling
from nlrl.engine.check import obeys
from nlrl.estimate import estimate, lines, shortest_reply
from nlrl.operators.masked import Models
from nlrl.run import stages
from nlrl.task import build_task
from nlrl.types import CallId


async def opened(settings, task):
    cast = await open_cast(settings, task)
    policy, value, teacher = (
        Asker(one.engine, one.prompts, task.env.task) for one in (cast.policy, cast.value, cast.teacher)
    )
    return Models(policy, value, teacher)


@pytest.mark.parametrize("variations", [1, 4])
def test_calls_of_a_decision_are_those_of_a_real_one(variations, monkeypatch):
    monkeypatch.setattr("nlrl.estimate._random_lengths", lambda task, seed: [1])
    settings = config(look_ahead__variations=variations, baseline=False, env__map="double_t", env__starts=1)
    task = build_task(settings)
    found = asyncio.run(estimate(settings, task))
    models = asyncio.run(opened(settings, task))
    env, rng = task.env.clone(), np.random.default_rng((settings.seed, 0))
    history = (env.reset(rng, task.starts_G[0]),)
    (stage,) = stages(settings, task, models, None)
    assert stage.agent is not None
    agent = stage.agent

    async def decided():
        return await agent(env, history, CallId(0, 0, "policy"), rng)

    decision = asyncio.run(decided())
    assert found.least.calls == found.most.calls == decision.calls > 4
    assert found.least.written < found.most.written


def test_twice_the_games_cost_about_twice(monkeypatch):
    monkeypatch.setattr("nlrl.estimate._random_lengths", lambda task, seed: [10, 10])
    costs = []
    for games in (6, 12):
        settings = config(env__starts=games, look_ahead__steps=0, look_ahead__variations=1)
        costs.append(asyncio.run(estimate(settings, build_task(settings))).most.calls)
    assert 1.6 < costs[1] / costs[0] < 2.4


def test_money_needs_prices():
    settings = config(budget__price_read=2.0)
    found = asyncio.run(estimate(settings, build_task(settings)))
    assert any(line.startswith("Money:") for line in lines(found, settings))
    assert not any(line.startswith("Money:") for line in lines(found, config()))


@pytest.mark.parametrize(
    "form",
    [
        Constraint("choice", ("move left", "up")),
        Constraint("regex", r"[^:\n]{2,9}: (move\ up|x)\."),
        Constraint("regex", r"-?\d+(\.\d+)?[a-f]\w\s."),
        Constraint("json", json.dumps({
            "type": "object", "required": ["a", "b", "c", "d", "e"],
            "properties": {"a": {"type": "string"}, "b": {"enum": ["x"]}, "c": {"type": "number"},
                           "d": {"type": "array"}, "e": {"type": "boolean"}},
        })),
    ],
)  # fmt: skip
def test_a_shortest_reply_has_the_form(form):
    assert obeys(shortest_reply(Request((), Sampling(), form)), form)
