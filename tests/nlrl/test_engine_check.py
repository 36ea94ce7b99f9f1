"""The scripted engine, and that check_engine notices each way an engine can break the protocol."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from nlrl.engine.base import Completion, Constraint, Engine, EngineInfo, Message, Request, Sampling
from nlrl.engine.check import check_engine, obeys
from nlrl.engine.scripted import ScriptedEngine
from nlrl.errors import EngineError


def obedient(request: Request) -> str:
    form = request.constraint
    if form is None:
        return "once upon a time there was a maze"
    return form.value[0] if form.kind == "choice" else "3 yes" if form.kind == "regex" else json.dumps({"sure": True})


def ask(text: str = "Where?", max_tokens: int = 256) -> Request:
    return Request((Message("user", text),), Sampling(max_tokens=max_tokens))


def test_a_script_is_used_up_in_order() -> None:
    engine = ScriptedEngine(["one", Completion("two", finish_reason="length"), "three"])

    async def go() -> list[Completion]:
        return [*await engine.generate([ask(), ask()]), *await engine.generate([ask()])]

    assert [c.text for c in asyncio.run(go())] == ["one", "two", "three"]
    assert len(engine.requests) == 3
    with pytest.raises(EngineError, match="holds 3 replies"):
        asyncio.run(engine.generate([ask()]))


def test_a_scripted_reply_is_cut_at_the_limit() -> None:
    [cut] = asyncio.run(ScriptedEngine(["a b  c d"]).generate([ask("x y z", 3)]))
    assert (cut.text, cut.finish_reason) == ("a b  c ", "length")
    assert (cut.completion_tokens, cut.prompt_tokens) == (3, 3)


def test_a_scripted_engine_keeps_the_protocol() -> None:
    engine = ScriptedEngine(obedient)
    assert isinstance(engine, Engine)
    asyncio.run(check_engine(engine))


class Broken(ScriptedEngine):
    """Keeps the protocol but for `fault`."""

    def __init__(self, fault: str) -> None:
        super().__init__(obedient)
        self.fault = fault

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        done = await super().generate(requests)
        match self.fault:
            case "order":
                done.reverse()
            case "lost":
                done = done[1:]
            case "long":
                done = [replace(c, completion_tokens=99) for c in done]
            case "cut":
                done = [replace(c, finish_reason="length", completion_tokens=1) for c in done]
            case "ids":
                done = [replace(c, token_ids=(1,), completion_tokens=2, text="x") for c in done]
            case "silent":
                done = [replace(c, finish_reason="error") for c in done]
            case "reason":
                done = [replace(c, finish_reason="tired") for c in done]  # type: ignore[arg-type]
            case "form":
                done = [replace(c, text="I think so") for c in done]
        return done

    def describe(self) -> EngineInfo:
        return EngineInfo("", "x", "x") if self.fault == "info" else EngineInfo("broken", "x", "x")

    async def close(self) -> None:
        if self.fault == "close":
            self.fault = "closed"
        elif self.fault == "closed":
            raise EngineError("The engine breaks its promise: it was closed already.")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("order", "answer to another question"),
        ("lost", r"answers to \d questions"),
        ("long", "limited to"),
        ("cut", "said to be cut"),
        ("ids", "token ids and counts"),
        ("silent", "no sentence"),
        ("reason", "no finish reason"),
        ("form", "ignores constraints"),
        ("info", "empty"),
        ("close", "closed already"),
    ],
)
def test_a_broken_promise_is_noticed(fault: str, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        asyncio.run(check_engine(Broken(fault)))


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (Constraint("choice", ("up", "down")), "up", "up "),
        (Constraint("regex", r"-?\d+"), "-12", "-12."),
        (Constraint("json", "{}"), '{"a": 1}', '{"a": 1'),
        (Constraint("json", "{}"), "[]", "[" * 100_000),
    ],
)
def test_obeys(form: Constraint, good: str, bad: str) -> None:
    assert obeys(good, form)
    assert not obeys(bad, form)
