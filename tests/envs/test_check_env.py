"""Every game of the table keeps the contract; a game that breaks it is told so."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlrl_envs import ENVS
from nlrl_envs.base import TextEnv, TextStep
from nlrl_envs.check import EnvCheckError, check_env
from nlrl_envs.maze import MazeText
from nlrl_envs.playthrough import play_through
from nlrl_envs.tic_tac_toe import TicTacToe

GOLDEN = Path(__file__).parents[2] / "envs" / "golden"


def make(name: str) -> TextEnv:
    module, attribute = ENVS[name].split(":")
    return getattr(__import__(module, fromlist=[attribute]), attribute)()


@pytest.mark.parametrize("name", ENVS)
def test_every_game_keeps_the_contract(name: str):
    env = make(name)
    check_env(env)
    assert isinstance(env, TextEnv)


@pytest.mark.parametrize("map_", ["umaze", "large", "random:5:15x15"])
def test_every_kind_of_map_keeps_the_contract(map_: str):
    env = MazeText(map_)
    check_env(env, games=1)
    assert env.maze.name.startswith(map_)


@pytest.mark.parametrize("name", ENVS)
def test_every_game_plays_its_golden_log(name: str):
    assert play_through(make(name)) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_the_log_writer_names_the_games_it_knows():
    done = subprocess.run(
        [sys.executable, "-m", "nlrl_envs.playthrough", "chess"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.strip() == f"Unknown game 'chess'; known: {', '.join(ENVS)}."


def test_the_games_load_neither_a_compiler_nor_what_draws():
    modules = ", ".join(sorted({reference.partition(":")[0] for reference in ENVS.values()}))
    code = f"import {modules}, nlrl_envs.opponents, sys; print(*{{'numba', 'pygame', 'pyspiel'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


class Broken(MazeText):
    """A maze with one promise broken, which the check must find."""

    def __init__(self) -> None:
        super().__init__("umaze", horizon=30)

    def clone(self) -> Any:
        copy = type(self)()
        copy.__dict__.update(self.__dict__)
        return copy


class NoNewline(Broken):
    @property
    def observation(self) -> str:
        return super().observation.rstrip("\n")


class RaisesOnIllegal(Broken):
    def step(self, action: str) -> TextStep:
        if action not in self.legal_actions:
            raise KeyError(action)
        return super().step(action)


class SharedClone(Broken):
    def clone(self) -> Any:
        return self


class ProcessRandom(Broken):
    def reset(self, rng: np.random.Generator, start: Any = None) -> str:
        if start is None:
            start = self.starts()[int(np.random.randint(6))]
        return super().reset(rng, start)


class Endless(Broken):
    @property
    def terminal_text(self) -> str | None:
        return None


class LegalAfterTheEnd(Broken):
    @property
    def legal_actions(self) -> tuple[str, ...]:
        return ("move up", "move down")


class ForgetfulState(Broken):
    def set_state(self, state: Any) -> None:
        if state[1]:
            state = (state[0], 0)
        super().set_state(state)


class NoStarts(Broken):
    def starts(self) -> tuple:
        return ()


class ForeseesChance(Broken):
    """Its walls move by chance, and its copies share the generator."""

    def reset(self, rng: np.random.Generator, start: Any = None) -> str:
        self.chance = rng
        return super().reset(rng, start)

    def step(self, action: str) -> TextStep:
        return super().step("move up" if action in self.legal_actions and self.chance.random() < 0.5 else action)


class SharesTheLoss(TicTacToe):
    """Both seats lose when one makes an illegal move."""

    def step(self, action: str) -> TextStep:
        step = super().step(action)
        return step if step.legal else replace(step, rewards_P=(-1.0, -1.0), reward=-1.0)


class RewardsTheOther(TicTacToe):
    """The reward is that of whose turn it is next."""

    def step(self, action: str) -> TextStep:
        step = super().step(action)
        return replace(step, reward=step.rewards_P[self.seat])


class HalfSeated(Broken):
    seats = ("player", "nobody")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (ForeseesChance(), "changed its original|changed by steps of its copies"),
        (SharesTheLoss(), "do not sum to zero"),
        (RewardsTheOther(), "not that of the seat which moved"),
        (HalfSeated(), "lacks another property of SeatedEnv"),
        (NoNewline(), "does not end with a newline"),
        (RaisesOnIllegal(), "raised KeyError"),
        (SharedClone(), "changed its original"),
        (ProcessRandom(), "same seed differ"),
        (Endless(), "`terminal_text` and the end"),
        (LegalAfterTheEnd(), r"must be \(\) exactly when"),
        (ForgetfulState(), "did not bring the state back"),
        (NoStarts(), "is empty"),
        (object(), "lacks a method or property"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_broken_game_is_found_out(env: TextEnv, message: str):
    with pytest.raises(EnvCheckError, match=message):
        check_env(env)


def test_the_check_leaves_the_random_states_of_the_process_alone():
    np.random.seed(5)
    expected = np.random.random(3)
    np.random.seed(5)
    check_env(MazeText("umaze"), games=1)
    assert np.random.random(3).tolist() == expected.tolist()
