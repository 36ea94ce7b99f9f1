"""Games in text, each with the exact answer beside it.

`ENVS` is the table of games: id -> "module:callable". The callable makes a `TextEnv`; without arguments it makes the
default game, and its keyword arguments are the game's options. Nothing of a game is imported before it is asked for.

Importing this package registers the games' numeric faces: with gymnasium, so that `gymnasium.make("nlrl/Maze-v0")`
works (and `gymnasium.make("nlrl_envs:nlrl/Maze-v0")` without any import of ours), and games of two with PettingZoo, as
`pettingzoo.make("aec", "nlrl/tic_tac_toe-v0")`.
"""

from __future__ import annotations

import gymnasium
import pettingzoo

ENVS: dict[str, str] = {
    "maze": "nlrl_envs.maze:MazeText",
    "frozen_lake": "nlrl_envs.frozen_lake:FrozenLakeText",
    "tic_tac_toe": "nlrl_envs.tic_tac_toe:TicTacToe",
    "breakthrough": "nlrl_envs.breakthrough:Breakthrough",
    "connect_four": "nlrl_envs.connect_four:ConnectFour",
}

REFERENCES: dict[str, str] = {
    "maze": "nlrl_envs.maze_solver:reference",
    "frozen_lake": "nlrl_envs.frozen_lake_solver:reference",
}
"""Games with an exact solver: id -> "module:callable" that takes the game and starts and gives a `Reference`."""

gymnasium.register(id="nlrl/Maze-v0", entry_point="nlrl_envs.maze:MazeEnv")
gymnasium.register(id="nlrl/FrozenLake-v0", entry_point="nlrl_envs.frozen_lake:FrozenLakeEnv")
for _name in ("tic_tac_toe", "breakthrough", "connect_four"):
    pettingzoo.register("aec", f"nlrl/{_name}-v0", f"nlrl_envs.{_name}:env")

__all__ = ["ENVS", "REFERENCES"]
