"""One OpenAI-compatible server: its address and key, whether it can be reached, and one request to it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai

from nlrl.engine.http_body import Body, Card, Cards, parse
from nlrl.engine.http_faults import BodyError, LateError, explain
from nlrl.engine.http_pace import Clock, Pace
from nlrl.errors import ConfigError, EngineError, UnknownNameError

PROBE_TIMEOUT_S = 5.0
MOST_BODY_BYTES = 1 << 25
KEY_VARIABLES = ("NLRL_API_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How servers are asked."""

    concurrency: int = 64
    """Most requests in flight at one server."""
    attempts: int = 6
    """How often one request is sent at most."""
    timeout_s: float = 300.0
    """For one whole answer."""
    outage_s: float = 600.0
    """How long to wait for a server when none can be reached."""
    requests_per_minute: int | None = None
    """What the service permits, all servers together."""
    tokens_per_minute: int | None = None
    """The same, read and written."""
    key_variable: str | None = None
    """The environment variable that holds the key; one of `KEY_VARIABLES` when None."""


class Server:
    """A server that requests are sent to."""

    def __init__(self, url: str, key: str, settings: HttpSettings, clock: Clock) -> None:
        self.url = url
        self.pace = Pace(settings.concurrency, clock)
        self.is_up = True
        self._timeout_s = settings.timeout_s
        timeout = openai.Timeout(settings.timeout_s, connect=min(10.0, settings.timeout_s))
        # A redirect would take prompts to where nobody sent them.
        transport = openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=timeout)
        self._client = openai.AsyncOpenAI(
            base_url=url, api_key=key, max_retries=0, timeout=timeout, http_client=transport
        )

    async def post(self, body: Mapping[str, Any]) -> Body:
        """Send one chat request; raises openai's errors, `BodyError` or `LateError`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                create = self._client.chat.completions.with_streaming_response.create
                async with create(**body) as reply:
                    content = bytearray()
                    async for part in reply.http_response.aiter_bytes():
                        content += part
                        if len(content) > MOST_BODY_BYTES:
                            raise BodyError("The server's answer is too long.")
        except TimeoutError:
            raise LateError("The server did not answer in time.") from None
        except openai.RateLimitError:
            self.pace.slow_down()
            raise
        except (openai.OpenAIError, BodyError):
            raise
        except Exception as error:
            # The connection broke while the body came: the SDK lets its transport's own exceptions through there.
            if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
                raise BodyError("The server broke off its answer.") from None
            raise
        parsed = parse(bytes(content), Body)
        self.pace.speed_up()
        return parsed

    async def answers(self) -> bool:
        """Whether the server can be reached; what it says does not matter."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._client.models.with_raw_response.list()
        except (openai.APIConnectionError, TimeoutError):
            return False
        except openai.OpenAIError:
            return True
        return True

    async def close(self) -> None:
        """Close the connections; safe to call twice."""
        await self._client.close()


def checked_urls(base_url: str | Sequence[str]) -> list[str]:
    """The URLs in a list or a comma-separated text, each with a path; raises `ConfigError`."""
    given = base_url.split(",") if isinstance(base_url, str) else base_url
    return list(dict.fromkeys(_checked_url(url) for url in given))


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, usable = urlsplit(""), False
    if not usable:
        raise ConfigError("The base URL cannot be used; write it like http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query:
        raise ConfigError(f"Leave the password and the query out of the base URL; set {KEY_VARIABLES[0]} instead.")
    path = parts.path.rstrip("/") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def api_key(variable: str | None = None) -> str:
    """The key from the environment; a stand-in when there is none, for local servers ask for none.

    Raises:
        ConfigError: `variable` is named and not set, or what is set can be no key.
    """
    if variable is not None and not os.environ.get(variable, "").strip():
        raise ConfigError(f"The environment variable {variable} that api_key_env names is not set; put the key there.")
    for name in KEY_VARIABLES if variable is None else (variable,):
        key = os.environ.get(name, "").strip()
        if key:
            # A key with a stray character would end up in clear in the HTTP library's complaint about the header.
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ConfigError(f"The key in {name} holds characters that a key cannot have; set it again.")
            return key
    return "none"


def key_names(variable: str | None) -> str:
    """Where the key may come from, in words."""
    return variable or " or ".join(KEY_VARIABLES)


def probe(url: str, key: str, variable: str | None = None) -> list[Card]:
    """The models that a server lists; [] when it answers but keeps no list.

    Raises:
        ConnectionError: nothing answers there.
        EngineError: it refuses the key, is not ready, or is no OpenAI-compatible server.
    """
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PROBE_TIMEOUT_S)
    try:
        return parse(client.models.with_raw_response.list().http_response.content, Cards).data
    except openai.APIConnectionError:
        raise ConnectionError(
            f"No server answers at {url}; start one with 'nlrl serve' or 'vllm serve', or check --base-url."
        ) from None
    except openai.AuthenticationError:
        raise EngineError(f"{url} asks for a key; set {key_names(variable)} to a valid one.") from None
    except (openai.NotFoundError, openai.PermissionDeniedError):
        return []
    except openai.APIStatusError as error:
        raise EngineError(f"The server at {url} is not ready: {explain(error)}") from None
    except BodyError as error:
        raise EngineError(f"{url} is no OpenAI-compatible server: {error} Check --base-url.") from None
    finally:
        client.close()


def choose_model(cards: Sequence[Card], model: str | None, url: str) -> str:
    """The named model, or the first that the server lists."""
    if model is None:
        if not cards:
            raise EngineError(f"The server at {url} lists no models; name one.")
        return cards[0].id
    # Hosted services do not list everything they serve; vLLM does.
    if cards and all(card.owned_by == "vllm" for card in cards) and model not in {card.id for card in cards}:
        raise UnknownNameError(f"model at {url}", model, (card.id for card in cards))
    return model
