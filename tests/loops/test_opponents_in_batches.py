"""Opponents are asked for all games that wait at once, and no game depends on which others do."""

import asyncio
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.agents import opponent_agent, pool_agent, random_agent, seated_agent
from nlrl.play import deal, play_all
from nlrl.types import CallId, Decision, GameEnd, ImprovedPolicy, Step
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.opponents import make_opponent, one_each, uniform_random
from nlrl_envs.tic_tac_toe import TicTacToe


def play(agent, games=24, at_once=24, seed=0):
    async def collect():
        env = TicTacToe()
        dealt = deal(env, games, 0, np.random.default_rng(0))
        return [event async for event in play_all(env, dealt, agent, seed=seed, history_items=1, at_once=at_once)]

    return asyncio.run(collect())


def against_random(asked=None):
    def opponent(games, rngs):
        if asked is not None:
            asked.append(len(games))
        return uniform_random(games, rngs)

    return seated_agent(random_agent(), opponent_agent(opponent))


def test_games_that_wait_together_are_moved_together():
    asked = []
    events = play(against_random(asked))
    moves = sum(not e.decision.own for e in events if isinstance(e, Step))
    assert sum(asked) == moves
    assert max(asked) >= 12
    assert len(asked) < moves / 2


@settings(max_examples=8, deadline=None)
@given(at_once=st.integers(1, 40), seed=st.integers(0, 3))
def test_the_company_of_other_games_changes_none(at_once, seed):
    assert sorted(map(repr, play(against_random(), 12, at_once, seed))) == sorted(
        map(repr, play(against_random(), 12, 1, seed))
    )


@pytest.mark.parametrize("name", ["random", "first", "minimax", "mcts:20:2"])
def test_a_batch_moves_as_each_game_alone_would_be_moved(name):
    if name.startswith("mcts"):
        pytest.importorskip("numba", reason="compiled search needs numba")
    games, rng = [], np.random.default_rng(1)
    for count in range(6):
        games.append(TicTacToe())
        for _ in range(count):
            games[-1].step(str(rng.choice(games[-1].legal_actions)))
    opponent = make_opponent(name, games[0])
    together = opponent(games, [np.random.default_rng(g) for g in range(6)])
    assert together == [opponent([game], [np.random.default_rng(g)])[0] for g, game in enumerate(games)]


def test_a_game_that_comes_while_the_last_batch_ends_is_not_forgotten():
    # The second question is put in the very turn of the event loop in which the first is answered.
    async def twice():
        agent, env = opponent_agent(uniform_random), TicTacToe()
        for step in range(2):
            await agent(env, (env.observation,), CallId(0, step, "policy"), np.random.default_rng(0))

    asyncio.run(asyncio.wait_for(twice(), 30))


def test_an_opponent_that_breaks_ends_the_run_with_its_error():
    def broken(games, rngs):
        raise RuntimeError("the opponent broke")

    with pytest.raises(RuntimeError, match="the opponent broke"):
        play(seated_agent(random_agent(), opponent_agent(broken)))


def test_a_pool_draws_an_opponent_a_game_and_keeps_it():
    def named(name):
        async def agent(env, history, call, rng):
            return Decision(call.game, call.step, history, ImprovedPolicy(env.legal_actions[0], name))

        return agent

    agent = seated_agent(random_agent(), pool_agent([named("a"), named("b")], [3, 1]))
    drawn: dict[int, set[str]] = {}
    for event in play(agent, games=400):
        if isinstance(event, Step) and not event.decision.own:
            assert event.decision.choice is not None
            drawn.setdefault(event.game, set()).add(event.decision.choice.thought)
    assert all(len(names) == 1 for names in drawn.values())
    # 300 expected; three standard deviations are 26.
    assert sum(names == {"a"} for names in drawn.values()) == pytest.approx(300, abs=26)
    with pytest.raises(ValueError, match="at least one agent"):
        pool_agent([])


def test_every_start_is_played_from_every_seat():
    lake = FrozenLakeText("random")
    starts = deal(lake, 2 * len(lake.starts()), 0, np.random.default_rng(0)).starts_G
    assert Counter(starts) == dict.fromkeys(lake.starts(), 2)

    class TwoStarts(TicTacToe):
        def starts(self):
            after = TicTacToe()
            after.step("5")
            return (*super().starts(), after.state)

    dealt = deal(TwoStarts(), 8, 6, np.random.default_rng(0))
    places = [(start, (6 + g) % 2) for g, start in enumerate(dealt.starts_G)]
    assert all(places.count(place) == 2 for place in set(places))
    assert len(set(places)) == 4


def test_one_generator_a_game_or_one_for_all():
    rng = np.random.default_rng(0)
    assert one_each(rng, 2) == [rng, rng]
    with pytest.raises(ValueError, match="not 1 for 2"):
        one_each([rng], 2)


def test_games_end_in_their_own_words():
    ends = [e for e in play(against_random()) if isinstance(e, GameEnd)]
    assert all(e.ending.startswith(("O wins", "X wins")) or "draw" in e.ending for e in ends)
