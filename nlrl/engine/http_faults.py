"""What can go wrong between a client and a server: what is worth asking again, when, and how it is told."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import openai
from tenacity import RetryCallState, wait_exception, wait_exponential_jitter

RETRIED_STATUS = frozenset({408, 409, 429})
LONGEST_WAIT_S = 600.0
"""A server that asks for more than this is treated as one that says no."""


class BodyError(Exception):
    """A success status with a body that is no chat completion; one sentence."""


class LateError(Exception):
    """The whole answer was not there in time, though its beginning may have been; one sentence."""


def is_retryable(error: BaseException) -> bool:
    """Whether the same request may succeed later: overload, server faults, lost connections, garbled bodies."""
    if isinstance(error, openai.APIStatusError):
        passing = error.status_code in RETRIED_STATUS or error.status_code >= 500
        return passing and retry_after(error) <= LONGEST_WAIT_S
    return isinstance(error, openai.APIConnectionError | BodyError | LateError)


def is_unreachable(error: BaseException) -> bool:
    """Whether no connection was made at all, so that the server has not seen the request."""
    # By name: openai 3 moved from httpx to httpx2, and an environment may hold either.
    cause = type(error.__cause__).__name__
    return isinstance(error, openai.APIConnectionError) and cause in ("ConnectError", "ConnectTimeout")


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
        return "The server cannot be reached." if is_unreachable(error) else "The server broke the connection."
    if isinstance(error, openai.APIStatusError):
        said = _message(error.body)
        return f"The server answered {error.status_code}{': ' + said if said else ''}."
    return str(error)


def _message(body: object) -> str:
    """The server's own words, short; nothing for a page of HTML."""
    found = body.get("message") if isinstance(body, dict) else None
    return " ".join(found.split())[:300].rstrip(".") if isinstance(found, str) else ""
