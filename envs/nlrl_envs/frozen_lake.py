"""FrozenLake: gymnasium's own game underneath, in the notation of arXiv 2411.14251 (May 2025 version).

The board is drawn with P player, _ ice, O hole, G goal, X player in a hole, √ player on the goal; moves are Left, Down,
Right, Up. Reaching the goal is worth 1, everything else nothing. On slippery ice a move goes where it should, or to
either side of that, with one chance in three each.

`random` are the paper's maps: each cell is ice with probability 0.8, start and goal are drawn, and a map without a way
is drawn again; a game has 10 moves. The other maps are gymnasium's, with its horizons of 100 and 200 moves.

Where we differ from gymnasium: the horizon belongs to the game (its `TimeLimit` is a wrapper), and anything that is no
move costs 1 point and a move.
"""

from __future__ import annotations

import re
from collections import deque
from copy import copy
from functools import lru_cache
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.toy_text.frozen_lake import MAPS
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv as GymnasiumLake

from nlrl_envs.base import TextStep

ACTIONS = ("Left", "Down", "Right", "Up")
"""In gymnasium's numbering."""
STEPS = ((0, -1), (1, 0), (0, 1), (-1, 0))
ILLEGAL_REWARD = -1.0
HORIZONS = {"4x4": 100, "8x8": 200}
RANDOM_HORIZON = 10
ICE = 0.8
POOL = 512
"""Maps of `random`."""

REACHED_TEXT = "The goal is reached."
FELL_TEXT = "The player fell into a hole."
RAN_OUT_TEXT = "The moves are used up and the goal is not reached."

Rows = tuple[str, ...]
"""A map in gymnasium's letters: S start, F ice, H hole, G goal."""


class FrozenLakeState(NamedTuple):
    """Which map, where the player is (row times columns plus column), and how many moves were made."""

    map: int
    position: int
    steps: int


@lru_cache(maxsize=4 * POOL)
def random_map(seed: int, rows: int = 4, columns: int = 4) -> Rows:
    """A map with a way from its start to its goal; the same for a seed for ever."""
    rng = np.random.default_rng((seed, rows, columns))
    while True:
        letters = np.where(rng.random(rows * columns) < ICE, "F", "H")
        start, goal = rng.choice(rows * columns, 2, replace=False)
        letters[[start, goal]] = "S", "G"
        found = tuple("".join(row) for row in letters.reshape(rows, columns))
        if distances(found)[start] < np.inf:
            return found


def distances(rows: Rows) -> np.ndarray:
    """Moves to the goal on ice that does not slip, around the holes, (squares,); infinite where there is no way."""
    columns, flat = len(rows[0]), "".join(rows)
    found = np.full(len(flat), np.inf)
    found[flat.index("G")] = 0
    queue = deque([flat.index("G")])
    while queue:
        here = queue.popleft()
        for down, right in STEPS:
            row, column = here // columns + down, here % columns + right
            there = row * columns + column
            inside = 0 <= row < len(rows) and 0 <= column < columns
            if inside and flat[there] != "H" and found[there] == np.inf:
                found[there] = found[here] + 1
                queue.append(there)
    return found


@lru_cache(maxsize=4 * POOL)
def lake_of(rows: Rows, slippery: bool) -> GymnasiumLake:
    """Gymnasium's game on a map; to be copied, not played: its transitions are shared."""
    return GymnasiumLake(desc=list(rows), is_slippery=slippery)


def maps_of(name: str) -> tuple[Rows, ...]:
    """The maps a name stands for.

    Raises:
        ValueError: there is no such map; the message lists what there is.
    """
    if name in MAPS:
        return (tuple(MAPS[name]),)
    found = re.fullmatch(r"random(?::(\d{1,9}))?(?::([2-9])x([2-9]))?", name)
    if not found:
        known = ", ".join(MAPS)
        raise ValueError(
            f"Unknown map '{name}'; known: {known}, random ({POOL} maps), random:SEED, random:SEED:ROWSxCOLUMNS."
        )
    size = (int(found[2] or 4), int(found[3] or 4))
    seeds = range(POOL) if found[1] is None else (int(found[1]),)
    return tuple(random_map(seed, *size) for seed in seeds)


class FrozenLakeText:
    """FrozenLake as a `TextEnv`.

    Args:
        map_: a name that `maps_of` knows. With `random`, `reset` draws one of its maps.
        slippery: whether moves go astray.
        horizon: moves until the game is lost; None for the map's own.

    Raises:
        ValueError: there is no such map, or the horizon is below 1.
    """

    def __init__(self, map_: str = "4x4", slippery: bool = True, horizon: int | None = None) -> None:
        self.maps = maps_of(map_)
        self.slippery = slippery
        self.horizon = HORIZONS.get(map_, RANDOM_HORIZON) if horizon is None else horizon
        if self.horizon < 1:
            raise ValueError(f"A lake has a horizon of at least 1 move, not {horizon}.")
        self.chance = np.random.default_rng(0)
        """What the ice draws its slips from; seeded by `reset`, another one in each copy."""
        self.set_state(self.starts()[0])

    @property
    def task(self) -> str:
        """The rules and the goal."""
        slip = (
            " The ice is slippery: a move goes in its direction or to either side of it, each with one chance in three."
            if self.slippery
            else ""
        )
        return (
            "You cross a frozen lake. P is you, _ is ice, O is a hole, G is the goal, X is you in a hole, √ is you on "
            "the goal. Each move, Left, Down, Right or Up, takes you one square; at the edge you stay where you are."
            f"{slip} Reaching the goal is worth 1 point; "
            f"in a hole the game is lost, and after {self.horizon} moves as well. Anything that is not one of the four "
            "moves costs 1 point and a move. Reach the goal."
        )

    @property
    def observation(self) -> str:
        """The map with the player on it, one line a row."""
        return self.render() + "\n"

    @property
    def legal_actions(self) -> tuple[str, ...]:
        """The four moves; () when the game is over."""
        return ACTIONS if self.terminal_text is None else ()

    @property
    def terminal_text(self) -> str | None:
        """How the game ended; None while it goes on."""
        letter = self._letter()
        if letter in "GH":
            return REACHED_TEXT if letter == "G" else FELL_TEXT
        return RAN_OUT_TEXT if self._state.steps >= self.horizon else None

    @property
    def state(self) -> FrozenLakeState:
        """Map, position and number of moves made."""
        return self._state

    @property
    def rows(self) -> Rows:
        """The map that is played."""
        return self.maps[self._state.map]

    def starts(self) -> tuple[FrozenLakeState, ...]:
        """The start of each map."""
        return tuple(FrozenLakeState(m, "".join(rows).index("S"), 0) for m, rows in enumerate(self.maps))

    def reset(self, rng: np.random.Generator, start: Any = None) -> str:
        """Begin a game on a map drawn from `rng`, or from a state; returns the observation.

        Raises:
            ValueError: `start` is no state of this game, or the game is over there.
        """
        self.chance = np.random.default_rng(int(rng.integers(2**63)))
        starts = self.starts()
        self.set_state(starts[int(self.chance.integers(len(starts)))] if start is None else start)
        if self.terminal_text is not None:
            raise ValueError(f"The game is over at {self.describe_start(start)}; start where it still goes on.")
        return self.observation

    def step(self, action: str) -> TextStep:
        """Make a move; anything that is not one of ACTIONS costs 1 and leaves the player where it is.

        Raises:
            RuntimeError: the game is already over.
        """
        if self.terminal_text is not None:
            raise RuntimeError("The game is over; call reset() before the next move.")
        map_, position, steps = self._state
        legal, reward = action in ACTIONS, ILLEGAL_REWARD
        if legal:
            lake = copy(lake_of(self.rows, self.slippery))
            lake.s, lake.np_random = position, self.chance
            position, reward, *_ = lake.step(ACTIONS.index(action))
        self._state = FrozenLakeState(map_, int(position), steps + 1)
        letter = self._letter()
        truncated = letter not in "GH" and steps + 1 >= self.horizon
        return TextStep(self.observation, float(reward), letter in "GH", truncated, legal, letter == "G")

    def set_state(self, state: Any) -> None:
        """Continue from a state obtained earlier.

        Raises:
            ValueError: it is no state of this game.
        """
        refusal = f"{state!r} is no state of this lake; take one that `state` gave."
        try:
            map_, position, steps = state
            rows = self.maps[map_]
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(refusal) from error
        if map_ < 0 or not 0 <= position < len(rows) * len(rows[0]) or not 0 <= steps <= self.horizon:
            raise ValueError(refusal)
        self._state = FrozenLakeState(map_, position, steps)

    def clone(self) -> FrozenLakeText:
        """An independent copy with luck of its own."""
        twin = copy(self)
        twin.chance = self.chance.spawn(1)[0]
        return twin

    def render(self) -> str:
        """The map with the player on it."""
        columns = len(self.rows[0])
        marks = list("".join(self.rows).replace("S", "_").replace("F", "_").replace("H", "O"))
        marks[self._state.position] = {"G": "√", "H": "X"}.get(self._letter(), "P")
        return "\n".join(" ".join(marks[i : i + columns]) for i in range(0, len(marks), columns))

    def describe_start(self, start: Any) -> str:
        """Row and column, "2, 0", and the number of the map where there are several."""
        row, column = divmod(start[1], len(self.maps[start[0]][0]))
        return f"{row}, {column}" if len(self.maps) == 1 else f"map {start[0]} at {row}, {column}"

    def _letter(self) -> str:
        row, column = divmod(self._state.position, len(self.rows[0]))
        return self.rows[row][column]


class FrozenLakeEnv(gymnasium.Env[np.ndarray, np.int64 | int]):
    """FrozenLake with gymnasium's numeric face and the map in sight; `text_env` is the same game in text.

    Observation: (rows, columns, 3) int8, planes of player, holes, goal. Actions as gymnasium's; any other number is
    illegal, costs 1 and a move. Info: `text`, `action_mask` (4,) int8, `legal_actions`; after a step `illegal` and
    `is_success`. Reset options: `start`, a `FrozenLakeState`.

    Args:
        map_: see `FrozenLakeText`.
        slippery: whether moves go astray.
        horizon: moves until truncation; None for the map's own.
        render_mode: None or "ansi".

    Raises:
        ValueError: the map, the horizon or the render mode cannot be used.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 - gymnasium's own form

    def __init__(
        self, map_: str = "4x4", slippery: bool = True, horizon: int | None = None, render_mode: str | None = None
    ) -> None:
        if render_mode not in (None, "ansi"):
            raise ValueError(f"The lake is drawn with render_mode='ansi' or not at all, not '{render_mode}'.")
        self.text_env = FrozenLakeText(map_, slippery, horizon)
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(ACTIONS))
        shape = (len(self.text_env.rows), len(self.text_env.rows[0]), 3)
        self.observation_space = spaces.Box(0, 1, shape, np.int8)

    def _observe(self) -> np.ndarray:
        rows = np.array([list(row) for row in self.text_env.rows])
        player = np.arange(rows.size).reshape(rows.shape) == self.text_env.state.position
        return np.stack([player, rows == "H", rows == "G"], axis=-1).astype(np.int8)

    def _info(self) -> dict[str, Any]:
        legal = self.text_env.legal_actions
        return {
            "text": self.text_env.observation,
            "action_mask": np.array([action in legal for action in ACTIONS], np.int8),
            "legal_actions": list(legal),
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a game; `options={"start": state}` says where.

        Raises:
            ValueError: the start is no state of this lake, or the game is over there.
        """
        super().reset(seed=seed)
        self.text_env.reset(self.np_random, (options or {}).get("start"))
        return self._observe(), self._info()

    def step(self, action: np.int64 | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Make a move by its number; a number outside 0..3 is an illegal move, not an error."""
        result = self.text_env.step(ACTIONS[int(action)] if 0 <= action < len(ACTIONS) else "")
        info = {**self._info(), "illegal": not result.legal, "is_success": result.success}
        return self._observe(), result.reward, result.terminated, result.truncated, info

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The drawn map with render_mode "ansi", else None."""
        return self.text_env.render() if self.render_mode == "ansi" else None
