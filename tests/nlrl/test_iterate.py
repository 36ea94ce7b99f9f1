"""The method on a corridor, where everything can be worked out by hand."""

import asyncio
from collections import Counter

import numpy as np
import pytest
from line_world import LineWorld

from nlrl.agents import plain_agent, random_agent
from nlrl.ask import Asker
from nlrl.engine.base import Completion
from nlrl.engine.oracle import OracleEngine
from nlrl.iterate import chosen_value, decide, policy_iteration_agent, sweep
from nlrl.knobs import LookAheadKnobs
from nlrl.play import Games, play_all
from nlrl.types import CallId, GameEnd, GameStart, LanguageValue, Step, truncate_history
from nlrl.values.look_ahead import language_policy, look_ahead, uniform_random
from nlrl_prompts import load

HERE = CallId(0, 0, "policy")
ARITHMETIC = load("arithmetic", "line")
DISTANCES = {f"You are in cell {cell}.": float(cell - 4) for cell in range(5)}
OPTIMAL = {f"You are in cell {cell}.": float(min(cell - 3, 0)) for cell in range(5)}


def oracle(values=None, **kwargs) -> Asker:
    return Asker(OracleEngine(OPTIMAL if values is None else values, **kwargs), ARITHMETIC, LineWorld.task)


def run(coroutine):
    return asyncio.run(coroutine)


async def collect(events):
    return [event async for event in events]


def rng(seed=0):
    return np.random.default_rng(seed)


def test_history_keeps_the_last_items_and_begins_with_an_observation():
    history = ("o0", "a0", "o1", "a1", "o2")
    assert truncate_history(history, 7) == history
    assert truncate_history(history, 3) == ("o1", "a1", "o2")
    assert truncate_history(history, 4) == ("o1", "a1", "o2")
    with pytest.raises(ValueError, match="at least one"):
        truncate_history(history, 0)


def test_look_ahead_gives_distinct_variations_and_leaves_the_game_alone():
    env = LineWorld(1)
    looks_A_K, failures = run(
        look_ahead(env, (env.observation,), HERE, variations=4, steps=2, rollout=uniform_random, rng=rng())
    )
    assert env.state == (1, 0)
    assert not failures
    assert [len(looks_K) for looks_K in looks_A_K] == [4, 4]
    for action, looks_K in zip(("left", "right"), looks_A_K, strict=True):
        assert len({look.actions for look in looks_K}) == 4
        assert all(look.actions[0] == action and len(look.rewards) == len(look.actions) for look in looks_K)
        assert all(look.history[0] == env.observation and len(look.history) == 7 for look in looks_K)


def test_look_ahead_reports_fewer_variations_when_no_more_exist():
    env = LineWorld(3)
    looks_A_K, _ = run(
        look_ahead(env, (env.observation,), HERE, variations=8, steps=1, rollout=uniform_random, rng=rng())
    )
    left, right = looks_A_K
    assert {look.actions for look in left} == {("left", "left"), ("left", "right")}
    assert [look.actions for look in right] == [("right",)]
    assert right[0].terminal_text == "You are there."


def test_language_rollouts_follow_the_current_policy():
    always_right = {f"You are in cell {cell}.": {"right": 1.0} for cell in range(4)}
    env = LineWorld(0)
    rollout = language_policy(oracle(policy=always_right), history_items=7)
    looks_A_K, _ = run(look_ahead(env, (env.observation,), HERE, variations=3, steps=2, rollout=rollout, rng=rng()))
    assert [[look.actions for look in looks_K] for looks_K in looks_A_K] == [
        [("left", "right", "right")],
        [("right", "right", "right")],
    ]


@pytest.mark.parametrize("combine", ["fused", "split"])
def test_decision_is_the_arithmetic_with_the_oracle(combine):
    env = LineWorld(2)
    knobs = LookAheadKnobs(variations=2, steps=1, combine=combine)
    decision = run(decide(env, (env.observation,), HERE, rng(), ask=oracle(), knobs=knobs))
    assert decision.choice is not None
    values = {c.action: c.value.number for c in decision.choice.candidates_A}
    # left: rewards -2, then cell 0 (V = -3) or cell 2 (V = -1). right: back to cell 2 (-2 - 1), or the goal (-1 + 0).
    assert values == {"left": -2 + (-3 - 1) / 2, "right": ((-2 - 1) + (-1 + 0)) / 2}
    assert decision.choice.action == "right"
    leaves = 3
    assert decision.calls == leaves + (4 if combine == "split" else 0) + 2 + 1


def test_a_decision_of_four_actions_at_eight_variations_is_37_calls_in_three_waves():
    waves = []

    class Wide(LineWorld):
        @property
        def legal_actions(self):
            return ("left", "right", "stay", "wait")

    class Counting(OracleEngine):
        async def generate(self, requests):
            waves.append(Counter(r.call.role for r in requests if r.call))
            return await super().generate(requests)

    env = Wide(0)
    env.clone = lambda: _wide_clone(env, Wide)
    decision = run(
        decide(
            env,
            (env.observation,),
            HERE,
            rng(),
            ask=Asker(Counting(OPTIMAL), ARITHMETIC, ""),
            knobs=LookAheadKnobs(variations=8, steps=2),
        )
    )
    assert waves == [Counter(value=32), Counter(aggregate=4), Counter(improve=1)]
    assert decision.calls == 37


def _wide_clone(env, kind):
    copy = kind(env.cell, env.steps)
    copy.clone = lambda: _wide_clone(copy, kind)
    return copy


def test_exact_values_play_optimally_and_events_tell_the_game():
    env = LineWorld()
    agent = policy_iteration_agent(oracle(), LookAheadKnobs(variations=1, steps=0))
    events = run(collect(play_all(env, Games(env.starts()), agent, seed=0)))
    ends = {e.game: e for e in events if isinstance(e, GameEnd)}
    assert {game: end.total_return for game, end in ends.items()} == {0: -3.0, 1: -2.0, 2: -1.0, 3: 0.0}
    assert all(end.outcome == "success" for end in ends.values())
    assert sum(isinstance(e, GameStart) for e in events) == 4
    steps = [e for e in events if isinstance(e, Step) and e.game == 0]
    assert [s.action for s in steps] == ["right"] * 4
    assert steps[-1].decision.history == truncate_history(steps[-1].decision.history, 7)


def test_how_games_interleave_changes_none_of_them():
    env = LineWorld()
    agent = policy_iteration_agent(oracle(DISTANCES), LookAheadKnobs(variations=2, steps=2))

    def game(at_once):
        events = run(collect(play_all(env, Games(env.starts()), agent, seed=3, at_once=at_once)))
        return sorted(repr(e) for e in events)

    assert game(1) == game(4)


def test_random_agent_and_plain_policy_reach_the_horizon_or_the_goal():
    env = LineWorld()
    for agent in (random_agent(), plain_agent(oracle())):
        events = run(collect(play_all(env, Games(env.starts() * 8), agent, seed=1)))
        ends = [e for e in events if isinstance(e, GameEnd)]
        assert len(ends) == 32
        assert {e.outcome for e in ends} <= {"success", "horizon"}
        assert np.mean([e.total_return for e in ends]) < -3


class Broken(OracleEngine):
    """An engine whose replies are never usable."""

    def __init__(self, text):
        super().__init__({})
        self.text = text
        self.asked = 0

    async def generate(self, requests):
        self.asked += len(requests)
        return [Completion(self.text) for _ in requests]


def test_a_bad_reply_is_asked_again_then_forfeits_and_is_never_a_random_move():
    env = LineWorld()
    engine = Broken("move somewhere")
    ask = Asker(engine, ARITHMETIC, "", attempts=3)
    events = run(collect(play_all(env, Games([(0, 0)]), plain_agent(ask), seed=0)))
    step, end = events[1], events[2]
    assert engine.asked == 3
    assert step.decision.choice is None
    assert [f.kind for f in step.decision.failures] == ["format"] * 3
    assert [f.call.attempt for f in step.decision.failures] == [0, 1, 2]
    assert (end.outcome, end.total_return) == ("forfeit", -4.0)


def test_an_engine_that_breaks_ends_the_run_with_its_error():
    class Dead(OracleEngine):
        async def generate(self, requests):
            raise RuntimeError("the engine died")

    env = LineWorld()
    agent = policy_iteration_agent(Asker(Dead({}), ARITHMETIC, ""), LookAheadKnobs())
    with pytest.raises(RuntimeError, match="the engine died"):
        run(collect(play_all(env, Games(env.starts()), agent, seed=0)))


def cell_of(env):
    return env.state[0]


def test_sweeps_are_value_iteration():
    env = LineWorld()
    states = env.starts()
    values = {cell: LanguageValue("0.0", 0.0) for cell in range(4)}
    sweeps = 0
    while True:
        sweeps += 1
        improved = run(sweep(env, values, ask=oracle(), key=cell_of, states_S=states))
        updated = {cell: chosen_value(improved[(cell, 0)]) for cell in range(4)}
        if updated == values:
            break
        values = updated
    assert sweeps == 4
    assert [values[cell].number for cell in range(4)] == [-3.0, -2.0, -1.0, 0.0]
    assert {choice.action for choice in improved.values()} == {"right"}
