"""Looking ahead where chance or an opponent has a part."""

import asyncio
from collections import Counter

import numpy as np
import pytest
from line_world import LineWorld

from nlrl.ask import Asker, Question
from nlrl.engine.oracle import OracleEngine
from nlrl.iterate import decide
from nlrl.knobs import LookAheadKnobs
from nlrl.types import CallId
from nlrl.values.look_ahead import (
    TRIES_OF_CHANCE,
    against,
    draw_ahead,
    look_ahead,
    opponent_policy,
    uniform_random,
)
from nlrl.values.td import language_td
from nlrl_envs.frozen_lake import FrozenLakeState, FrozenLakeText
from nlrl_envs.frozen_lake_solver import action_values, policy_values, tabulate, uniform_policy
from nlrl_envs.opponents import first_legal
from nlrl_envs.opponents import uniform_random as random_opponent
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import load

HERE = CallId(0, 0, "policy")


def run(coroutine):
    return asyncio.run(coroutine)


def ahead(env, how=look_ahead, *, variations, steps, rollout=uniform_random, seed=0):
    knobs = {"variations": variations, "steps": steps, "rollout": rollout, "rng": np.random.default_rng(seed)}
    looks_A_K, failures = run(how(env, (env.observation,), HERE, **knobs))
    assert not failures
    return looks_A_K


def lake(slippery=True, position=9):
    env = FrozenLakeText("4x4", slippery)
    env.reset(np.random.default_rng(0), FrozenLakeState(0, position, 0))
    return env


def test_slippery_ice_gives_distinct_variations_without_further_steps():
    looks_A_K = ahead(lake(), variations=8, steps=0)
    after = [{look.history[-1] for look in looks_K} for looks_K in looks_A_K]
    assert [len(looks_K) for looks_K in looks_A_K] == [3, 3, 3, 3]
    assert [len(texts) for texts in after] == [3, 3, 3, 3]
    assert all(len(look.actions) == 1 for looks_K in looks_A_K for look in looks_K)
    assert [len(looks_K) for looks_K in ahead(lake(), variations=2, steps=0)] == [2, 2, 2, 2]


def test_a_fall_on_the_first_move_does_not_hide_the_other_ways_a_move_can_go():
    for looks_K in ahead(lake(position=4), variations=3, steps=1):
        assert len({look.history for look in looks_K}) == len(looks_K) == 3
    # From square 4, Right falls into the hole at 5 or slips to 0 or 8: whichever came first, the others are found.
    endings = {look.terminal_text for look in ahead(lake(position=4), variations=8, steps=1)[2]}
    assert len(endings) == 2


def test_without_chance_one_variation_is_found_and_the_search_for_more_is_short():
    moves = Counter()

    class Counting(LineWorld):
        def clone(self):
            return Counting(self.cell, self.steps)

        def step(self, action):
            moves[action] += 1
            return super().step(action)

    looks_A_K = ahead(Counting(1), variations=8, steps=0)
    assert [len(looks_K) for looks_K in looks_A_K] == [1, 1]
    assert max(moves.values()) < 8 + TRIES_OF_CHANCE


def test_independent_draws_keep_duplicates_and_have_the_frequencies_of_chance():
    # From the corner, Left bumps twice in three: it stays with 2/3, and slips down with 1/3.
    (left, *_) = ahead(lake(position=0), draw_ahead, variations=1000, steps=0)
    counts = Counter(look.history[-1] for look in left)
    assert len(left) == 1000
    assert max(counts.values()) / 1000 == pytest.approx(2 / 3, abs=0.045)


def test_a_table_of_exact_values_and_all_slips_gives_the_exact_action_values():
    env = lake(position=14)
    table = tabulate(env.rows, True)
    values_S = policy_values(table, uniform_policy(table), 100).values_F_S[60]
    texts = {}
    for position in np.flatnonzero(~table.over_S):
        env.set_state(FrozenLakeState(0, int(position), 0))
        texts[env.observation.rstrip("\n")] = float(values_S[position])
    ask = Asker(OracleEngine(texts), load("arithmetic", "frozen_lake"), env.task)
    exact_S_A = action_values(table, values_S)
    for position in (6, 8, 9, 10, 13, 14):
        env.reset(np.random.default_rng(position), FrozenLakeState(0, position, 0))
        looks_A_K = ahead(env, variations=3, steps=0)
        found = run(language_td(looks_A_K, (env.observation,), HERE, ask=ask))
        distinct = [len(set(table.next_S_A_K[position, a])) == 3 for a in range(4)]
        assert [len(looks_K) == 3 for looks_K in looks_A_K] == distinct
        for a, candidate in enumerate(found.candidates_A):
            if distinct[a]:
                assert candidate.value.number == pytest.approx(exact_S_A[position, a], abs=1e-12)
            else:
                assert candidate.value.number == pytest.approx(np.mean(_distinct(table, values_S, position, a)))


def _distinct(table, values_S, position, a):
    """Reward plus value of each different square a move can lead to."""
    return [
        float(s == table.goal) + (0.0 if table.over_S[s] else values_S[s]) for s in {*table.next_S_A_K[position, a]}
    ]


def threatened():
    """O to move at 1 and 9, X at 5 and 2; O must stop X at 8, and X wins at 8 if it does not."""
    env = TicTacToe()
    for move in ("1", "5", "9", "2"):
        env.step(move)
    return env


def test_rewards_are_those_of_the_player_at_the_root_whoever_moved():
    stops = opponent_policy(lambda games, rng: ["8" if "8" in g.legal_actions else g.legal_actions[0] for g in games])
    looks_A_K = ahead(threatened(), variations=1, steps=1, rollout=against(uniform_random, stops))
    rewards = {looks_K[0].actions[0]: looks_K[0].rewards for looks_K in looks_A_K}
    assert rewards.pop("8") == (0.0, 0.0)
    assert set(rewards.values()) == {(0.0, -1.0)}
    assert {looks_K[0].terminal_text for looks_K in looks_A_K if looks_K[0].actions[0] != "8"} == {
        "X wins with 2, 5, 8."
    }


def test_learner_and_opponent_move_for_their_own_sides_at_either_root():
    def last_legal(games, rng):
        return [game.legal_actions[-1] for game in games]

    rollout = against(opponent_policy(last_legal), opponent_policy(first_legal))
    first = ahead(TicTacToe(), variations=1, steps=3, rollout=rollout)[4][0]
    assert first.actions == ("5", "1", "9", "2")
    second = TicTacToe()
    second.step("5")
    assert ahead(second, variations=1, steps=3, rollout=rollout)[0][0].actions == ("1", "2", "9", "3")


def test_both_sides_draws_do_not_depend_on_how_many_branches_the_other_side_has():
    rollout = against(opponent_policy(random_opponent), opponent_policy(first_legal))
    assert ahead(TicTacToe(), variations=3, steps=4, rollout=rollout) == ahead(
        TicTacToe(), variations=3, steps=4, rollout=rollout
    )


def test_a_decision_of_the_second_player_is_made_through_its_eyes():
    seen = []

    class Watching(OracleEngine):
        async def generate(self, requests):
            seen.extend(requests)
            return await super().generate(requests)

    env = threatened()
    env.step("8")
    texts = {}
    for move in env.legal_actions:
        game = env.clone()
        game.step(move)
        # After 8, O threatens 7; only X's answer there is worth something to X.
        texts[game.observation.rstrip("\n")] = 0.0 if move == "7" else -1.0
    ask = Asker(Watching(texts), load("arithmetic", "tic_tac_toe"), env.task)
    decision = run(
        decide(
            env,
            (env.observation,),
            HERE,
            np.random.default_rng(0),
            ask=ask,
            knobs=LookAheadKnobs(variations=1, steps=0),
        )
    )
    assert decision.choice is not None
    assert decision.choice.action == "7"
    assert {c.action: c.value.number for c in decision.choice.candidates_A} == {"3": -1, "4": -1, "6": -1, "7": 0}
    shown = Asker(Watching(texts), load("full", "tic_tac_toe"), env.task, "X")
    assert "Judge for: X" in _prompt(shown)


def _prompt(ask):
    """What a model reads that is asked for a value."""
    request = ask._request(Question(CallId(0, 0, "value"), {"history": "board"}), 0)
    return request.messages[-1].content
