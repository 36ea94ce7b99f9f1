"""Any gymnasium game with discrete actions as a `TextEnv`: give it words, and it plays.

    def taxi() -> GymnasiumText:
        return GymnasiumText(
            gymnasium.make("Taxi-v4", render_mode="ansi"),
            task="Bring the passenger to the destination.",
            moves=("south", "north", "east", "west", "pick up", "drop off"),
            describe=lambda env, observation: env.render(),
        )

`ENVS` (or an entry point of group `nlrl.envs`) names the function. How states and copies work: `nlrl_envs.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from nlrl_envs.base import TextStep
from nlrl_envs.replay import ReplayGame, Scene, check_actions

ILLEGAL_REWARD = -1.0


class GymnasiumText(ReplayGame):
    """A gymnasium game in words.

    An illegal move costs 1 and a move. Where info or observation has an `action_mask`, masked actions are illegal.

    Args:
        env: the environment, whose action space is `Discrete`; the game owns it from then on.
        task: the rules and the goal.
        moves: a string for each action, in order.
        describe: (environment, observation) -> the observation in words.
        starts: seeds of the games that `starts()` lists; `reset` draws one of them.
        horizon: moves until the game is lost, where the environment's own limit is not shorter.
        success: (return, last reward) of a terminated game -> whether it was a success.

    Raises:
        ValueError: the action space is not discrete, or has another number of actions than there are strings.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        task: str,
        moves: Sequence[str],
        describe: Callable[[Any, Any], str],
        starts: Sequence[int] = range(16),
        horizon: int = 1000,
        success: Callable[[float, float], bool] = lambda total, last: last > 0,
    ) -> None:
        check_actions(env.action_space, moves)
        self.task = task
        self._describe = describe
        self._success = success
        super().__init__(env, moves, starts, horizon)

    @property
    def terminal_text(self) -> str | None:
        """Whether the game ended by itself or by its limit; None while it goes on."""
        if self._scene.terminated:
            return "The goal is reached." if self._succeeded() else "The game is over."
        return "The moves are used up." if self._scene.truncated else None

    def step(self, action: str) -> TextStep:
        """Make a move; anything that is not legal costs 1 and a move.

        Raises:
            RuntimeError: the game is already over.
        """
        legal, scene = self._advance(action), self._scene
        success = scene.terminated and self._succeeded()
        return TextStep(scene.text, scene.rewards_P[0], scene.terminated, scene.truncated, legal, success)

    def _succeeded(self) -> bool:
        return bool(self._success(float(self._totals_P[0]), self._scene.rewards_P[0]))

    def _begin(self, seed: int) -> Scene:
        observation, info = self._stage.env.reset(seed=seed)
        return self._scene_of(observation, info)

    def _move(self, number: int, chance: int) -> Scene:
        env = self._stage.env
        env.unwrapped.np_random = np.random.default_rng(chance)
        observation, reward, terminated, truncated, info = env.step(number)
        scene = self._scene_of(observation, info)
        return replace(
            scene, rewards_P=(float(reward),), terminated=bool(terminated), truncated=bool(truncated and not terminated)
        )

    def _illegal(self, scene: Scene) -> Scene:
        return replace(scene, rewards_P=(ILLEGAL_REWARD,))

    def _scene_of(self, observation: Any, info: dict[str, Any]) -> Scene:
        env = self._stage.env
        text = self._describe(env, observation).rstrip("\n")
        mask = observation.get("action_mask") if isinstance(observation, dict) else None
        legal = self._legal(info.get("action_mask") if mask is None else mask)
        return Scene(f"{text}\n", env.render() if env.render_mode == "ansi" else text, legal)
