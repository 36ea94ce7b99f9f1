"""A language model that can only do sums: it reads the `arithmetic` prompt set and answers exactly.

G1 is the mean, G2 is reward plus value, a blend of estimates is their weighted sum, I is the argmax (the first of
equals), V^L and pi_L are looked up in tables.
With it every loop of nlrl collapses to tabular reinforcement learning, so loops can be tested against exact solvers
without any model. It reads nothing but the prompt's text. With a `TableStudent` it is a model that learns.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from nlrl.engine.base import Completion, EngineInfo, Request, Sampling
from nlrl.errors import EngineError
from nlrl.types import Example, StudentName, Trained

Distribution = Mapping[str, float]
Row = TypeVar("Row")


class TableStudent:
    """A student that remembers every reply: what an `OracleEngine` says to a prompt is what was last taught for it.

    A value is the mean of the numbers taught for its prompt. A move is drawn from the replies taught for its prompt,
    each as likely as its share; I names one move, so ties are shared only where lessons differ. What is taught about a
    prompt replaces what was taught about it before (the loop's buffer decides how much of an old value set is taught
    again), and other prompts are not forgotten, as a model's weights carry over from one iteration to the next.
    """

    def __init__(self, replies: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.replies: dict[str, dict[str, float]] = {prompt: dict(said) for prompt, said in (replies or {}).items()}
        """Prompt -> reply -> weight."""

    async def learn(self, examples: Sequence[Example], *, iteration: int, student: StudentName, seed: int) -> Trained:
        """A `nlrl.learn.Student`."""
        taught: dict[str, dict[str, float]] = {}
        for example in examples:
            said = taught.setdefault(example.messages[-1][1], {})
            said[example.target] = said.get(example.target, 0.0) + example.weight
        self.replies |= taught
        tokens = sum(len(example.target.split()) for example in examples)
        return Trained(iteration, student, "", len(examples), tokens)

    def copy(self) -> TableStudent:
        """What it knows now, which later lessons do not change."""
        return TableStudent(self.replies)


class OracleEngine:
    """Answers the arithmetic prompts.

    Args:
        values: V of a state, by the observation's text without its final newline; Q of a move under that text and,
            on a line of its own, the move. Texts of several lines may not end in one another.
        policy: action probabilities of a state, by the same key; states that are missing are played uniformly.
        seed: of the policy's draws; a request that has a seed of its own is drawn with that one.
        student: what was learned, which is answered before any table is looked at.
        unknown: the value of what neither table nor student knows; None to refuse it.
        explore: share of the policy's draws that are made among all legal moves, whatever was learned.

    At temperature 0 the policy makes its likeliest move, of equals the first.
    """

    prompt_set = "arithmetic"

    def __init__(
        self,
        values: Mapping[str, float],
        policy: Mapping[str, Distribution] | None = None,
        seed: int = 0,
        *,
        student: TableStudent | None = None,
        unknown: float | None = None,
        explore: float = 0.0,
    ) -> None:
        self._student = TableStudent() if student is None else student
        self._unknown = unknown
        self._explore = explore
        self._values = values
        self._policy = policy or {}
        self._heights = sorted({key.count("\n") + 1 for key in (*values, *self._policy)}, reverse=True)
        self._rng = np.random.default_rng(seed)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One exact answer a request."""
        return [self._answer(request.messages[-1].content, request.sampling) for request in requests]

    def describe(self) -> EngineInfo:
        """The oracle's card."""
        policy = sorted((key, dict(p)) for key, p in self._policy.items())
        tables = repr((sorted(self._values.items()), policy, sorted(self._student.replies.items())))
        fingerprint = hashlib.sha256(tables.encode()).hexdigest()
        return EngineInfo("oracle", f"table of {len(self._values)} values", "cpu", fingerprint=fingerprint)

    async def close(self) -> None:
        """Nothing to free."""

    def _answer(self, prompt: str, sampling: Sampling) -> Completion:
        role, *lines = prompt.split("\n")
        match role:
            case "value":
                text = repr(float(self._value(prompt, lines[1:])))
            case "combine":
                text = repr(_reward_plus_value(lines[0]))
            case "aggregate" | "monte_carlo":
                text = repr(float(np.mean([_reward_plus_value(line) for line in lines])))
            case "blend":
                text = repr(math.fsum(_weighted(line) for line in lines))
            case "improve":
                text = _argmax(lines)
            case "policy":
                text = self._move(prompt, lines, sampling)
            case _:
                raise EngineError(
                    f"The oracle reads the prompt set 'arithmetic' only, not a prompt beginning '{role[:40]}'."
                )
        return Completion(text, prompt_tokens=len(prompt.split()), completion_tokens=len(text.split()))

    def _value(self, prompt: str, history: list[str]) -> float:
        if (learned := self._student.replies.get(prompt)) is not None:
            return sum(float(reply) * weight for reply, weight in learned.items()) / sum(learned.values())
        value = self._at_end(self._values, history)
        value = self._unknown if value is None else value
        if value is None:
            raise EngineError(f"The oracle's table has no value for the state '{history[-1][:120]}'.")
        return value

    def _at_end(self, table: Mapping[str, Row], history: list[str]) -> Row | None:
        """The entry of the observation in which a history ends, whatever its number of lines."""
        endings = ("\n".join(history[-height:]) for height in self._heights if height <= len(history))
        return next((table[ending] for ending in endings if ending in table), None)

    def _move(self, prompt: str, lines: list[str], sampling: Sampling) -> str:
        legal = dict.fromkeys((f"table: {move}" for move in lines[0].removeprefix("actions ").split(", ")), 1.0)
        listed = self._at_end(self._policy, lines[1:]) or {}
        weights = self._student.replies.get(prompt) or {f"table: {move}": w for move, w in listed.items()} or legal
        if sampling.temperature == 0:
            return max(weights, key=lambda reply: weights[reply])
        rng = self._rng if sampling.seed is None else np.random.default_rng(sampling.seed)
        if self._explore and rng.random() < self._explore:
            weights = legal
        total = sum(weights.values())
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
