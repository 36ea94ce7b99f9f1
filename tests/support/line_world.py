"""A corridor of five cells, the goal at the right end: the smallest game the method can be tested on."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from nlrl_envs.base import TextStep


class LineWorld:
    """Cells 0..4, goal 4; "left" at cell 0 stays; -1 a step, 0 on the step that arrives; 20 steps at most."""

    task = "Walk to cell 4."

    def __init__(self, cell: int = 0, steps: int = 0) -> None:
        self.cell = cell
        self.steps = steps

    @property
    def observation(self) -> str:
        return f"You are in cell {self.cell}.\n"

    @property
    def legal_actions(self) -> tuple[str, ...]:
        return () if self.terminal_text else ("left", "right")

    @property
    def terminal_text(self) -> str | None:
        return "You are there." if self.cell == 4 else "Too late." if self.steps >= 20 else None

    @property
    def state(self) -> Hashable:
        return (self.cell, self.steps)

    def starts(self) -> tuple[Hashable, ...]:
        return tuple((cell, 0) for cell in range(4))

    def reset(self, rng: np.random.Generator, start: Hashable | None = None) -> str:
        self.set_state(self.starts()[rng.integers(4)] if start is None else start)
        return self.observation

    def step(self, action: str) -> TextStep:
        legal = action in self.legal_actions
        if legal:
            self.cell = max(0, self.cell - 1) if action == "left" else self.cell + 1
        self.steps += 1
        arrived = self.cell == 4
        reward = 0.0 if arrived else -1.0 if legal else -4.0
        return TextStep(self.observation, reward, arrived, not arrived and self.steps >= 20, legal, arrived)

    def set_state(self, state: Hashable) -> None:
        self.cell, self.steps = state  # type: ignore[misc]

    def clone(self) -> LineWorld:
        return LineWorld(self.cell, self.steps)

    def render(self) -> str:
        return "." * self.cell + "@" + "." * (4 - self.cell)

    def describe_start(self, start: Hashable) -> str:
        return str(start[0])  # type: ignore[index]
