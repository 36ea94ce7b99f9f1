"""Checks of an engine that its author can call: `await check_engine(engine)`.

The checks ask the engine real questions, so a model must be loaded or a server must run. They look at what the
protocol promises and never at how clever a reply is.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence

from nlrl.engine.base import Completion, Constraint, Engine, EngineInfo, Message, Request, Sampling
from nlrl.errors import EngineError

MOVES = ("move left", "move right", "move up", "move down")
PATTERN = r"(0|1|2|3|4|5|6|7|8|9) (yes|no)"
SCHEMA = '{"type":"object","properties":{"sure":{"type":"boolean"}},"required":["sure"],"additionalProperties":false}'


def obeys(text: str, constraint: Constraint) -> bool:
    """Whether a whole reply has the form of its constraint; of a JSON schema, that the reply is JSON, and where it asks
    for an object, one with the properties it requires.
    """
    if constraint.kind == "choice":
        return text in constraint.value
    if constraint.kind == "regex":
        return re.fullmatch(str(constraint.value), text) is not None
    try:
        value, schema = json.loads(text), json.loads(str(constraint.value))
    except (ValueError, RecursionError):
        return False
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return True
    return isinstance(value, dict) and value.keys() >= set(schema.get("required", ()))


async def check_engine(engine: Engine) -> None:
    """Check that `engine` keeps the protocol's promises, then close it.

    Order kept, also between calls that run at once; ids, counts and reasons of a reply agree; a constraint is obeyed or
    `describe()` says that it is not; the engine may be closed twice.

    Raises:
        EngineError: a promise is broken; one sentence says which.
    """
    _require(isinstance(engine, Engine), "It lacks prompt_set, generate, describe or close.")
    _check_info(engine.describe(), engine.prompt_set)
    _require(await engine.generate([]) == [], "Asked nothing, it must answer with an empty list.")
    await _check_order(engine)
    await _check_length(engine)
    await _check_constraints(engine)
    _check_info(engine.describe(), engine.prompt_set)
    await engine.close()
    await engine.close()


def _check_info(info: EngineInfo, prompt_set: str) -> None:
    _require(bool(info.kind and info.model and info.device), "describe() leaves kind, model or device empty.")
    _require(bool(prompt_set), "prompt_set is empty.")


async def _check_order(engine: Engine) -> None:
    """Choices with one alternative have one answer, so an answer shows which question it belongs to."""
    questions = [_request("Say it.", Constraint("choice", (move,)), 8) for move in MOVES]
    batch = await _ask(engine, questions)
    waves = await asyncio.gather(*(_ask(engine, [q, *questions[:2]]) for q in questions))
    for move, alone in zip(MOVES, [wave[0] for wave in waves], strict=True):
        wrong = [c.text for c in (batch[MOVES.index(move)], alone) if c.text in MOVES and c.text != move]
        _require(not wrong, f"Asked for '{move}' it gave the answer to another question, '{''.join(wrong[:1])}'.")


async def _check_length(engine: Engine) -> None:
    short, longer = await _ask(engine, [_request("Tell a story.", None, limit) for limit in (1, 12)])
    for completion, limit in ((short, 1), (longer, 12)):
        count = completion.completion_tokens
        _require(count <= limit, f"A reply limited to {limit} tokens has {count}.")
        full = completion.finish_reason != "length" or count == limit or count == 0
        _require(full, f"A reply of {count} tokens is said to be cut at {limit}.")


async def _check_constraints(engine: Engine) -> None:
    forms = [Constraint("choice", MOVES), Constraint("regex", PATTERN), Constraint("json", SCHEMA)]
    replies = await _ask(engine, [_request("Answer.", form, 48, 1.0) for form in forms])
    for form, reply in zip(forms, replies, strict=True):
        if reply.finish_reason == "stop" and not obeys(reply.text, form):
            notes = " ".join(engine.describe().notes).lower()
            _require("constrain" in notes, f"It ignores constraints of kind {form.kind} and describe() hides it.")


async def _ask(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    completions = await engine.generate(requests)
    count = len(completions)
    _require(count == len(requests), f"It gave {count} answers to {len(requests)} questions.")
    for completion in completions:
        _check_completion(completion)
    return completions


def _check_completion(completion: Completion) -> None:
    if completion.finish_reason == "error":
        _require(bool(completion.error), "A failed request has no sentence that says why.")
        return
    _require(completion.finish_reason in ("stop", "length"), f"'{completion.finish_reason}' is no finish reason.")
    _require(completion.error is None, "A reply that did not fail has an error.")
    counts: Iterable[tuple[str, tuple[int, ...], int]] = (
        ("reply", completion.token_ids, completion.completion_tokens),
        ("prompt", completion.prompt_token_ids, completion.prompt_tokens),
    )
    for name, ids, count in counts:
        _require(not ids or len(ids) == count, f"A {name} has {len(ids)} token ids and counts {count} tokens.")


def _request(text: str, constraint: Constraint | None, max_tokens: int, temperature: float = 0.0) -> Request:
    return Request((Message("user", text),), Sampling(temperature, max_tokens=max_tokens), constraint)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise EngineError(f"The engine breaks its promise: {sentence}")
