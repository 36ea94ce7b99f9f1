"""The games of two pass PettingZoo's own tests, and show numbers, mask and text of one position."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pettingzoo
import pytest
from pettingzoo.test import api_test, max_cycles_test, render_test, seed_test

import nlrl_envs  # noqa: F401 - registers the games
from nlrl_envs import breakthrough, connect_four, tic_tac_toe
from nlrl_envs.aec import BoardEnv

GAMES = {"tic_tac_toe": tic_tac_toe, "breakthrough": breakthrough, "connect_four": connect_four}
KNOWN_WARNINGS = (
    "Observation is not a NumPy array",  # it is a Dict, because a mask and a text belong to it
    "Observation numpy array is all zeros",  # an empty board
    "Observation space for each agent probably should be",
)
LONG_GAMES = {"tic_tac_toe": [0, 1, 2, 4, 3, 5, 7, 6, 8], "connect_four": [0, 0, 0, 0, 0, 0, 1, 1, 1]}
"""Numbers to try first, so that four cycles pass without a winner."""


def make(name: str, **options) -> Any:
    return pettingzoo.make("aec", f"nlrl/{name}-v0", **options)


@pytest.mark.parametrize("name", GAMES)
def test_pettingzoos_own_tests(name: str, capsys: pytest.CaptureFixture):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api_test(make(name), num_cycles=1000)
        seed_test(lambda: make(name))
        render_test(lambda **options: make(name, **options))
    assert [str(w.message) for w in caught if not str(w.message).startswith(KNOWN_WARNINGS)] == []
    assert "Passed API test" in capsys.readouterr().out


class Scripted(BoardEnv):
    """PettingZoo's test of cycles samples without the mask; here any number becomes a legal one, which may vary."""

    def step(self, action: int | None) -> None:
        if action is not None and self.game.legal_numbers:
            wanted = LONG_GAMES.get(self.metadata["name"].removesuffix("_v0"), [])
            action = next((n for n in wanted if n in self.game.legal_numbers), self.game.legal_numbers[0])
        super().step(action)


class Rounds:
    """A game as PettingZoo's parallel ones are: in a step both seats move, one after the other."""

    def __init__(self, env: BoardEnv) -> None:
        self.env = env
        self.action_space = env.action_space

    @property
    def agents(self) -> list[str]:
        return self.env.agents

    def reset(self) -> tuple[dict, dict]:
        self.env.reset()
        return {}, self.env.infos

    def step(self, actions: dict) -> tuple[dict, ...]:
        for agent in self.env.possible_agents:
            self.env.step(actions[agent])
        return {}, self.env.rewards, self.env.terminations, self.env.truncations, self.env.infos


@pytest.mark.parametrize("name", GAMES)
def test_cycles_are_counted(name: str):
    def env(max_cycles: int) -> BoardEnv:
        scripted = GAMES[name].raw_env(max_cycles=max_cycles)
        scripted.__class__ = Scripted
        return scripted

    max_cycles_test(SimpleNamespace(env=env, parallel_env=lambda max_cycles: Rounds(env(max_cycles))))
    cut = env(4)
    cut.reset()
    for _ in range(8):
        cut.step(0)
    assert cut.truncations == {"player_0": True, "player_1": True}
    assert cut.terminations == {"player_0": False, "player_1": False}
    assert cut.rewards == {"player_0": 0, "player_1": 0}


@pytest.mark.parametrize("name", GAMES)
def test_numbers_mask_and_text_show_one_position(name: str):
    env, rng = make(name), np.random.default_rng(0)
    env.reset(seed=1)
    total = {"player_0": 0.0, "player_1": 0.0}
    for agent in env.agent_iter():
        observation, reward, terminated, truncated, info = env.last()
        assert observation is not None
        total[agent] += reward
        game = env.unwrapped.game
        other = env.observe("player_1" if agent == "player_0" else "player_0")
        assert (observation["observation"] == other["observation"][:, :, ::-1]).all(), "each sees its own squares first"
        assert observation["text"] == info["text"] == game.observation
        if terminated or truncated:
            env.step(None)
            continue
        assert np.flatnonzero(observation["action_mask"]).tolist() == info["legal_numbers"]
        assert not other["action_mask"].any()
        assert observation is not env.observe(agent)
        env.step(int(rng.choice(info["legal_numbers"])))
    assert sorted(total.values()) in ([-1, 1], [0, 0])


@pytest.mark.parametrize("name", GAMES)
def test_an_illegal_number_loses_and_the_other_player_wins(name: str):
    env = GAMES[name].raw_env()
    env.reset()
    env.step(10_000)
    assert env.rewards == {"player_0": -1, "player_1": 1}
    assert env.infos["player_0"]["illegal"]
    assert not env.infos["player_1"]["illegal"]
    assert env.terminations == {"player_0": True, "player_1": True}


def test_a_game_can_start_anywhere():
    env = make("breakthrough", size="4x4")
    env.reset(options={"start": (1 << 8, 1 << 15, 0)})
    env.step(3 * 8 + 1)
    assert env.rewards == {"player_0": 1, "player_1": -1}
    with pytest.raises(ValueError, match="is no position of this game"):
        env.reset(options={"start": (0, 0, 5)})


def test_bad_arguments():
    with pytest.raises(ValueError, match="render_mode='ansi' or 'human'"):
        make("tic_tac_toe", render_mode="rgb_array")
    with pytest.raises(ValueError, match="at least 1 cycle"):
        make("tic_tac_toe", max_cycles=0)
