"""Any gymnasium or PettingZoo game plugs in: Taxi and Blackjack, tictactoe and connect_four."""

import gymnasium
import numpy as np
import pettingzoo
import pytest

from nlrl_envs.base import SeatedEnv, TextEnv
from nlrl_envs.check import check_env
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.gymnasium_text import GymnasiumText
from nlrl_envs.opponents import uniform_random
from nlrl_envs.pettingzoo_text import PettingZooText
from nlrl_envs.tic_tac_toe import TicTacToe


def taxi(horizon: int = 40) -> GymnasiumText:
    return GymnasiumText(
        gymnasium.make("Taxi-v4", render_mode="ansi"),
        task="Bring the passenger to the destination.",
        moves=("south", "north", "east", "west", "pick up", "drop off"),
        describe=lambda env, observation: env.render(),
        horizon=horizon,
    )


def blackjack() -> GymnasiumText:
    return GymnasiumText(
        gymnasium.make("Blackjack-v1"),
        task="Come closer to 21 than the dealer without going over.",
        moves=("stick", "hit"),
        describe=lambda env, observation: f"You have {observation[0]}, the dealer shows {observation[1]}.",
    )


def describe(env, observation) -> str:
    planes = observation["observation"]
    return "\n".join("".join(".*o"[int(own + 2 * other)] for own, other in row) for row in planes)


def classic(name: str, moves: int) -> PettingZooText:
    pytest.importorskip("pygame", reason="PettingZoo's classic games draw with pygame")
    strings = [str(n + 1) for n in range(moves)]
    return PettingZooText(pettingzoo.make("aec", f"classic/{name}"), "Get a line.", strings, describe, seats=("a", "b"))


@pytest.mark.parametrize("make", [taxi, blackjack])
def test_gymnasium_games_keep_the_contract(make):
    env = make()
    check_env(env, games=2)
    assert isinstance(env, TextEnv)
    assert not isinstance(env, SeatedEnv)


@pytest.mark.parametrize(("name", "moves"), [("tictactoe-v3", 9), ("connect_four-v3", 7)])
def test_pettingzoo_games_keep_the_contract(name: str, moves: int):
    env = classic(name, moves)
    check_env(env, games=2)
    assert isinstance(env, SeatedEnv)


def test_taxi_is_gymnasiums_taxi():
    ours, theirs = taxi(horizon=1000), gymnasium.make("Taxi-v4")
    rng = np.random.default_rng(0)
    for seed in range(3):
        ours.reset(rng, (seed, ()))
        _, info = theirs.reset(seed=seed)
        while ours.legal_actions:
            assert [move in ours.legal_actions for move in ours._moves] == info["action_mask"].astype(bool).tolist()
            move = uniform_random([ours], rng)[0]  # pyright: ignore[reportArgumentType]
            step = ours.step(move)
            _, reward, terminated, truncated, info = theirs.step(ours._moves.index(move))
            assert (step.reward, step.terminated, step.truncated) == (reward, terminated, truncated)


def test_interleaved_copies_are_games_of_their_own():
    one = taxi()
    one.reset(np.random.default_rng(0), (3, ()))
    other = one.clone()
    for move in ("south", "north", "no such move", "east"):
        one.step(move)
        other.step("west")
    assert [move for move, _ in one.state.moves] == ["south", "north", "", "east"]
    alone = taxi()
    alone.set_state(one.state)
    assert (alone.observation, alone.legal_actions) == (one.observation, one.legal_actions)


def test_chance_is_replayed_and_copies_have_their_own():
    env = blackjack()
    env.reset(np.random.default_rng(0), (1, ()))
    hands = set()
    for _ in range(20):
        copy = env.clone()
        copy.step("hit")
        hands.add(copy.observation)
        again = blackjack()
        again.set_state(copy.state)
        assert again.observation == copy.observation
    assert len(hands) > 3, "every copy draws the same card"


def test_pettingzoo_tictactoe_and_ours_agree():
    theirs, ours, rng = classic("tictactoe-v3", 9), TicTacToe(), np.random.default_rng(0)
    # PettingZoo numbers the squares column by column; lines are the same either way.
    results = set()
    for _ in range(40):
        theirs.reset(rng)
        ours.reset(rng)
        while ours.legal_actions:
            assert (theirs.seat, theirs.legal_actions) == (ours.seat, ours.legal_actions)
            move = uniform_random([ours], rng)[0]
            ours_step, theirs_step = ours.step(move), theirs.step(move)
            assert ours_step.rewards_P == theirs_step.rewards_P
            assert (ours_step.terminated, ours_step.success) == (theirs_step.terminated, theirs_step.success)
        assert theirs.result_P == ours.result_P
        results.add(ours.result_P)
    assert results == {(1, -1), (-1, 1), (0, 0)}


def test_pettingzoo_connect_four_and_ours_agree():
    theirs, ours, rng = classic("connect_four-v3", 7), ConnectFour(), np.random.default_rng(0)
    for _ in range(15):
        theirs.reset(rng)
        ours.reset(rng)
        while ours.legal_actions:
            assert (theirs.seat, theirs.legal_actions) == (ours.seat, ours.legal_actions)
            move = uniform_random([ours], rng)[0]
            assert ours.step(move).rewards_P == theirs.step(move).rewards_P
        assert theirs.result_P == ours.result_P


def test_an_illegal_move_loses_a_pettingzoo_game():
    env = classic("tictactoe-v3", 9)
    env.step("5")
    step = env.step("5")
    assert (step.legal, step.rewards_P, env.terminal_text) == (False, (1, -1), "a wins.")


def test_a_wrong_number_of_strings_is_refused():
    with pytest.raises(ValueError, match=r"Discrete\(2\) and 1 strings; give one for each"):
        GymnasiumText(gymnasium.make("Blackjack-v1"), "Win.", ["stick"], lambda env, observation: "x")
    with pytest.raises(ValueError, match="is no state of this game"):
        blackjack().set_state((1, (("fold", 0),)))
