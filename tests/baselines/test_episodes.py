"""Episodes of own turns (acceptance check 12: every loss is seen), advantages, and Q^L with I without look-ahead."""

import asyncio

import numpy as np
import pytest

from nlrl.agents import plain_agent, random_agent
from nlrl.ask import Asker
from nlrl.baselines.advantages import advantages
from nlrl.baselines.episodes import EpisodeKnobs, play_episodes, uniform_choice
from nlrl.baselines.q_improve import q_improve_agent
from nlrl.baselines.report import evaluate
from nlrl.engine.oracle import OracleEngine
from nlrl.evaluate.games import grade_games
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.maze import MazeText
from nlrl_envs.opponents import first_legal, uniform_random
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import load


def test_a_learner_sees_every_loss():
    episodes = play_episodes(TicTacToe(), uniform_choice, uniform_random, games=range(512), seed=0)
    lost = [one for one in episodes if one.end.total_return == -1]
    # 43.65 % of random games are won by the seat-alternating learner and 12.70 % drawn: 223 lost, 3 sigma are 32.
    assert abs(len(lost) - 223) <= 32
    assert all(one.turns_T[-1].reward == -1 and one.turns_T[-1].terminal for one in lost)
    for one in episodes:
        assert [turn.terminal for turn in one.turns_T] == [False] * (len(one.turns_T) - 1) + [True]
        assert sum(turn.reward for turn in one.turns_T) == one.end.total_return
        assert {turn.situation.player for turn in one.turns_T} == {"OX"[one.end.game % 2]}
    won = grade_games([one.end for one in episodes], ("O", "X"))
    assert won.all.loss.hits == len(lost)
    assert abs(won.win_by_seats - 0.4365) < 0.065


def test_the_seed_decides_whatever_the_batch():
    played = [
        play_episodes(
            TicTacToe(), uniform_choice, uniform_random, games=range(40), seed=seed, knobs=EpisodeKnobs(at_once=at_once)
        )
        for seed, at_once in ((1, 64), (1, 3), (2, 64))
    ]
    assert played[0] == played[1] != played[2]


def test_games_of_one_have_only_own_turns():
    episodes = play_episodes(FrozenLakeText("random"), uniform_choice, None, games=range(40), seed=0)
    assert {one.end.outcome for one in episodes} == {"success", "failure", "horizon"}
    assert all(one.end.steps == len(one.turns_T) for one in episodes)
    assert all((one.end.outcome == "success") == (one.turns_T[-1].reward == 1) for one in episodes)
    with pytest.raises(ValueError, match="does not exist"):
        play_episodes(FrozenLakeText(), lambda s, r: [(4, None)] * len(s), None, games=range(1), seed=0)


def test_without_an_opponent_the_learner_moves_for_both_and_learns_from_one_seat():
    (one,) = play_episodes(TicTacToe(), lambda s, r: [(0, None)] * len(s), None, games=range(1), seed=0)
    # O takes 1, 3, 5, 7 and wins along 3, 5, 7.
    assert [turn.situation.actions[turn.move] for turn in one.turns_T] == ["1", "3", "5", "7"]
    assert [turn.reward for turn in one.turns_T] == [0, 0, 0, 1]


def test_advantages_are_the_plain_sum():
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=6), rng.normal(size=6)
    for terminal, after in ((True, 5.0), (False, 0.7)):
        following = [*values[1:], 0.0 if terminal else after]
        deltas = [r + 0.9 * f - v for r, f, v in zip(rewards, following, values, strict=True)]
        expected = [sum((0.9 * 0.8) ** (k - t) * deltas[k] for k in range(t, 6)) for t in range(6)]
        found = advantages(rewards.tolist(), values.tolist(), terminal, 0.9, 0.8, after)
        assert found == pytest.approx(np.array(expected))
    # With lambda 1 an advantage plus the value is the discounted return.
    returns = [sum(0.9 ** (k - t) * rewards[k] for k in range(t, 6)) for t in range(6)]
    assert advantages(rewards.tolist(), values.tolist(), True, 0.9, 1.0) + values == pytest.approx(np.array(returns))
    with pytest.raises(ValueError, match="one for each turn"):
        advantages([1.0], [], True, 1.0, 1.0)


def asker(values, env, **more):
    return Asker(OracleEngine(values, **more), load("arithmetic", "maze"), env.task, attempts=1)


def test_q_improve_with_exact_values_walks_the_shortest_way():
    env = MazeText("umaze")
    values = {}
    for start in env.starts():
        env.set_state(start)
        text = env.observation.rstrip("\n")
        for action in env.legal_actions:
            after = env.clone()
            reward = after.step(action).reward
            there = after.state.position
            values[f"{text}\n{action}"] = reward + (0 if there == env.maze.goal else env.optimal_return((there, 1)))
    ask = asker(values, env)
    grades = asyncio.run(evaluate(env, q_improve_agent(ask), None, games=len(env.starts()), seed=0))
    assert grades.games is not None
    assert grades.moves is not None
    assert grades.games.all.returns.value == pytest.approx(-2.5)
    assert grades.moves.optimal.share == 1.0
    worst = asyncio.run(evaluate(env, q_improve_agent(ask, asker({k: -v for k, v in values.items()}, env)), None,
                                 games=4, seed=0))  # fmt: skip
    assert worst.moves is not None
    assert worst.moves.optimal.share < 0.3


def test_all_agents_report_through_the_same_grades():
    env = TicTacToe()
    ask = Asker(OracleEngine({}), load("arithmetic", "tic_tac_toe"), env.task)
    for agent, asked in ((random_agent(), False), (plain_agent(ask), True)):
        grades = asyncio.run(evaluate(env, agent, first_legal, games=20, seed=0))
        figures = grades.figures()
        assert {"games/win", "games/win as O", "games/return", "moves/optimal", "moves/value lost"} <= set(figures)
        assert ("replies policy/parsed" in figures) == asked
        assert not asked or figures["replies policy/parsed"] == 1.0
        assert figures["games/win low"] <= figures["games/win"] <= figures["games/win high"]
        assert any(line.startswith("games/win") for line in grades.lines())
