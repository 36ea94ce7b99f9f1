"""PettingZoo's face of a game of two: numbers, `action_mask` and text, one class for every board game.

    env = pettingzoo.make("aec", "nlrl/breakthrough-v0", size="5x5", render_mode="ansi")

PettingZoo's own classic games are not underneath: they import pygame to be imported at all, have no text to render, and
leave the opponent of an illegal move without its win. The tests hold our rules against them and against OpenSpiel.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv
from pettingzoo.utils.wrappers import AssertOutOfBoundsWrapper, OrderEnforcingWrapper

from nlrl_envs.board_game import BoardGame

ILLEGAL = ""
"""No game has it as a move: what an illegal number becomes in text."""


class BoardEnv(AECEnv):
    """A board game between `player_0`, which moves first, and `player_1`.

    Observation: `observation` (rows, columns, 2) int8, the observer's own squares and then the other's; `action_mask`
    (actions,) int8, all 0 for who does not move; `text`, the board in words. Info: `text` again, `legal_actions` in
    the game's strings (parallel to the mask's ones in ascending order of number: `legal_numbers`), `illegal`.

    Rewards: 1 and -1, or 0 and 0, when the game ends. An illegal action loses, and the other player wins; both are
    terminated, none truncated. After `max_cycles` moves of each player the game is truncated without a reward.
    `seed` is accepted and changes nothing: these games have no chance.

    Args:
        game: the game; the environment owns it from then on.
        name: as `metadata["name"]` has it, "breakthrough_v0".
        max_cycles: moves of each player until truncation; None for no such limit.
        render_mode: None, "ansi" (a string) or "human" (printed after each move).

    Raises:
        ValueError: the render mode is none of these, or the limit is below 1.
    """

    def __init__(
        self, game: BoardGame, name: str, max_cycles: int | None = None, render_mode: str | None = None
    ) -> None:
        super().__init__()
        if render_mode not in (None, "ansi", "human"):
            raise ValueError(f"A board is drawn with render_mode='ansi' or 'human' or not at all, not '{render_mode}'.")
        if max_cycles is not None and max_cycles < 1:
            raise ValueError(f"A game has at least 1 cycle, not {max_cycles}; leave max_cycles out for no limit.")
        self.metadata = {
            "name": name,
            "render_modes": ["human", "ansi"],
            "render_fps": 1,
            "is_parallelizable": False,
        }
        self.game = game
        self.render_mode = render_mode
        self.max_cycles = max_cycles
        self.possible_agents = ["player_0", "player_1"]
        self.agents: list[str] = []
        self._observation_spaces = {agent: _observation_space(game) for agent in self.possible_agents}
        self._action_spaces = {agent: spaces.Discrete(game.action_count) for agent in self.possible_agents}
        self._moves = 0

    def observation_space(self, agent: str) -> spaces.Space:
        """The same object on every call."""
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """The numbers of all moves; the same object on every call."""
        return self._action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin a game; `options={"start": state}` says from which position.

        Raises:
            ValueError: the start is no position of this game, or the game is over there.
        """
        self.game.reset(np.random.default_rng(seed), (options or {}).get("start"))
        self.agents = self.possible_agents[:]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos = {agent: self._info(illegal=False) for agent in self.agents}
        self.agent_selection = self.possible_agents[self.game.seat]
        self._moves = 0
        if self.render_mode == "human":
            self.render()

    def step(self, action: int | None) -> None:
        """Make the move of a number for `agent_selection`."""
        agent = self.agent_selection
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        numbers = dict(zip(self.game.legal_numbers, self.game.legal_actions, strict=True))
        number = -1 if action is None else int(action)
        result = self.game.step(numbers.get(number, ILLEGAL))
        self._moves += 1
        cut = not result.terminated and self.max_cycles is not None and self._moves >= 2 * self.max_cycles
        self._cumulative_rewards[agent] = 0.0
        self.rewards = dict(zip(self.possible_agents, result.rewards_P, strict=True))
        self.terminations = dict.fromkeys(self.agents, result.terminated)
        self.truncations = dict.fromkeys(self.agents, cut)
        self.infos = {each: self._info(illegal=each == agent and not result.legal) for each in self.agents}
        self.agent_selection = self.possible_agents[1 - self.possible_agents.index(agent)]
        self._accumulate_rewards()
        if self.render_mode == "human":
            self.render()

    def observe(self, agent: str) -> dict[str, Any]:
        """What an agent sees; new arrays on every call."""
        seat = self.possible_agents.index(agent)
        mask = np.zeros(self.game.action_count, np.int8)
        if seat == self.game.seat:
            mask[list(self.game.legal_numbers)] = 1
        return {"observation": self.game.planes(seat), "action_mask": mask, "text": self.game.observation}

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride] - its base allows no text
        """The board with "ansi"; printed with "human"."""
        if self.render_mode == "human":
            print(self.game.render(), end="\n\n")
        return self.game.render() if self.render_mode == "ansi" else None

    def close(self) -> None:
        """Nothing is held."""

    def _info(self, illegal: bool) -> dict[str, Any]:
        return {
            "text": self.game.observation,
            "legal_actions": list(self.game.legal_actions),
            "legal_numbers": list(self.game.legal_numbers),
            "illegal": illegal,
        }


def wrapped(env: BoardEnv) -> AECEnv:
    """The environment as PettingZoo hands environments out: calls in the wrong order and wild numbers are errors."""
    return OrderEnforcingWrapper(AssertOutOfBoundsWrapper(env))


def _observation_space(game: BoardGame) -> spaces.Dict:
    return spaces.Dict(
        {
            "observation": spaces.Box(0, 1, (*game.grid, 2), np.int8),
            "action_mask": spaces.Box(0, 1, (game.action_count,), np.int8),
            "text": spaces.Text(max_length=2000, min_length=1, charset=string.printable),
        }
    )
