"""What can go wrong between a client and a server: what is worth asking again, when, and how fast to go on."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import anyio
import openai
from tenacity import RetryCallState, wait_exception, wait_exponential_jitter

RETRIED_STATUS = frozenset({408, 409, 429})
LONGEST_WAIT_S = 600.0
"""A server that asks for more than this is treated as one that says no."""


class BodyError(Exception):
    """A success status with a body that is no chat completion; one sentence."""


def is_retryable(error: BaseException) -> bool:
    """Whether the same request may succeed later: overload, server faults, lost connections, garbled bodies."""
    if isinstance(error, openai.APIStatusError):
        passing = error.status_code in RETRIED_STATUS or error.status_code >= 500
        return passing and retry_after(error) <= LONGEST_WAIT_S
    return isinstance(error, openai.APIConnectionError | BodyError)


def is_outage(error: BaseException) -> bool:
    """Whether the server could not be reached at all."""
    return isinstance(error, openai.APIConnectionError)


def retry_after(error: BaseException | None) -> float:
    """Seconds that the server asks to wait (header Retry-After, a number or a date); 0 when it asks for nothing."""
    value = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


_named = wait_exception(retry_after)
_guessed = wait_exponential_jitter(multiplier=0.5, max=30.0, jitter=0.5)


def wait_before_retry(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for, else growing with jitter."""
    return _named(state) or _guessed(state)


def explain(error: BaseException) -> str:
    """One sentence about an error, without headers, keys or addresses inside it."""
    if isinstance(error, openai.APITimeoutError):
        return "The server did not answer in time."
    if isinstance(error, openai.APIConnectionError):
        return "The server cannot be reached."
    if isinstance(error, openai.APIStatusError):
        said = _message(error.body)
        return f"The server answered {error.status_code}{': ' + said if said else ''}."
    return str(error)


def _message(body: object) -> str:
    """The server's own words, short; nothing for a page of HTML."""
    found = body.get("message") if isinstance(body, dict) else None
    return " ".join(found.split())[:300].rstrip(".") if isinstance(found, str) else ""


class Pace:
    """How many requests may be in flight: cut by a fifth on a 429, once a second; one more after a full round."""

    CUT = 0.8
    COOL_DOWN_S = 1.0

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("At least one request must be allowed in flight.")
        self._most = limit
        self._limiter: anyio.CapacityLimiter | None = None
        self._allowed = limit
        self._successes = 0
        self._cut_at = -math.inf

    @property
    def allowed(self) -> int:
        """Requests allowed in flight now."""
        return self._allowed

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the places."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._allowed)
        async with self._limiter:
            yield

    def slow_down(self) -> None:
        """The server had too much. Answers to requests sent before the last cut say nothing new."""
        now = time.monotonic()
        self._successes = 0
        if now - self._cut_at >= self.COOL_DOWN_S:
            self._cut_at = now
            self._set(max(1, int(self._allowed * self.CUT)))

    def speed_up(self) -> None:
        """An answer came."""
        self._successes += 1
        if self._successes >= self._allowed and self._allowed < self._most:
            self._successes = 0
            self._set(self._allowed + 1)

    def _set(self, allowed: int) -> None:
        self._allowed = allowed
        if self._limiter is not None:
            self._limiter.total_tokens = allowed
