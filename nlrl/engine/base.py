"""The engine protocol: what a language model has to do for nlrl, and nothing else.

An engine answers many requests at once and in order. Everything above it (which question, which prompt, what a reply
means) is not its business; retrying, rate limits and batching are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from nlrl.types import CallId


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form a reply must have, enforced by the engine's own constrained decoding where it has one.

    kind "regex": `value` is a regular expression the whole reply matches; "choice": `value` is a tuple of strings;
    "json": `value` is a JSON schema as text. The caller checks every reply again, whatever an engine promises.
    """

    kind: Literal["regex", "choice", "json"]
    value: str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int | None = None
    """Seed of this request; engines that cannot seed a request ignore it and say so in `describe()`."""
    logprobs: bool = False
    """Whether the probabilities of the drawn tokens are wanted."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question. The same request asked twice is the same question: engines may answer duplicates once."""

    messages: tuple[Message, ...]
    sampling: Sampling
    constraint: Constraint | None = None
    call: CallId | None = None
    """For the record only; it never changes the answer. What tells two samples apart is `sampling.seed`."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer, with the token ids as the engine saw them (never re-tokenised)."""

    text: str
    token_ids: tuple[int, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    finish_reason: Literal["stop", "length", "error"] = "stop"
    error: str | None = None
    """One sentence, with finish_reason "error": this request failed for good, the others did not."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[float, ...] = ()
    """Natural logarithm of the probability of each of `token_ids`, when they were asked for."""
    constrained: bool | None = None
    """Whether the engine held the reply to its constraint; False when it cannot or did not, None without one."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a run's record says about its engine."""

    kind: str
    model: str
    device: str
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """Plain sentences about limits that matter to the reader of a run ("requests cannot be seeded one by one")."""
    fingerprint: str = ""
    """Changes with whatever decides the model's answers: weights, configuration, tokenizer, chat template."""


@runtime_checkable
class Engine(Protocol):
    """Answers requests. Implementations: `nlrl.engine.{vllm,http,torch,oracle,scripted}`.

    An engine whose answers are paid for may also have `hold()`: from then on it sends nothing more and cancels what
    waits, while what is under way may end. `nlrl.recorded.RecordedEngine` calls it before a run stops.
    """

    prompt_set: str
    """The prompt set this engine's model reads: "full", "compact" or "arithmetic"."""

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in order. May be called again before it returned: answers are then batched together.

        Raises `EngineError` only when no request can be answered at all; the failure of a single request is a
        `Completion` with finish_reason "error".
        """
        ...

    def describe(self) -> EngineInfo:
        """What runs, for the record."""
        ...

    async def close(self) -> None:
        """Free what the engine holds; safe to call twice."""
        ...
