"""A language model that can only do sums: it reads the `arithmetic` prompt set and answers exactly.

G1 is the mean, G2 is reward plus value, a blend of estimates is their weighted sum, I is the argmax (the first of
equals), V^L and pi_L are looked up in tables.
With it every loop of nlrl collapses to tabular reinforcement learning, so loops can be tested against exact solvers
without any model. It reads nothing but the prompt's text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.errors import EngineError

Distribution = Mapping[str, float]
Row = TypeVar("Row")


class OracleEngine:
    """Answers the arithmetic prompts.

    Args:
        values: V of a state, by the observation's text without its final newline; Q of a move under that text and,
            on a line of its own, the move. Texts of several lines may not end in one another.
        policy: action probabilities of a state, by the same key; states that are missing are played uniformly.
        seed: of the policy's draws; a request that has a seed of its own is drawn with that one.
    """

    prompt_set = "arithmetic"

    def __init__(
        self, values: Mapping[str, float], policy: Mapping[str, Distribution] | None = None, seed: int = 0
    ) -> None:
        self._values = values
        self._policy = policy or {}
        self._heights = sorted({key.count("\n") + 1 for key in (*values, *self._policy)}, reverse=True)
        self._rng = np.random.default_rng(seed)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One exact answer a request."""
        return [self._answer(request.messages[-1].content, request.sampling.seed) for request in requests]

    def describe(self) -> EngineInfo:
        """The oracle's card."""
        tables = repr((sorted(self._values.items()), sorted((key, dict(p)) for key, p in self._policy.items())))
        fingerprint = hashlib.sha256(tables.encode()).hexdigest()
        return EngineInfo("oracle", f"table of {len(self._values)} values", "cpu", fingerprint=fingerprint)

    async def close(self) -> None:
        """Nothing to free."""

    def _answer(self, prompt: str, seed: int | None) -> Completion:
        role, *lines = prompt.split("\n")
        match role:
            case "value":
                text = repr(float(self._look_up(lines)))
            case "combine":
                text = repr(_reward_plus_value(lines[0]))
            case "aggregate" | "monte_carlo":
                text = repr(float(np.mean([_reward_plus_value(line) for line in lines])))
            case "blend":
                text = repr(math.fsum(_weighted(line) for line in lines))
            case "improve":
                text = _argmax(lines)
            case "policy":
                text = f"table: {self._draw(lines[1:], lines[0].removeprefix('actions ').split(', '), seed)}"
            case _:
                raise EngineError(
                    f"The oracle reads the prompt set 'arithmetic' only, not a prompt beginning '{role[:40]}'."
                )
        return Completion(text, prompt_tokens=len(prompt.split()), completion_tokens=len(text.split()))

    def _look_up(self, history: list[str]) -> float:
        value = self._at_end(self._values, history)
        if value is None:
            raise EngineError(f"The oracle's table has no value for the state '{history[-1][:120]}'.")
        return value

    def _at_end(self, table: Mapping[str, Row], history: list[str]) -> Row | None:
        """The entry of the observation in which a history ends, whatever its number of lines."""
        endings = ("\n".join(history[-height:]) for height in self._heights if height <= len(history))
        return next((table[ending] for ending in endings if ending in table), None)

    def _draw(self, history: list[str], actions: list[str], seed: int | None) -> str:
        weights = self._at_end(self._policy, history) or dict.fromkeys(actions, 1.0)
        total = sum(weights.values())
        rng = self._rng if seed is None else np.random.default_rng(seed)
        return str(rng.choice(list(weights), p=[w / total for w in weights.values()]))


def _reward_plus_value(line: str) -> float:
    """The sum in a line "reward R value V"."""
    _, reward, _, value = line.split(" ")
    return float(reward) + float(value)


def _weighted(line: str) -> float:
    """The product in a line "weight W value V"."""
    _, weight, _, value = line.split(" ")
    return float(weight) * float(value)


def _argmax(lines: Sequence[str]) -> str:
    """The best of lines "value V action A"; A may contain spaces."""
    pairs = [(float(line.split(" ", 3)[1]), line.split(" ", 3)[3]) for line in lines]
    value, action = max(pairs, key=lambda pair: pair[0])
    return f"{value!r}: {action}"
