"""Language Monte Carlo is the mean of returns, and says from how many games."""

import asyncio
from collections import defaultdict

import numpy as np
import pytest

from nlrl.agents import opponent_agent, random_agent, seated_agent
from nlrl.ask import Asker
from nlrl.engine.oracle import OracleEngine
from nlrl.play import Games, play_all
from nlrl.types import CallId, Group, LookAhead, Situation
from nlrl.values.games import FreshGames, achieved, chunk, fresh_games, group, trajectories
from nlrl.values.look_ahead import against, opponent_policy, uniform_random
from nlrl.values.monte_carlo import language_monte_carlo
from nlrl.values.numeric import monte_carlo
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.game_table import action_values, policy_values, uniform_policy
from nlrl_envs.opponents import first_legal
from nlrl_envs.opponents import uniform_random as random_opponent
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_envs.tic_tac_toe_solver import whole_game
from nlrl_prompts import load

ARITHMETIC = load("arithmetic", "tic_tac_toe")


def run(coroutine):
    return asyncio.run(coroutine)


def oracle(env, engine=None):
    return Asker(engine or OracleEngine({}), ARITHMETIC, env.task)


async def collect(events):
    return [event async for event in events]


@pytest.fixture(scope="module")
def games():
    """512 games of Tic-Tac-Toe at random, the player first in every other one, as the paper's first iteration."""
    env = TicTacToe()
    agent = seated_agent(random_agent(), opponent_agent(random_opponent))
    events = run(collect(play_all(env, Games(env.starts() * 512), agent, seed=0, history_items=1)))
    return trajectories(events)


def test_the_players_games_are_told_from_its_side(games):
    assert len(games) == 512
    assert [g.player for g in games[:4]] == ["O", "X", "O", "X"]
    assert all(len(g.observations) == len(g.actions) + 1 for g in games)
    assert all(own == (t % 2 == (g.player == "X")) for g in games for t, own in enumerate(g.own))
    returns = [float(sum(g.rewards)) for g in games]
    # Exact: 43.65 % won, 12.70 % drawn; three standard deviations of 512 games are 6.6 and 4.4 points.
    assert returns.count(1.0) / 512 == pytest.approx(0.4365, abs=0.066)
    assert returns.count(0.0) / 512 == pytest.approx(0.1270, abs=0.044)
    assert returns.count(-1.0) == sum(g.rewards[-1] == -1 and not g.own[-1] for g in games)
    assert all(set(legal) >= {a} for g in games for a, legal in zip(g.actions, g.legal_T_A, strict=True))


def test_groups_have_the_sizes_that_the_paper_does_not_tell(games):
    groups = group(games, history_items=1)
    turns = sum(sum(g.own) for g in games)
    assert sum(len(g.games_K) for g in groups) == turns
    chunks = chunk(groups, 5, np.random.default_rng(0))
    # Expected over many draws: 1,956 own turns, 1,402 distinct moves, 1,459 prompts, 87 % of moves occur once.
    assert turns == pytest.approx(1956, abs=60)
    assert len(groups) == pytest.approx(1402, abs=60)
    assert len(chunks) == pytest.approx(1459, abs=60)
    assert achieved(groups)[1] / len(groups) == pytest.approx(0.87, abs=0.03)
    assert max(achieved(chunks)) == 5
    assert sum(k * count for k, count in achieved(chunks).items()) == turns


@pytest.mark.parametrize("form", ["Q", "V"])
def test_the_value_of_every_group_is_the_mean_of_its_returns(games, form):
    returns = defaultdict(list)
    for g in games:
        for t, action in enumerate(g.actions):
            if g.own[t]:
                returns[g.observations[t], action if form == "Q" else None].append(sum(g.rewards[t:]))
    found = run(language_monte_carlo(group(games, history_items=1, form=form), ask=oracle(TicTacToe())))
    assert not found.failures
    assert len(found.evaluations) == len(returns)
    for e in found.evaluations:
        mine = returns[e.situation.history[-1], e.action]
        assert e.value.number == pytest.approx(np.mean(mine), abs=1e-9)
        assert len(e.games_K) == len(mine)
        assert e.value.number == pytest.approx(monte_carlo([look.rewards for look in e.games_K]), abs=1e-9)
    assert found.achieved_K == achieved(group(games, history_items=1, form=form))


def test_several_chunks_of_one_move_are_several_estimates_and_calls_of_their_own(games):
    (biggest,) = sorted(group(games, history_items=1), key=lambda g: -len(g.games_K))[:1]
    chunks = chunk([biggest], 5, np.random.default_rng(1))
    asked = []

    class Watching(OracleEngine):
        async def generate(self, requests):
            asked.extend(r.call for r in requests)
            return await super().generate(requests)

    found = run(language_monte_carlo(chunks, ask=oracle(TicTacToe(), Watching({}))))
    assert len(found.evaluations) == len(chunks) > 5
    assert len(set(asked)) == len(asked) == found.calls
    whole = sum((e.value.number or 0.0) * len(e.games_K) for e in found.evaluations) / len(biggest.games_K)
    assert whole == pytest.approx(np.mean([g.total_reward for g in biggest.games_K]), abs=1e-9)


def test_fresh_games_give_exactly_k_from_every_move_and_approach_the_exact_value():
    env, table = TicTacToe(), whole_game()
    roots = []
    for number, moves in enumerate([("5", "1", "2"), ("1", "5", "9", "2")]):
        game = env.clone()
        for move in moves:
            game.step(move)
        call = CallId(0, number, "policy")
        roots.append((game, Situation((game.observation,), call, game.legal_actions, game.seats[game.seat])))
    rollout = against(uniform_random, opponent_policy(random_opponent))
    groups, failures = run(fresh_games(roots, FreshGames(400, rollout), np.random.default_rng(0)))
    assert not failures
    assert achieved(groups) == {400: sum(len(s.actions) for _, s in roots)}
    found = run(language_monte_carlo(groups, ask=oracle(env)))
    q_S_A = action_values(table, policy_values(table, uniform_policy(table)))
    for e in found.evaluations:
        game = roots[e.situation.call.step][0]
        exact = q_S_A[table.states_S.index(game.state), table.moves_A.index(e.action)] * (1 - 2 * game.seat)
        # Four standard errors of a mean of 400 returns of deviation at most 1.
        assert e.value.number == pytest.approx(exact, abs=0.2)
        assert e.value.number == pytest.approx(np.mean([g.total_reward for g in e.games_K]), abs=1e-9)
    assert [s.history for _, s in roots] == [(game.observation,) for game, _ in roots]


def test_fresh_games_in_the_v_form_begin_with_a_move_of_the_policy():
    env = TicTacToe()
    env.step("5")
    roots = [(env, Situation((env.observation,), CallId(0, 1, "policy"), env.legal_actions, "X"))]
    rollout = against(opponent_policy(first_legal), opponent_policy(first_legal))
    groups, _ = run(fresh_games(roots, FreshGames(3, rollout, "V"), np.random.default_rng(0)))
    (only,) = groups
    assert only.action is None
    # X 1, O 2, X 3, O 4, X 6, O 7, X 8, O 9: nobody has a line until O does with 5 and two others.
    assert [g.actions for g in only.games_K] == [only.games_K[0].actions] * 3
    assert only.games_K[0].actions[:4] == ("1", "2", "3", "4")
    (value,) = run(language_monte_carlo(groups, ask=oracle(env))).evaluations
    assert value.value.number == only.games_K[0].total_reward


def test_games_on_ice_work_alike_and_unfinished_ones_are_no_evidence():
    env = FrozenLakeText("4x4", True)
    roots = [(env, Situation((env.observation,), CallId(0, 0, "policy"), env.legal_actions))]
    groups, _ = run(fresh_games(roots, FreshGames(50, uniform_random), np.random.default_rng(0)))
    assert achieved(groups) == {50: 4}
    short, _ = run(fresh_games(roots, FreshGames(50, uniform_random, most_moves=3), np.random.default_rng(0)))
    assert sum(len(g.games_K) for g in short) < 200
    found = run(language_monte_carlo([*short, Group(roots[0][1], "Left", ())], ask=oracle(env)))
    assert found.achieved_K[0] >= 1
    assert len(found.evaluations) == sum(bool(g.games_K) for g in short)


def test_what_a_model_reads_of_a_game():
    env = TicTacToe()
    game = LookAhead(("before\n", "5", "after\n"), ("5",), (1.0,), "O wins with 1, 5, 9.")
    asked = []

    class Watching(OracleEngine):
        async def generate(self, requests):
            asked.extend(requests)
            return await super().generate(requests)

    one = Group(Situation(("before\n",), CallId(0, 0, "policy"), ("5",), "O"), "5", (game,))
    ask = Asker(Watching({}), load("full", "tic_tac_toe"), env.task, attempts=1)
    with pytest.raises(Exception, match="arithmetic"):
        run(language_monte_carlo([one], ask=ask))
    text = asked[0].messages[-1].content
    assert "before" in text
    assert "O wins with 1, 5, 9." in text
    assert asked[0].call == CallId(0, 0, "monte_carlo", "5", 0)
