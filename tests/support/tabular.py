"""The loops as tabular reinforcement learning: the oracle with a table that learns, and what a table plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nlrl.ask import Asker
from nlrl.engine.base import Completion, Request
from nlrl.engine.oracle import OracleEngine, TableStudent
from nlrl.learn import Students
from nlrl.operators.masked import Models
from nlrl.policy import policy_question
from nlrl.types import CallId, LoopEvent, Situation, Trained
from nlrl_envs.base import TextEnv, seat_of, seats_of
from nlrl_prompts import load


class Watched(OracleEngine):
    """The oracle; keeps the place of every question."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.places: list[CallId] = []

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.places += [r.call for r in requests if r.call is not None]
        # Give others the turn, as a model does.
        await asyncio.sleep(0)
        return await super().generate(requests)


@dataclass
class Tabular:
    """A model in every role whose policy and value are tables."""

    env: TextEnv
    unknown: float | None = 0.0
    explore: float = 0.2
    seed: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.table = TableStudent()
        self.engine = Watched(self.values, student=self.table, unknown=self.unknown, explore=self.explore)
        self.ask = Asker(self.engine, load("arithmetic", "any"), self.env.task, seed=self.seed)
        self.models = Models(self.ask, self.ask, self.ask)
        self.students = Students(self.table, self.table)

    def keep_past(self, asked: list[Trained]) -> None:
        """Let the loop play against what was learned earlier; `asked` takes down which trainings it wanted."""

        def past(trained: Trained) -> Asker:
            asked.append(trained)
            engine = Watched(self.values, student=self.table.copy(), unknown=self.unknown, explore=self.explore)
            return replace(self.ask, engine=engine)

        self.models = replace(self.models, past=past)

    def plays(self, env: TextEnv) -> str:
        """The move of the learned policy at temperature 0."""
        here = Situation((env.observation,), CallId(0, 0, "policy"), env.legal_actions, seats_of(env)[seat_of(env)])
        request = replace(self.ask, temperature=0.0)._request(policy_question(here), 0)
        (completion,) = asyncio.run(OracleEngine.generate(self.engine, [request]))
        return completion.text.split(": ", 1)[1]


def run(events: AsyncIterator[LoopEvent]) -> list[LoopEvent]:
    """Everything a loop yields."""

    async def collect() -> list[LoopEvent]:
        return [event async for event in events]

    return asyncio.run(collect())


def of(kind: type, events: Iterable[LoopEvent], iteration: int | None = None) -> list[Any]:
    """The events of one kind, of one iteration if given."""
    return [e for e in events if isinstance(e, kind) and iteration in (None, getattr(e, "iteration", None))]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)
