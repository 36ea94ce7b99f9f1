"""Any OpenAI-compatible server as an engine: `vllm serve`, `nlrl serve`, llama.cpp, a hosted service.

One layer of retries, tenacity's; the SDK's own is off, because two layers multiply. Every body is read and checked
here: the SDK returns a page of HTML or a body without `choices` as if it were an answer. The number of requests in
flight follows what the server accepts: less after a 429, slowly more while all goes well.

An engine belongs to the event loop it is first used in.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import anyio
import openai
from pydantic import BaseModel, Field, ValidationError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

from nlrl.engine.base import Completion, Constraint, EngineInfo, Request
from nlrl.engine.check import obeys
from nlrl.engine.http_faults import BodyError, Pace, explain, is_outage, is_retryable, wait_before_retry
from nlrl.errors import ConfigError, ContextLengthError, EngineError, UnknownNameError

PROBE_TIMEOUT_S = 5.0
KEY_VARIABLES = ("NLRL_API_KEY", "OPENAI_API_KEY")


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str
    token_ids: list[int] | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Body(BaseModel):
    """The part of a chat completion that is used; unknown fields are ignored."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
    prompt_token_ids: list[int] | None = None


class _Card(BaseModel):
    id: str
    owned_by: str = ""


class _Cards(BaseModel):
    data: list[_Card]


class HttpEngine:
    """Chat completions over HTTP.

    Args:
        base_url: "http://127.0.0.1:8000/v1"; "/v1" is added when the URL has no path.
        model: name of the model at the server; the first it lists when None.
        prompt_set: the prompt set the model reads; by default that of the backbone of the same id, else "default".
        concurrency: most requests in flight at once.
        attempts: how often one request is sent at most.
        timeout_s: seconds to wait for one answer.

    The key comes from the variable NLRL_API_KEY or OPENAI_API_KEY; it is neither kept outside the client nor recorded.

    Raises:
        ConfigError: the URL or the key cannot be used.
        UnknownNameError: a vLLM server that does not serve `model`.
        EngineError: nothing answers at the URL, or not as an OpenAI-compatible server.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        prompt_set: str | None = None,
        concurrency: int = 64,
        attempts: int = 6,
        timeout_s: float = 300.0,
    ) -> None:
        self._url = _checked_url(base_url)
        key = _api_key()
        cards = _probe(self._url, key)
        self._model = _choose_model(cards, model, self._url)
        self._is_vllm = any(card.owned_by == "vllm" for card in cards)
        self.prompt_set = prompt_set or _prompt_set_of(self._model)
        self._attempts = attempts
        self._pace = Pace(concurrency)
        timeout = openai.Timeout(timeout_s, connect=10.0)
        self._client = openai.AsyncOpenAI(base_url=self._url, api_key=key, max_retries=0, timeout=timeout)
        self._ignored = 0

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in order; what one request fails with does not touch the others.

        Raises:
            ContextLengthError: the server says that a prompt and its reply do not fit.
            EngineError: the server refuses the key or the model, or could not be reached by any of the requests.
        """
        tasks = [asyncio.create_task(self._answer(request)) for request in requests]
        try:
            outcomes = await asyncio.gather(*tasks)
        except BaseException:
            # A refused key refuses all: the others need not be asked, and none may go on behind the caller's back.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        faults = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if faults and len(faults) == len(outcomes) and all(map(is_outage, faults)):
            raise EngineError(
                f"{explain(faults[0])} Gave up on {self._url} after {self._attempts} attempts each."
            ) from None
        return [
            Completion("", finish_reason="error", error=self._say(outcome))
            if isinstance(outcome, Exception)
            else outcome
            for outcome in outcomes
        ]

    def describe(self) -> EngineInfo:
        """What runs, for the record; never the key."""
        notes = ["What samples, and whether it is seeded request by request, is the server's business."]
        if not self._is_vllm:
            notes.append("This server is not vLLM: only JSON replies are constrained, others are checked alone.")
        if self._ignored:
            notes.append(f"{self._ignored} replies ignored the constraint they were asked under.")
        versions = {"openai": version("openai")}
        return EngineInfo("http", self._model, self._url, versions, tuple(notes))

    async def close(self) -> None:
        """Close the connections; safe to call twice."""
        await self._client.close()

    async def _answer(self, request: Request) -> Completion | Exception:
        """The answer, or the exception that remained after the last attempt."""
        body = self._body(request)
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self._attempts),
                wait=wait_before_retry,
                retry=retry_if_exception(is_retryable),
                reraise=True,
                sleep=anyio.sleep,
            ):
                with attempt:
                    return self._completion(request, await self._post(body))
        except openai.AuthenticationError:
            names = " or ".join(KEY_VARIABLES)
            raise EngineError(f"{self._url} refuses the key (401); set {names} to a valid one.") from None
        except (openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise EngineError(f"{self._url} refuses model '{self._model}': {self._say(error)}") from None
        except openai.BadRequestError as error:
            if "context length" in str(error).lower() or "max_model_len" in str(error):
                raise ContextLengthError(f"A prompt and its reply do not fit: {self._say(error)}") from None
            return error
        except (openai.OpenAIError, BodyError) as error:
            return error
        raise AssertionError("tenacity ends an attempt by a return or an exception")

    def _say(self, error: Exception) -> str:
        """One sentence about an error; a server that repeats the key is not repeated."""
        key = self._client.api_key
        return explain(error).replace(key, "[key]") if len(key) >= 8 else explain(error)

    async def _post(self, body: Mapping[str, Any]) -> _Body:
        async with self._pace.slot():
            try:
                reply = await self._client.chat.completions.with_raw_response.create(**body)
                content = reply.http_response.content
            except openai.RateLimitError:
                self._pace.slow_down()
                raise
            parsed = _parse(content, _Body)
            self._pace.speed_up()
            return parsed

    def _body(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        # OpenAI's own newer models refuse `max_tokens`; many other servers know nothing else.
        hosted = (urlsplit(self._url).hostname or "").endswith("openai.com")
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_completion_tokens" if hosted else "max_tokens": sampling.max_tokens,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if self._is_vllm:
            body["extra_body"] = {"return_token_ids": True, **_structured_outputs(request.constraint)}
        elif request.constraint is not None and request.constraint.kind == "json":
            schema = {"name": "reply", "schema": json.loads(str(request.constraint.value)), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _completion(self, request: Request, body: _Body) -> Completion:
        choice, usage = body.choices[0], body.usage or _Usage()
        text, ids, prompt_ids = choice.message.content or "", choice.token_ids or (), body.prompt_token_ids or ()
        finish: Literal["stop", "length", "error"] = "stop"
        error = None
        if choice.finish_reason == "length":
            finish = "length"
        elif choice.finish_reason != "stop":
            finish, error = "error", f"The server ended the reply for the reason '{choice.finish_reason[:40]}'."
        if finish == "stop" and request.constraint is not None and not obeys(text, request.constraint):
            self._ignored += 1
        return Completion(
            text=text,
            token_ids=tuple(ids),
            prompt_token_ids=tuple(prompt_ids),
            finish_reason=finish,
            error=error,
            prompt_tokens=usage.prompt_tokens or len(prompt_ids),
            completion_tokens=usage.completion_tokens or len(ids),
        )


def _parse(content: bytes, shape: type[Any]) -> Any:
    try:
        return shape.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise BodyError(f"The server's answer has the wrong shape ({where}: {first['msg']}).") from None
    except (ValueError, RecursionError):
        raise BodyError("The server's answer is not JSON.") from None


def _structured_outputs(constraint: Constraint | None) -> dict[str, Any]:
    if constraint is None:
        return {}
    if constraint.kind == "json":
        return {"structured_outputs": {"json": constraint.value, "disable_any_whitespace": True}}
    value = constraint.value if constraint.kind == "regex" else list(constraint.value)
    return {"structured_outputs": {constraint.kind: value}}


def _checked_url(base_url: str) -> str:
    try:
        parts = urlsplit(base_url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, usable = urlsplit(""), False
    if not usable:
        raise ConfigError("The base URL cannot be used; write it like http://127.0.0.1:8000/v1.")
    if parts.username or parts.password:
        raise ConfigError(f"Leave the password out of the base URL and set {KEY_VARIABLES[0]} instead.")
    path = parts.path.rstrip("/") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def _api_key() -> str:
    """The key from the environment; a stand-in when there is none, for local servers ask for none."""
    for name in KEY_VARIABLES:
        key = os.environ.get(name, "").strip()
        if key:
            # A key with a stray character would end up in clear in the HTTP library's complaint about the header.
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(f"The key in {name} holds characters that a key cannot have; set it again.")
            return key
    return "none"


def _probe(url: str, key: str) -> list[_Card]:
    """The models that the server lists; [] when it answers but keeps no list."""
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PROBE_TIMEOUT_S)
    try:
        return _parse(client.models.with_raw_response.list().http_response.content, _Cards).data
    except openai.APIConnectionError:
        raise EngineError(
            f"No server answers at {url}; start one with 'nlrl serve' or 'vllm serve', or check --base-url."
        ) from None
    except openai.AuthenticationError:
        raise EngineError(f"{url} asks for a key; set {' or '.join(KEY_VARIABLES)} to a valid one.") from None
    except (openai.NotFoundError, openai.PermissionDeniedError):
        return []
    except openai.APIStatusError as error:
        raise EngineError(f"The server at {url} is not ready: {explain(error)}") from None
    except BodyError as error:
        raise EngineError(f"{url} is no OpenAI-compatible server: {error} Check --base-url.") from None
    finally:
        client.close()


def _choose_model(cards: Sequence[_Card], model: str | None, url: str) -> str:
    if model is None:
        if not cards:
            raise EngineError(f"The server at {url} lists no models; name one.")
        return cards[0].id
    # Hosted services do not list everything they serve; vLLM does.
    if cards and all(card.owned_by == "vllm" for card in cards) and model not in {card.id for card in cards}:
        raise UnknownNameError(f"model at {url}", model, (card.id for card in cards))
    return model


def _prompt_set_of(model: str) -> str:
    from nlrl_backbones import BACKBONES

    backbone = BACKBONES.get(model)
    return backbone.prompts if backbone is not None and backbone.prompts else "default"
