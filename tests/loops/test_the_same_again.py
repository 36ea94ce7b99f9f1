"""A loop is a function of its arguments and answers: the same again, at any concurrency, and after any interruption."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tabular import Tabular, run

from nlrl.engine.base import Completion
from nlrl.errors import EngineError
from nlrl.iterate import actor_critic, policy_iteration, td_values
from nlrl.knobs import ActorCriticKnobs, GameKnobs, LookAheadKnobs, PolicyIterationKnobs, TdKnobs
from nlrl.operators.masked import Mask
from nlrl.recorded import RecordedEngine
from nlrl.stages import PHASES, games_of
from nlrl.store import Manifest, RunStore
from nlrl.values.look_ahead import language_policy
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.opponents import uniform_random
from nlrl_envs.tic_tac_toe import TicTacToe


def critic(env, tabular, at_once=8, **more):
    knobs = ActorCriticKnobs(2, 6, mask=Mask(3), play=GameKnobs(1, at_once, evaluation_games=4), **more)
    opponent = uniform_random if isinstance(env, TicTacToe) else None
    return actor_critic(env, models=tabular.models, students=tabular.students, knobs=knobs, opponent=opponent, seed=5)


def iteration(env, tabular, at_once=8):
    look = LookAheadKnobs(2, 2, "split", language_policy(tabular.ask, 1))
    knobs = PolicyIterationKnobs(2, look, GameKnobs(1, at_once, evaluation_games=4))
    opponent = uniform_random if isinstance(env, TicTacToe) else None
    return policy_iteration(
        env, models=tabular.models, students=tabular.students, knobs=knobs, starts=env.starts() * 2,
        opponent=opponent, seed=5,
    )  # fmt: skip


def values(env, tabular, at_once=8):
    roots = env.starts()
    rollout = language_policy(tabular.ask, 1)
    knobs = TdKnobs(3, 2, 4, "split", held_out=roots)
    return td_values(env, roots, models=tabular.models, student=tabular.table, knobs=knobs, rollout=rollout, seed=5)


LOOPS = {"actor-critic": critic, "policy iteration": iteration, "td values": values}
GAMES = {"tic_tac_toe": TicTacToe, "frozen_lake": lambda: FrozenLakeText("4x4", True, 12)}


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("loop", LOOPS)
def test_the_same_events_at_any_concurrency_and_no_two_calls_in_one_place(loop, game):
    seen = []
    for at_once in (8, 8, 1):
        env = GAMES[game]()
        tabular = Tabular(env, explore=0.5)
        events = run(LOOPS[loop](env, tabular, at_once))
        seen.append(sorted(map(repr, events)))
        assert len(set(tabular.engine.places)) == len(tabular.engine.places) > 0
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("more", [{"fresh": 2}, {"form": "V"}, {"fresh": 2, "form": "V"}, {"past_share": 0.5}], ids=str)
def test_every_kind_of_actor_critic_has_places_of_its_own(more):
    seen = []
    for at_once in (8, 1):
        env = TicTacToe()
        tabular = Tabular(env, explore=0.5)
        tabular.keep_past([])
        seen.append(sorted(map(repr, run(critic(env, tabular, at_once, **more)))))
        assert len(set(tabular.engine.places)) == len(tabular.engine.places)
    assert seen[0] == seen[1]


class Breaking:
    """Answers so many questions, then breaks."""

    def __init__(self, engine, most):
        self.engine, self.most, self.asked, self.prompt_set = engine, most, 0, engine.prompt_set

    async def generate(self, requests) -> list[Completion]:
        await asyncio.sleep(0)
        if self.most is not None and self.asked + len(requests) > self.most:
            raise EngineError("The engine broke.")
        self.asked += len(requests)
        return await self.engine.generate(requests)

    def describe(self):
        return self.engine.describe()

    async def close(self):
        await self.engine.close()


def played(root, loop, most):
    """The events of a run that is begun or gone on with, None if it broke; and how many questions were asked."""
    env = TicTacToe()
    tabular = Tabular(env, explore=0.5)
    engine = Breaking(tabular.engine, most)
    if (root / "run").exists():
        store = RunStore.resume(root, "run")
    else:
        store = RunStore.create(root, "run", Manifest({}, 5, {}, engine.describe()))
    recorded = RecordedEngine(engine, store)
    tabular.ask = replace(tabular.ask, engine=recorded)
    tabular.models = replace(tabular.models, policy=tabular.ask, value=tabular.ask, improver=tabular.ask)

    async def collect():
        try:
            return [event async for event in LOOPS[loop](env, tabular)]
        except EngineError:
            return None
        finally:
            await recorded.drain()
            store.finish("interrupted", {}, 0.0)

    return asyncio.run(collect()), engine.asked


@pytest.mark.parametrize("loop", LOOPS)
def test_an_interrupted_loop_goes_on_and_asks_nothing_twice(tmp_path, loop):
    whole, calls = played(tmp_path / "whole", loop, None)
    again, more = played(tmp_path / "whole", loop, None)
    assert whole is not None
    assert again is not None
    assert more == 0
    assert sorted(map(repr, again)) == sorted(map(repr, whole))
    total = 0
    for _ in range(20):
        events, asked = played(tmp_path / "broken", loop, max(1, calls // 6))
        total += asked
        if events is not None:
            break
    assert events is not None
    assert total == calls
    assert sorted(map(repr, events)) == sorted(map(repr, whole))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(PHASES)), min_size=2, max_size=2, unique=True))
def test_no_two_phases_share_a_number(places):
    first, second = (games_of(*place) for place in places)
    assert abs(first - second) >= 1_000_000
    assert first % 2 == second % 2 == 0, "game 0 of every phase gives the player the first seat"
