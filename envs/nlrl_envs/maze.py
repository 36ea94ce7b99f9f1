"""The maze: a walk to a goal that is told, among walls that are not, in text and in numbers.

Rules (arXiv 2411.14251, appendix on the maze; observation text and rewards are LMRL-Gym's fully observed form,
arXiv 2311.18232): each move costs 1, the move that reaches the goal costs nothing, a move into a wall leaves the agent
where it is, anything that is not one of the four moves costs 4 and changes nothing but the count of moves.

Horizon, where we differ in form but not in any number: LMRL-Gym lets the agent make `horizon` moves and answers the
call after the last with a failure text, reward -1 and the end. Here that -1 is part of the reward of the last move, and
the game is truncated there, so no decision is spent on a move that cannot matter. The return of a failed game without
illegal moves is -(horizon + 1) in both forms; uniform random play of double_t returns -85.89 and succeeds in 24.68 %.

A second difference: after the end the observation still describes the position. The sentence that the game is over is
`terminal_text`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from nlrl_envs.base import TextStep
from nlrl_envs.maze_maps import ACTIONS, Cell, MazeMap, load_map

STEP_REWARD = -1.0
GOAL_REWARD = 0.0
ILLEGAL_REWARD = -4.0
RAN_OUT_REWARD = -1.0
"""Added to the reward of the last move when the horizon is reached elsewhere than at the goal."""
HORIZON = 100

REACHED_TEXT = "The goal is reached."
RAN_OUT_TEXT = "The moves are used up and the goal is not reached."

WALL_WORDS = {1: "to your right", 0: "to your left", 2: "above you", 3: "below you"}
"""Action index -> how a wall in its way is named, in the order in which walls are named."""


class MazeState(NamedTuple):
    """Where the agent is and how many moves it has made."""

    position: Cell
    steps: int


def _spaced(number: int) -> str:
    """A number with its digits apart, "1 0" for 10: each is then a token of its own."""
    return " ".join(str(number))


def describe(maze: MazeMap, position: Cell) -> str:
    """The observation: goal, position and the walls beside it, one line that ends with a newline."""
    walls = [words for action, words in WALL_WORDS.items() if maze.next_cell(position, action) == position]
    if not walls:
        walls_text = "There are no walls near you."
    elif len(walls) == 1:
        walls_text = f"There is a wall {walls[0]}."
    else:
        walls_text = f"There are walls {', '.join(walls)}."
    goal_text = f"{_spaced(maze.goal[0])}, {_spaced(maze.goal[1])}"
    position_text = f"{_spaced(position[0])}, {_spaced(position[1])}"
    return f"The goal is at position {goal_text}. Your current position is at position {position_text}. {walls_text}\n"


def draw(maze: MazeMap, position: Cell, visited: frozenset[Cell] = frozenset()) -> str:
    """The maze with text, two columns a cell, rows and columns numbered: @ agent, G goal, · visited, █ wall."""
    lines = ["   " + "".join(f"{c:<2}" for c in range(len(maze.rows[0]))).rstrip()]
    for r, row in enumerate(maze.rows):
        cells = []
        for c, mark in enumerate(row):
            if (r, c) == position:
                cells.append("@ ")
            elif (r, c) == maze.goal:
                cells.append("G ")
            elif mark == "#":
                cells.append("██")
            else:
                cells.append("· " if (r, c) in visited else "  ")
        lines.append(f"{r:>2} " + "".join(cells))
    return "\n".join(lines)


class MazeText:
    """The maze as a `TextEnv`.

    Args:
        map_: a name that `load_map` knows, or a `MazeMap`.
        horizon: moves until the game is lost.

    Raises:
        ValueError: the map or the horizon cannot be used.
    """

    def __init__(self, map_: str | MazeMap = "double_t", horizon: int = HORIZON) -> None:
        if horizon < 1:
            raise ValueError(f"A maze has a horizon of at least 1 move, not {horizon}.")
        self.maze = map_ if isinstance(map_, MazeMap) else load_map(map_)
        self.horizon = horizon
        self._position = self.maze.starts[0]
        self._steps = 0
        self._visited = frozenset({self._position})

    @property
    def task(self) -> str:
        """The rules and the goal."""
        return (
            "You walk through a maze to a goal. A position is written as row, column; rows count downwards and columns "
            "count to the right. Each move takes you to the next cell in its direction; a move into a wall leaves you "
            "where you are. Every move costs 1 point, only the move that reaches the goal costs nothing. Anything that "
            f"is not one of the four moves costs 4 points. After {self.horizon} moves the game is lost. Reach the goal "
            "in as few moves as possible."
        )

    @property
    def observation(self) -> str:
        """Goal, position and the walls beside it."""
        return describe(self.maze, self._position)

    @property
    def legal_actions(self) -> tuple[str, ...]:
        """The four moves, also those into a wall; () when the game is over."""
        return ACTIONS if self.terminal_text is None else ()

    @property
    def terminal_text(self) -> str | None:
        """How the game ended; None while it goes on."""
        if self._position == self.maze.goal:
            return REACHED_TEXT
        return RAN_OUT_TEXT if self._steps >= self.horizon else None

    @property
    def state(self) -> MazeState:
        """Position and number of moves made."""
        return MazeState(self._position, self._steps)

    def starts(self) -> tuple[MazeState, ...]:
        """All free cells but the goal, in row order."""
        return tuple(MazeState(cell, 0) for cell in self.maze.starts)

    def reset(self, rng: np.random.Generator, start: Any = None) -> str:
        """Begin from one of `starts()`, a random one when `start` is None; returns the observation.

        Raises:
            ValueError: `start` is not one of `starts()`.
        """
        starts = self.starts()
        if start is None:
            start = starts[int(rng.integers(len(starts)))]
        elif start not in starts:
            raise ValueError(f"{start!r} is no start of maze '{self.maze.name}'; take one of starts().")
        self.set_state(start)
        return self.observation

    def step(self, action: str) -> TextStep:
        """Make a move; anything that is not one of ACTIONS costs 4 and leaves the agent where it is.

        Raises:
            RuntimeError: the game is already over.
        """
        if self.terminal_text is not None:
            raise RuntimeError("The game is over; call reset() before the next move.")
        legal = action in ACTIONS
        if legal:
            self._position = self.maze.next_cell(self._position, ACTIONS.index(action))
            self._visited |= {self._position}
        self._steps += 1
        success = self._position == self.maze.goal
        truncated = not success and self._steps >= self.horizon
        reward = GOAL_REWARD if success else STEP_REWARD if legal else ILLEGAL_REWARD
        if truncated:
            reward += RAN_OUT_REWARD
        return TextStep(self.observation, reward, success, truncated, legal, success)

    def set_state(self, state: Any) -> None:
        """Continue from a state obtained earlier; the trail drawn by `render` begins there.

        Raises:
            ValueError: the state is not a free cell with a number of moves within the horizon.
        """
        position, steps = state
        if position not in self.maze.free_cells or not 0 <= steps <= self.horizon:
            raise ValueError(f"{state!r} is no state of maze '{self.maze.name}'; take one that `state` gave.")
        self._position, self._steps = position, steps
        self._visited = frozenset({position})

    def clone(self) -> MazeText:
        """An independent copy, trail included."""
        copy = MazeText(self.maze, self.horizon)
        copy._position, copy._steps, copy._visited = self._position, self._steps, self._visited
        return copy

    def render(self) -> str:
        """The maze drawn with text."""
        return draw(self.maze, self._position, self._visited)

    def describe_start(self, start: Any) -> str:
        """Row and column, "10, 7"."""
        return f"{start[0][0]}, {start[0][1]}"

    def optimal_return(self, start: Any) -> float:
        """V* of a state within its remaining moves, exactly: -(d - 1) at distance d from the goal."""
        position, steps = MazeState(*start)
        left = self.horizon - steps
        distance = self.maze.distances.get(position, left + 1)
        if distance <= 1 and distance <= left:
            return GOAL_REWARD
        return STEP_REWARD * (distance - 1) if distance <= left else STEP_REWARD * left + RAN_OUT_REWARD


class MazeEnv(gymnasium.Env[dict[str, Any], np.int64 | int]):
    """The maze with gymnasium's numeric face; `text_env` is the same game in text.

    Observation: `position` (2,) and `goal` (2,), row and column; `walls` (4,), 1 where the action of that index bumps.
    Actions: 0 left, 1 right, 2 up, 3 down; any other number is illegal, costs 4 and changes nothing.
    Info: `text` the observation in words; `action_mask` (4,) int8; `legal_actions`; after a step `illegal` and
    `is_success`. Reset options: `start`, a (row, column) to begin from.

    Args:
        map_: a name that `nlrl_envs.maze_maps.load_map` knows.
        horizon: moves until truncation, which costs 1 more (see the module).
        render_mode: None or "ansi".

    Raises:
        ValueError: the map, the horizon or the render mode cannot be used.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - gymnasium's own form

    def __init__(
        self, map_: str | MazeMap = "double_t", horizon: int = HORIZON, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"The maze is drawn with render_mode='ansi' or not at all, not '{render_mode}'.")
        self.text_env = MazeText(map_, horizon)
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(ACTIONS))
        rows, columns = len(self.text_env.maze.rows), len(self.text_env.maze.rows[0])
        cells = spaces.Box(np.zeros(2, np.int64), np.array([rows - 1, columns - 1]), dtype=np.int64)
        self.observation_space = spaces.Dict(
            {"position": cells, "goal": cells, "walls": spaces.MultiBinary(len(ACTIONS))}
        )

    def _observe(self) -> dict[str, Any]:
        maze, position = self.text_env.maze, self.text_env.state.position
        bumps = [maze.next_cell(position, action) == position for action in range(len(ACTIONS))]
        return {
            "position": np.array(position, np.int64),
            "goal": np.array(maze.goal, np.int64),
            "walls": np.array(bumps, np.int8),
        }

    def _info(self) -> dict[str, Any]:
        legal = self.text_env.legal_actions
        return {
            "text": self.text_env.observation,
            "action_mask": np.array([action in legal for action in ACTIONS], np.int8),
            "legal_actions": list(legal),
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin a game; `options={"start": (row, column)}` says where.

        Raises:
            ValueError: the start is not a free cell other than the goal.
        """
        super().reset(seed=seed)
        start = (options or {}).get("start")
        self.text_env.reset(self.np_random, None if start is None else MazeState(tuple(start), 0))
        return self._observe(), self._info()

    def step(self, action: np.int64 | int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Make a move by its number; a number outside 0..3 is an illegal move, not an error."""
        move = ACTIONS[int(action)] if 0 <= action < len(ACTIONS) else f"move {action}"
        result = self.text_env.step(move)
        info = {**self._info(), "illegal": not result.legal, "is_success": result.success}
        return self._observe(), result.reward, result.terminated, result.truncated, info

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The drawn maze with render_mode "ansi", else None."""
        return self.text_env.render() if self.render_mode == "ansi" else None
