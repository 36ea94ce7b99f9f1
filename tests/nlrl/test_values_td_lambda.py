"""Language TD(lambda) is the lambda-return, and the numeric twins are what the books say."""

import asyncio
from collections import Counter

import numpy as np
import pytest
from line_world import LineWorld

from nlrl.ask import Asker
from nlrl.engine.base import Completion
from nlrl.engine.oracle import OracleEngine
from nlrl.types import CallId, LookAhead
from nlrl.values.look_ahead import draw_ahead, look_ahead, uniform_random
from nlrl.values.numeric import lambda_return, lambda_weights, monte_carlo, n_step
from nlrl.values.td import language_td
from nlrl.values.td_lambda import Trace, cut, language_td_lambda
from nlrl_prompts import load

HERE = CallId(0, 0, "policy")
ARITHMETIC = load("arithmetic", "line")
VALUES = {f"You are in cell {cell}.": [-3.7, -2.9, -1.3, 0.4, 0.0][cell] for cell in range(5)}


def run(coroutine):
    return asyncio.run(coroutine)


def oracle(engine=None):
    return Asker(engine or OracleEngine(VALUES), ARITHMETIC, "")


def looks_from(env, how, variations, steps, seed=0):
    knobs = {"variations": variations, "steps": steps, "rollout": uniform_random, "rng": np.random.default_rng(seed)}
    return run(how(env, (env.observation,), HERE, **knobs))[0]


def values_of(look, root_items=1):
    """V of the state after each move; the last one's is 0 when the game is over."""
    observed = look.history[root_items + 1 :: 2]
    values = [VALUES[text.rstrip("\n")] for text in observed]
    return [*values[:-1], 0.0] if look.terminal_text else values


@pytest.mark.parametrize("how", [look_ahead, draw_ahead])
@pytest.mark.parametrize("combine", ["fused", "split"])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_language_td_lambda_is_the_mean_of_lambda_returns(decay, combine, how):
    env = LineWorld(2)
    looks_A_K = looks_from(env, how, variations=6, steps=3)
    found = run(language_td_lambda(looks_A_K, (env.observation,), HERE, trace=Trace(decay, combine), ask=oracle()))
    assert not found.failures
    for candidate, looks_K in zip(found.candidates_A, looks_A_K, strict=True):
        twins = [lambda_return(look.rewards, values_of(look), decay) for look in looks_K]
        assert candidate.action == looks_K[0].actions[0]
        assert candidate.value.number == pytest.approx(np.mean(twins), abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("combine", ["fused", "split"])
def test_language_td_of_n_steps_is_the_mean_of_n_step_returns(n, combine):
    env = LineWorld(1)
    looks_A_K = looks_from(env, draw_ahead, variations=5, steps=3)
    found = run(
        language_td([cut(looks_K, n) for looks_K in looks_A_K], (env.observation,), HERE, ask=oracle(), combine=combine)
    )
    for candidate, looks_K in zip(found.candidates_A, looks_A_K, strict=True):
        twins = [n_step(look.rewards, values_of(look), n) for look in looks_K]
        assert candidate.value.number == pytest.approx(np.mean(twins), abs=1e-9)


def test_lambda_one_is_the_longest_estimate_and_lambda_zero_the_shortest():
    env = LineWorld(1)
    looks_A_K = looks_from(env, look_ahead, variations=4, steps=2)
    whole = run(language_td(looks_A_K, (env.observation,), HERE, ask=oracle()))
    last = run(language_td_lambda(looks_A_K, (env.observation,), HERE, trace=Trace(1.0), ask=oracle()))
    first = run(language_td_lambda(looks_A_K, (env.observation,), HERE, trace=Trace(0.0), ask=oracle()))
    assert [c.value for c in last.candidates_A] == [c.value for c in whole.candidates_A]
    assert [c.value.number for c in first.candidates_A] == [
        -1 + VALUES["You are in cell 0."],
        -1 + VALUES["You are in cell 2."],
    ]


def test_every_question_of_a_blend_has_a_place_of_its_own_and_leaves_are_asked_once():
    asked = []

    class Watching(OracleEngine):
        async def generate(self, requests):
            asked.extend(requests)
            return await super().generate(requests)

    env = LineWorld(1)
    looks_A_K = looks_from(env, look_ahead, variations=4, steps=2)
    found = run(language_td_lambda(looks_A_K, (env.observation,), HERE, trace=Trace(0.5), ask=oracle(Watching(VALUES))))
    calls = Counter(r.call for r in asked)
    roles = Counter(call.role for call in calls)
    assert set(calls.values()) == {1}
    assert found.calls == len(asked)
    # 2 moves, 4 pairs, 8 triples of which one reaches the goal; for each action one aggregate a length and one blend.
    assert roles == {"value": 2 + 4 + 7, "aggregate": 6, "blend": 2}


def test_an_estimate_that_failed_is_left_out_and_the_others_count_for_it():
    class Forgetful(OracleEngine):
        async def generate(self, requests):
            answers = await super().generate(requests)
            places = [(r.call.role, r.call.ply, r.call.action) if r.call else None for r in requests]
            forgotten = [place == ("aggregate", 2, "left") for place in places]
            return [Completion("who knows") if f else a for f, a in zip(forgotten, answers, strict=True)]

    env = LineWorld(1)
    looks_A_K = looks_from(env, draw_ahead, variations=3, steps=2)
    found = run(
        language_td_lambda(looks_A_K, (env.observation,), HERE, trace=Trace(0.5), ask=oracle(Forgetful(VALUES)))
    )
    assert {f.call.ply for f in found.failures} == {2}
    left = looks_A_K[0]
    kept = [np.mean([n_step(look.rewards, values_of(look), n) for look in left]) for n in (1, 3)]
    assert found.candidates_A[0].value.number == pytest.approx((0.5 * kept[0] + 0.25 * kept[1]) / 0.75, abs=1e-9)


def test_cut_looks_keep_their_proportions_with_the_fewest_lines():
    a, b = (
        LookAhead(("s", "x", "t", "y", "u"), ("x", "y"), (1.0, 2.0)),
        LookAhead(("s", "x", "w"), ("x",), (3.0,), "Over."),
    )
    assert cut([a, a, a, a, b, b], 2) == [a, a, b]
    assert cut([a, a], 1) == [LookAhead(("s", "x", "t"), ("x",), (1.0,))]
    assert cut([b], 5) == [b]


def test_the_numeric_twins():
    rewards, values = [-1.0, -1.0, 2.0], [5.0, 7.0, 11.0]
    assert [n_step(rewards, values, n) for n in (1, 2, 3, 9)] == [4.0, 5.0, 11.0, 11.0]
    assert lambda_return(rewards, values, 0.0) == 4.0
    assert lambda_return(rewards, values, 1.0) == 11.0
    forward = lambda_weights(0.4, 3) @ np.array([4.0, 5.0, 11.0])
    assert lambda_return(rewards, values, 0.4) == pytest.approx(forward, abs=1e-12)
    assert lambda_weights(0.4, 3).sum() == pytest.approx(1.0, abs=1e-12)
    assert monte_carlo([[1.0], [-1.0, 2.0, 3.0]]) == 2.5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: Trace(1.5), "between 0 and 1"),
        (lambda: monte_carlo([]), "at least one game"),
        (lambda: n_step([1.0], [1.0], 0), "at least one move ahead"),
        (lambda: lambda_return([1.0], [], 0.5), "one value a move"),
        (lambda: lambda_weights(0.5, 0), "at least one estimate"),
    ],
)
def test_what_cannot_be_estimated_is_one_sentence(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()
