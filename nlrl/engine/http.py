"""Any OpenAI-compatible server as an engine: `vllm serve`, `nlrl serve`, llama.cpp, a hosted service; or several.

One layer of retries, tenacity's; the SDK's own is off, because two layers multiply. Every body is read and checked
here: the SDK returns a page of HTML or a body without `choices` as if it were an answer. The number of requests in
flight follows what each server accepts: less after a 429, slowly more while all goes well.

A server to which no connection can be made has not seen the request: that costs no attempt. Another one takes its
place, and when there is none, everything waits until one answers again, or the patience of `outage_s` ends.

An engine belongs to the event loop it is first used in.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from nlrl.engine import http_faults
from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.engine.http_body import Body, Card, completion, is_sent, request_body, without
from nlrl.engine.http_faults import BodyError, LateError, explain, is_retryable, is_unreachable
from nlrl.engine.http_pace import REAL, Clock, PerMinute
from nlrl.engine.http_server import (
    HttpSettings,
    Server,
    api_key,
    checked_urls,
    choose_model,
    key_names,
    probe,
)
from nlrl.errors import ContextLengthError, EngineError, OutageError

LONGEST_PROBE_WAIT_S = 30.0


class HttpEngine:
    """Chat completions over HTTP.

    Args:
        base_url: "http://127.0.0.1:8000/v1", or several, separated by commas; "/v1" is added to one without a path.
        model: name of the model at the server; the first it lists when None.
        prompt_set: the prompt set the model reads; by default that of the backbone of the same id, else "full".
        settings: how the servers are asked.
        clock: for tests.

    The key comes from the variable that `settings` name, else from NLRL_API_KEY or OPENAI_API_KEY; it is neither kept
    outside the clients nor recorded.

    Raises:
        ConfigError: a URL or the key cannot be used.
        UnknownNameError: a vLLM server that does not serve `model`.
        EngineError: nothing answers at any of the URLs, or not as an OpenAI-compatible server.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        *,
        prompt_set: str | None = None,
        settings: HttpSettings | None = None,
        clock: Clock = REAL,
    ) -> None:
        self._settings = settings = settings or HttpSettings()
        urls, self._key = checked_urls(base_url), api_key(settings.key_variable)
        self._servers = [Server(url, self._key, settings, clock) for url in urls]
        cards = self._probe_all()
        self._model = choose_model(cards, model, urls[0])
        self._is_vllm = bool(cards) and all(card.owned_by == "vllm" for card in cards)
        self._fingerprint = _fingerprint([card for card in cards if card.id == self._model])
        self._hosted = all((urlsplit(url).hostname or "").endswith("openai.com") for url in urls)
        self.prompt_set = prompt_set or _prompt_set_of(self._model)
        self._clock = clock
        limits = (settings.requests_per_minute, settings.tokens_per_minute)
        self._requests, self._tokens = (None if most is None else PerMinute(most, clock) for most in limits)
        self._ignored = 0
        self._held = False
        self._up = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in order; what one request fails with does not touch the others.

        Raises:
            ContextLengthError: the server says that a prompt and its reply do not fit.
            OutageError: no server could be reached for `outage_s` seconds.
            EngineError: the server refuses the key or the model.
        """
        tasks = [asyncio.create_task(self._answer(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            # A refused key refuses all: the others need not be asked, and none may go on behind the caller's back.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    def hold(self) -> None:
        """Send nothing more: what is under way may end, what waits is cancelled."""
        self._held = True
        self._up.set()

    def describe(self) -> EngineInfo:
        """What runs, for the record; never the key."""
        notes = ["What samples, and whether it is seeded request by request, is the server's business."]
        if not self._is_vllm:
            notes.append("This server is not vLLM: only JSON replies are constrained, others are checked alone.")
        if self._ignored:
            notes.append(f"Replies that ignored the constraint they were asked under: {self._ignored}.")
        urls = ", ".join(server.url for server in self._servers)
        return EngineInfo("http", self._model, urls, {"openai": version("openai")}, tuple(notes), self._fingerprint)

    async def close(self) -> None:
        """Close the connections; safe to call twice."""
        self.hold()
        if self._watch is not None:
            self._watch.cancel()
        for server in self._servers:
            await server.close()

    async def _answer(self, request: Request) -> Completion:
        """The answer; a typed failure when there was none after the last attempt."""
        tried: list[Server] = []
        body = request_body(request, self._model, is_vllm=self._is_vllm, hosted=self._hosted)
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self._settings.attempts),
                wait=self._wait_before_retry,
                retry=retry_if_exception(is_retryable),
                reraise=True,
                sleep=self._clock.sleep,
            ):
                with attempt:
                    return self._completion(request, await self._post(request, body, tried))
        except openai.AuthenticationError:
            names = key_names(self._settings.key_variable)
            raise EngineError(f"{self._servers[0].url} refuses the key (401); set {names} to a valid one.") from None
        except (openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise EngineError(f"{self._servers[0].url} refuses model '{self._model}': {self._say(error)}") from None
        except openai.BadRequestError as error:
            if "context length" in str(error).lower() or "max_model_len" in str(error):
                raise ContextLengthError(f"A prompt and its reply do not fit: {self._say(error)}") from None
            return Completion("", finish_reason="error", error=self._say(error))
        except (openai.OpenAIError, BodyError, LateError) as error:
            return Completion("", finish_reason="error", error=self._say(error))
        raise AssertionError("tenacity ends an attempt by a return or an exception")

    async def _post(self, request: Request, body: Mapping[str, Any], tried: list[Server]) -> Body:
        """Send a request to whichever server can be reached; `tried` lists those that had it before."""
        unreachable_since: float | None = None
        while True:
            server = await self._reachable(tried)
            async with server.pace.slot():
                taken = await self._permission(request)
                self._check_held()
                if not server.is_up:
                    continue
                tried.append(server)
                try:
                    answer = await server.post(body)
                except openai.APIConnectionError as error:
                    if not is_unreachable(error):
                        raise
                    now = self._clock.now()
                    unreachable_since = now if unreachable_since is None else unreachable_since
                    if now - unreachable_since > self._settings.outage_s:
                        raise self._outage() from None
                    self._mark_down(server)
                    continue
                if taken is not None:
                    taken.amount = answer.tokens or taken.amount
                return answer

    async def _permission(self, request: Request) -> Any:
        """Wait for the limits a minute; returns what was taken of the tokens."""
        if self._requests is not None:
            await self._requests.take(1)
        if self._tokens is None:
            return None
        return await self._tokens.take(sum(len(m.content) for m in request.messages) / 3 + request.sampling.max_tokens)

    async def _reachable(self, tried: Sequence[Server]) -> Server:
        """Of the servers that are up and were tried least, the least busy; waits while there is none."""
        while True:
            self._check_held()
            if self._watch is None and not all(server.is_up for server in self._servers):
                self._watch = asyncio.create_task(self._watch_servers())
            if up := [server for server in self._servers if server.is_up]:
                return min(up, key=lambda server: (tried.count(server), server.pace.waiting))
            if self._watch is not None and self._watch.done():
                raise self._outage()
            await self._up.wait()

    def _mark_down(self, server: Server) -> None:
        server.is_up = False
        self._up.clear()
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_servers())

    async def _watch_servers(self) -> None:
        """Look after the servers that are down, ever less often, until all are up or patience ends."""
        wait, since = 0.5, self._clock.now()
        while down := [server for server in self._servers if not server.is_up]:
            await self._clock.sleep(wait)
            wait = min(2 * wait, LONGEST_PROBE_WAIT_S)
            for server in down:
                server.is_up = await server.answers()
            if any(server.is_up for server in self._servers):
                since = self._clock.now()
                self._up.set()
            elif self._clock.now() - since >= self._settings.outage_s:
                break
        # Those who wait find this task done and no server up; a turn later, so that `done` is true for them.
        asyncio.get_running_loop().call_soon(self._up.set)

    def _outage(self) -> OutageError:
        urls = " or ".join(server.url for server in self._servers)
        return OutageError(
            f"No server could be reached at {urls} for {self._settings.outage_s:g} s; resume the run when one answers."
        )

    def _check_held(self) -> None:
        if self._held:
            raise asyncio.CancelledError

    def _wait_before_retry(self, state: RetryCallState) -> float:
        """Another server need not be waited for."""
        elsewhere = sum(server.is_up for server in self._servers) > 1
        return 0.0 if elsewhere and state.attempt_number < len(self._servers) else http_faults.wait_before_retry(state)

    def _completion(self, request: Request, body: Body) -> Completion:
        answer = completion(request, body, is_vllm=self._is_vllm, key=self._key)
        if request.constraint is not None and is_sent(request.constraint, self._is_vllm):
            self._ignored += answer.constrained is False
        return answer

    def _say(self, error: Exception) -> str:
        """One sentence about an error; a server that repeats the key is not repeated."""
        return without(self._key, explain(error))

    def _probe_all(self) -> list[Card]:
        """The models of the first server that answers; those that do not are down."""
        cards: list[Card] | None = None
        missing: ConnectionError | None = None
        for server in self._servers:
            try:
                found = probe(server.url, self._key, self._settings.key_variable)
                cards = found if cards is None else cards
            except ConnectionError as error:
                server.is_up, missing = False, error
        if cards is None:
            raise EngineError(str(missing)) from None
        return cards


def _fingerprint(cards: Sequence[Card]) -> str:
    """Of what a server says about its model; what it does not say cannot be noticed."""
    said = repr([(card.id, card.owned_by, card.root, card.max_model_len) for card in cards])
    return hashlib.sha256(said.encode()).hexdigest()


def _prompt_set_of(model: str) -> str:
    from nlrl_backbones import BACKBONES

    backbone = BACKBONES.get(model)
    return backbone.prompts if backbone is not None and backbone.prompts else "full"
