"""The oracle behind HTTP: what a run against a scripted server is answered with, now and then with a bad reply."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from scripted_server import chat

from nlrl.config import load_config
from nlrl.engine.base import Message, Request, Sampling
from nlrl.engine.oracle import OracleEngine
from nlrl.task import build_task, exact_values

RUN = ["-s", "env.map=umaze", "-s", "look_ahead.variations=2", "-s", "look_ahead.steps=1", "-s", "engine.attempts=8"]
"""Options of a run that `arithmetic_answers` can answer."""
OVER_HTTP = [*RUN, "-s", "engine.prompts=arithmetic", "-s", "engine.outage_seconds=20"]


def arithmetic_answers(bad_percent: int = 5) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Exact answers to the arithmetic prompts of umaze; some, chosen by the request alone, are of no use."""
    oracle = OracleEngine(exact_values(build_task(load_config("maze", {"env.map": "umaze"}))))

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if hashlib.sha256(json.dumps(body).encode()).digest()[0] * 100 < bad_percent * 256:
            return chat("I would rather [not] say. \x1b[2J")
        messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
        request = Request(messages, Sampling(body["temperature"], seed=body.get("seed")))
        (completion,) = _now(oracle.generate([request]))
        return chat(completion.text)

    return answer


def _now(coroutine: Any) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("The oracle waited.")
