"""A language model that can only do sums: it reads the `arithmetic` prompt set and answers exactly.

G1 is the mean, G2 is reward plus value, I is the argmax (the first of equals), V^L and pi_L are looked up in tables.
With it every loop of nlrl collapses to tabular reinforcement learning, so loops can be tested against exact solvers
without any model. It reads nothing but the prompt's text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.errors import EngineError

Distribution = Mapping[str, float]


class OracleEngine:
    """Answers the arithmetic prompts.

    Args:
        values: V of a state, by the observation's text without its final newline.
        policy: action probabilities of a state, by the same key; states that are missing are played uniformly.
        seed: of the policy's draws; a request that has a seed of its own is drawn with that one.
    """

    prompt_set = "arithmetic"

    def __init__(
        self, values: Mapping[str, float], policy: Mapping[str, Distribution] | None = None, seed: int = 0
    ) -> None:
        self._values = values
        self._policy = policy or {}
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
                text = repr(float(self._look_up(lines[-1])))
            case "combine":
                text = repr(_reward_plus_value(lines[0]))
            case "aggregate":
                text = repr(float(np.mean([_reward_plus_value(line) for line in lines])))
            case "improve":
                text = _argmax(lines)
            case "policy":
                text = f"table: {self._draw(lines[-1], lines[0].removeprefix('actions ').split(', '), seed)}"
            case _:
                raise EngineError(
                    f"The oracle reads the prompt set 'arithmetic' only, not a prompt beginning '{role[:40]}'."
                )
        return Completion(text, prompt_tokens=len(prompt.split()), completion_tokens=len(text.split()))

    def _look_up(self, observation: str) -> float:
        if observation not in self._values:
            raise EngineError(f"The oracle's table has no value for the state '{observation[:120]}'.")
        return self._values[observation]

    def _draw(self, observation: str, actions: list[str], seed: int | None) -> str:
        weights = self._policy.get(observation) or dict.fromkeys(actions, 1.0)
        total = sum(weights.values())
        rng = self._rng if seed is None else np.random.default_rng(seed)
        return str(rng.choice(list(weights), p=[w / total for w in weights.values()]))


def _reward_plus_value(line: str) -> float:
    """The sum in a line "reward R value V"."""
    _, reward, _, value = line.split(" ")
    return float(reward) + float(value)


def _argmax(lines: Sequence[str]) -> str:
    """The best of lines "value V action A"; A may contain spaces."""
    pairs = [(float(line.split(" ", 3)[1]), line.split(" ", 3)[3]) for line in lines]
    value, action = max(pairs, key=lambda pair: pair[0])
    return f"{value!r}: {action}"
