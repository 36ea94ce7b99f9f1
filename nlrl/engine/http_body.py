"""The bodies that go to and come from an OpenAI-compatible server; every one that comes is checked."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from nlrl.engine.base import Completion, Constraint, Request
from nlrl.engine.check import obeys
from nlrl.engine.http_faults import BodyError


class _Message(BaseModel):
    content: str | None = None


class _Token(BaseModel):
    logprob: float


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(default=0, ge=0, lt=1 << 40)
    completion_tokens: int = Field(default=0, ge=0, lt=1 << 40)


class Body(BaseModel):
    """The part of a chat completion that is used; unknown fields are ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None

    @property
    def tokens(self) -> int:
        """Read and written, as far as the server says."""
        usage = self.usage or _Usage()
        return usage.prompt_tokens + usage.completion_tokens


class Card(BaseModel):
    """A model that a server lists."""

    id: str
    owned_by: str = ""
    root: str | None = None
    max_model_len: int | None = None


class Cards(BaseModel):
    """The list of models."""

    data: list[Card]


def parse(content: bytes, shape: type[Any]) -> Any:
    """`content` as `shape`; raises `BodyError` with one sentence."""
    try:
        return shape.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise BodyError(f"The server's answer has the wrong shape ({where}: {first['msg']}).") from None
    except (ValueError, RecursionError):
        raise BodyError("The server's answer is not JSON.") from None


def request_body(request: Request, model: str, *, is_vllm: bool, hosted: bool) -> dict[str, Any]:
    """The arguments of `chat.completions.create`.

    `hosted` is OpenAI's own service, whose newer models refuse `max_tokens`; many other servers know nothing else.
    """
    sampling, constraint = request.sampling, request.constraint
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": message.role, "content": message.content} for message in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_completion_tokens" if hosted else "max_tokens": sampling.max_tokens,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.logprobs:
        body["logprobs"] = True
    if is_vllm:
        body["extra_body"] = {"return_token_ids": True, **_structured_outputs(constraint)}
    elif constraint is not None and constraint.kind == "json":
        schema = {"name": "reply", "schema": json.loads(str(constraint.value)), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def is_sent(constraint: Constraint, is_vllm: bool) -> bool:
    """Whether `request_body` asks the server to hold the reply to the constraint."""
    return is_vllm or constraint.kind == "json"


def completion(request: Request, body: Body, *, is_vllm: bool, key: str) -> Completion:
    """The answer in a body. A server that repeats the key is not repeated."""
    choice, usage = body.choices[0], body.usage or _Usage()
    ids, prompt_ids = tuple(choice.token_ids or ()), tuple(body.prompt_token_ids or ())
    text = choice.message.content or ""
    finish: Literal["stop", "length", "error"] = "stop"
    error = constrained = None
    if choice.finish_reason == "length":
        finish = "length"
    elif choice.finish_reason != "stop":
        finish, error = "error", f"The server ended the reply for the reason '{choice.finish_reason[:40]}'."
    if request.constraint is not None and finish == "stop":
        constrained = is_sent(request.constraint, is_vllm) and obeys(text, request.constraint)
    drawn = (choice.logprobs.content if choice.logprobs else None) or []
    return Completion(
        text=without(key, text),
        token_ids=ids,
        prompt_token_ids=prompt_ids,
        finish_reason=finish,
        error=None if error is None else without(key, error),
        prompt_tokens=usage.prompt_tokens or len(prompt_ids),
        completion_tokens=usage.completion_tokens or len(ids),
        logprobs=tuple(token.logprob for token in drawn),
        constrained=constrained,
    )


def without(key: str, text: str) -> str:
    """`text` without the key; a short stand-in for a key is nobody's secret."""
    return text.replace(key, "[key]") if len(key) >= 8 else text


def _structured_outputs(constraint: Constraint | None) -> dict[str, Any]:
    if constraint is None:
        return {}
    if constraint.kind == "json":
        return {"structured_outputs": {"json": constraint.value, "disable_any_whitespace": True}}
    value = constraint.value if constraint.kind == "regex" else list(constraint.value)
    return {"structured_outputs": {constraint.kind: value}}
