"""An OpenAI-compatible server on loopback that answers from a function, keeps a log, and misbehaves on demand.

It speaks HTTP over bare sockets, because most of its faults (resets, stalls, bodies shorter than promised) are what a
web framework exists to prevent.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""Body of a chat request -> body of the reply."""

OK_STATUS = "200 OK"
FAULTS = (
    "429 with Retry-After",
    "429 with a long Retry-After",
    "429 with a senseless Retry-After",
    "500",
    "400",
    "html",
    "empty body",
    "cut json",
    "no choices",
    "null choices",
    "wrong type",
    "json list",
    "short body",
    "hang",
    "reset",
    "refused content",
    "chunked stall",
    "slow drip",
)
NEVER_RETRIED = ("400", "429 with a long Retry-After", "refused content")
"""Faults after which the same request must not be sent again."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the server saw it."""

    at: float
    """When its answer had left, by `time.monotonic`."""
    body: str
    """Hash of its body."""
    fault: str


@dataclass(slots=True)
class Script:
    """What the server does."""

    answer: Answer
    fault: Callable[[int, dict[str, Any]], str] = lambda number, body: ""
    """(number of the request, body) -> one of FAULTS, or nothing."""
    delay_s: float = 0.0
    owner: str = "vllm"
    seen: list[Seen] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    """Authorization headers that came."""


class ScriptedServer:
    """Use as a context manager; `url` is its base URL."""

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        self._port = port
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *args: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self._port))
        self._port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode("latin-1").split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.script.keys.add(headers.get("authorization", ""))
                if lines[0].startswith("GET"):
                    card = {"id": "tiny", "object": "model", "owned_by": self.script.owner}
                    _send(writer, OK_STATUS, json.dumps({"object": "list", "data": [card]}).encode())
                elif not await self._reply(writer, body):
                    break
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went, or the server is stopped
        finally:
            writer.close()

    async def _reply(self, writer: asyncio.StreamWriter, raw: bytes) -> bool:
        """Answer or misbehave; whether the connection may be used again."""
        body, script = json.loads(raw), self.script
        fault = script.fault(len(script.seen), body)
        entry = len(script.seen)
        script.seen.append(Seen(float("inf"), "", fault))
        await asyncio.sleep(script.delay_s)
        if fault == "401 echo":
            key = max(script.keys, key=len)
            return _send(writer, "401 No", json.dumps({"error": {"message": f"bad key {key}"}}).encode())
        reply = script.answer(body)
        again = await misbehave(writer, fault, reply) if fault else _send(writer, OK_STATUS, json.dumps(reply).encode())
        script.seen[entry] = Seen(time.monotonic(), hashlib.sha256(raw).hexdigest(), fault)
        return again


def chat(text: str, **changes: Any) -> dict[str, Any]:
    """A well-formed chat completion, as vLLM sends it."""
    ids = list(text.encode())
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "token_ids": ids}
    usage = {"prompt_tokens": 3, "completion_tokens": len(ids)}
    return {"id": "1", "choices": [choice | changes], "usage": usage, "prompt_token_ids": [1, 2, 3]}


async def misbehave(writer: asyncio.StreamWriter, fault: str, reply: dict[str, Any]) -> bool:
    """Commit one of FAULTS."""
    good = json.dumps(reply).encode()
    bodies = {
        "html": b"<html>Bad gateway</html>",
        "empty body": b"",
        "cut json": good[: len(good) // 2],
        "no choices": b'{"id": "1"}',
        "null choices": b'{"choices": null}',
        "wrong type": b'{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
        "json list": b"[1, 2]",
    }
    retry_after = {
        "429 with Retry-After": "0.2",
        "429 with a long Retry-After": "9999",
        "429 with a senseless Retry-After": "soon",
    }
    if fault in bodies:
        return _send(writer, OK_STATUS, bodies[fault])
    if fault in retry_after:
        return _send(writer, "429 Too Many Requests", b"{}", f"Retry-After: {retry_after[fault]}\r\n")
    if fault in ("400", "500"):
        return _send(writer, f"{fault} No", b'{"error": {"message": "no"}}')
    if fault == "refused content":
        refused = {**reply, "choices": [{**reply["choices"][0], "finish_reason": "content_filter"}]}
        return _send(writer, OK_STATUS, json.dumps(refused).encode())
    if fault.startswith("redirect "):
        return _send(writer, "307 Temporary Redirect", b"", f"Location: {fault.split()[1]}/chat/completions\r\n")
    if fault == "reset":
        writer.transport.abort()
        return False
    if fault == "short body":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + good)
    elif fault == "chunked stall":
        writer.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"id"\r\n')
        await asyncio.sleep(30)
    elif fault == "slow drip":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(good))
        for byte in good:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0.2)
    elif fault == "hang":
        await asyncio.sleep(30)
    return False


def _send(writer: asyncio.StreamWriter, status: str, body: bytes, headers: str = "") -> bool:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    writer.write(head.encode() + body)
    return True
