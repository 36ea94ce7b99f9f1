"""Any PettingZoo game of the AEC kind with discrete actions and zero sum as a `SeatedEnv`: give it words, and it plays.

    def tic_tac_toe() -> PettingZooText:
        return PettingZooText(
            pettingzoo.make("aec", "classic/tictactoe-v3"),
            task="Get three in a row.",
            moves=[str(n) for n in range(1, 10)],
            describe=lambda env, observation: str(observation["observation"]),
        )

`ENVS` (or an entry point of group `nlrl.envs`) names the function. How states and copies work: `nlrl_envs.replay`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pettingzoo import AECEnv

from nlrl_envs.base import TextStep
from nlrl_envs.replay import ReplayGame, Scene, check_actions


class PettingZooText(ReplayGame):
    """A PettingZoo game in words. An illegal move loses the game for who makes it, and the others share the win.

    Args:
        env: the environment, all of whose agents have one `Discrete` action space; the game owns it from then on.
        task: the rules and the goal.
        moves: a string for each action, in order.
        describe: (environment, observation of the agent to move) -> the observation in words.
        starts: seeds of the games that `starts()` lists; `reset` draws one of them.
        horizon: moves until the game ends without a winner.
        seats: names of the seats; None for the agents' own.

    Raises:
        ValueError: the action space is not discrete, or has another number of actions than there are strings.
    """

    def __init__(
        self,
        env: AECEnv,
        task: str,
        moves: Sequence[str],
        describe: Callable[[Any, Any], str],
        starts: Sequence[int] = (0,),
        horizon: int = 1000,
        seats: Sequence[str] | None = None,
    ) -> None:
        for agent in env.possible_agents:
            check_actions(env.action_space(agent), moves)
        self.task = task
        self.seats = tuple(seats or env.possible_agents)
        self._describe = describe
        super().__init__(env, moves, starts, horizon)

    @property
    def seat(self) -> int:
        """Whose turn it is."""
        return self._scene.seat

    @property
    def result_P(self) -> tuple[float, ...] | None:
        """The return of each seat once the game is over."""
        over = self._scene.terminated or self._scene.truncated
        return tuple(self._totals_P.tolist()) if over else None

    @property
    def terminal_text(self) -> str | None:
        """Who has won; None while the game goes on."""
        if self.result_P is None:
            return None
        winners = [seat for seat, total in zip(self.seats, self.result_P, strict=True) if total > 0]
        return f"{' and '.join(winners)} wins." if winners else "Nobody wins."

    def step(self, action: str) -> TextStep:
        """Make a move for the seat whose turn it is.

        Raises:
            RuntimeError: the game is already over.
        """
        mover = self.seat
        legal, scene = self._advance(action), self._scene
        success = scene.terminated and self._totals_P[mover] > 0
        reward = scene.rewards_P[mover]
        over = scene.terminated, scene.truncated
        return TextStep(scene.text, reward, *over, legal=legal, success=bool(success), rewards_P=scene.rewards_P)

    def _begin(self, seed: int) -> Scene:
        self._stage.env.reset(seed=seed)
        return self._scene_now()

    def _move(self, number: int, chance: int) -> Scene:
        env = self._stage.env
        if hasattr(env.unwrapped, "np_random"):
            env.unwrapped.np_random = np.random.default_rng(chance)
        env.step(number)
        return self._scene_now()

    def _illegal(self, scene: Scene) -> Scene:
        others = len(self.seats) - 1
        rewards_P = tuple(-1.0 if seat == scene.seat else 1.0 / others for seat in range(others + 1))
        return replace(scene, rewards_P=rewards_P, terminated=True)

    def _scene_now(self) -> Scene:
        env = self._stage.env
        agent, agents = env.agent_selection, env.possible_agents
        observation = env.observe(agent)
        mask = observation.get("action_mask") if isinstance(observation, dict) else None
        legal = self._legal(env.infos[agent].get("action_mask") if mask is None else mask)
        text = self._describe(env, observation).rstrip("\n")
        drawn = env.render() if env.render_mode == "ansi" else text
        terminated, truncated = any(env.terminations.values()), any(env.truncations.values())
        rewards_P = tuple(float(env.rewards.get(each, 0.0)) for each in agents)
        return Scene(
            f"{text}\n", drawn, legal, agents.index(agent), rewards_P, terminated, truncated and not terminated
        )
