"""An endpoint that misbehaves in every way: each call ends as an answer or as a typed failure, and is not overasked."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from scripted_server import FAULTS, NEVER_RETRIED, Script, ScriptedServer, chat

from nlrl.engine import http_faults
from nlrl.engine.base import Completion, Constraint, EngineInfo, Message, Request, Sampling
from nlrl.engine.http import HttpEngine
from nlrl.engine.http_pace import REAL, Clock, PerMinute
from nlrl.engine.http_server import HttpSettings
from nlrl.errors import OutageError
from nlrl.recorded import RecordedEngine
from nlrl.store import Manifest, RunStore

ATTEMPTS = 4
SIZES = [pytest.param(120, id="short"), pytest.param(1000, id="full", marks=pytest.mark.torture)]


def question(number: int, constraint: Constraint | None = None) -> Request:
    return Request((Message("user", f"question {number}"),), Sampling(), constraint)


def ask(url, count: int, settings: HttpSettings, clock: Clock = REAL, constraint=None) -> list[Completion]:
    async def go():
        engine = HttpEngine(url, settings=settings, clock=clock)
        try:
            answers = await asyncio.gather(*(engine.generate([question(i, constraint)]) for i in range(count)))
        finally:
            await engine.close()
        return [answer for (answer,) in answers]

    return asyncio.run(go())


@dataclass
class Faults:
    """A fault in 30 % of the requests, each kind as often; remembers what each question was served."""

    served: dict[str, list[str]] = field(default_factory=dict)
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    kinds: Iterator[str] = field(default_factory=lambda: itertools.cycle(FAULTS))

    def __call__(self, number: int, body) -> str:
        fault = next(self.kinds) if self.rng.random() < 0.3 else ""
        self.served.setdefault(body["messages"][-1]["content"], []).append(fault)
        return fault


@pytest.mark.parametrize("calls", SIZES)
def test_every_fault_ends_as_an_answer_or_a_typed_failure(calls, row, monkeypatch):
    monkeypatch.setattr(http_faults, "_guessed", lambda state: 0.01)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(seconds)

    faults = Faults()
    script = Script(lambda body: chat(body["messages"][-1]["content"]), faults)
    with ScriptedServer(script) as server:
        settings = HttpSettings(attempts=ATTEMPTS, timeout_s=2.0)
        answers = ask(server.url, calls, settings, Clock(sleep=sleep))
    for number, answer in enumerate(answers):
        told = faults.served[f"question {number}"]
        assert len(told) <= ATTEMPTS
        assert not any(fault in NEVER_RETRIED or not fault for fault in told[:-1])
        if told[-1] == "":
            assert (answer.text, answer.finish_reason) == (f"question {number}", "stop")
        elif told[-1] != "slow drip":  # which may just have been in time
            assert answer.finish_reason == "error"
            assert answer.error
    every = Counter(fault for told in faults.served.values() for fault in told)
    assert set(FAULTS) <= set(every)
    asked_to_wait = sum(told[:-1].count("429 with Retry-After") for told in faults.served.values())
    assert slept.count(0.2) == asked_to_wait
    failed = sum(answer.finish_reason == "error" for answer in answers)
    requests, faulty = sum(every.values()), sum(every.values()) - every[""]
    row(
        f"{calls} calls, {requests} requests, {faulty} of them faulty in {len(FAULTS)} ways: {calls - failed} answers, "
        f"{failed} typed failures, at most {max(map(len, faults.served.values()))} of {ATTEMPTS} requests a call, "
        f"Retry-After kept {asked_to_wait}/{asked_to_wait}"
    )


def turned_clock(after_sleep=lambda now: None) -> tuple[Clock, list[float]]:
    """A clock that only sleeping moves, and what was slept."""
    now, slept = [0.0], []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds
        after_sleep(now[0])
        await asyncio.sleep(0)

    return Clock(lambda: now[0], sleep), slept


@pytest.mark.parametrize(("patience", "survives"), [(600.0, True), (200.0, False)])
def test_a_total_outage_pauses_the_run(patience, survives, row):
    script = Script(lambda body: chat("at last"))
    holder: dict[str, ScriptedServer] = {}
    with ScriptedServer(script) as first:
        port = first.port

    def back(now: float) -> None:
        if now >= 300 and "server" not in holder:
            holder["server"] = ScriptedServer(script, port).__enter__()

    clock, slept = turned_clock(back)

    async def go():
        with ScriptedServer(script, port):
            engine = HttpEngine(f"http://127.0.0.1:{port}", settings=HttpSettings(outage_s=patience), clock=clock)
        try:
            return await asyncio.gather(*(engine.generate([question(i)]) for i in range(40)))
        finally:
            await engine.close()

    try:
        if survives:
            assert [answer.text for (answer,) in asyncio.run(go())] == ["at last"] * 40
            assert len(script.seen) == 40
        else:
            with pytest.raises(OutageError, match="resume the run") as caught:
                asyncio.run(go())
            assert caught.value.exit_code == 4
    finally:
        if "server" in holder:
            holder["server"].__exit__()
    # Ever longer waits and no busy loop: 5 minutes are a dozen looks.
    assert len(slept) < 25
    row(
        f"server away for 300 s, patience {patience:.0f} s: looked {len(slept)} times, "
        + ("went on" if survives else f"given up after {sum(slept):.0f} s, to be resumed")
    )


def test_another_server_takes_the_place_of_one_that_is_gone():
    script = Script(lambda body: chat("here"))
    with ScriptedServer(script) as stays:
        with ScriptedServer(Script(lambda body: chat("there"), delay_s=0.01)) as goes:
            urls = f"{goes.url},{stays.url}"
            both = ask(urls, 40, HttpSettings(concurrency=4))
        assert {answer.text for answer in both} == {"here", "there"}
        assert {answer.text for answer in ask(urls, 40, HttpSettings(concurrency=4))} == {"here"}


def test_a_failing_server_is_left_for_another_without_waiting():
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    broken, good = Script(lambda body: chat(""), lambda number, body: "500"), Script(lambda body: chat("good"))
    with ScriptedServer(broken) as one, ScriptedServer(good) as two:
        answers = ask([one.url, two.url], 20, HttpSettings(attempts=8), Clock(sleep=sleep))
    assert {answer.text for answer in answers} == {"good"}
    assert len(broken.seen) > 0


@pytest.mark.parametrize(("amount", "limit"), [(1, 30), (30, 900)])
def test_limits_a_minute_hold_in_every_minute(amount, limit):
    clock, _ = turned_clock()

    async def go():
        window = PerMinute(limit, clock)
        return [(await asyncio.create_task(window.take(amount))).at for _ in range(100)]

    at = asyncio.run(go())
    assert max(sum(start <= other < start + 60 for other in at) for start in at) == 30
    assert at[-1] == 180


def test_an_amount_that_was_less_than_feared_makes_room_for_others():
    clock, _ = turned_clock()

    async def go():
        window = PerMinute(100, clock)
        (await window.take(90)).amount = 10
        return (await window.take(90)).at

    assert asyncio.run(go()) == 0


def test_the_engine_keeps_the_limits():
    clock, slept = turned_clock()
    with ScriptedServer(Script(lambda body: chat("x"))) as server:
        ask(server.url, 25, HttpSettings(requests_per_minute=10), clock)
        assert len(slept) == 2
        ask(server.url, 2, HttpSettings(tokens_per_minute=300), clock)
        assert len(slept) == 3


def test_a_run_that_stops_keeps_what_is_under_way_and_sends_nothing_more(tmp_path):
    store = RunStore.create(tmp_path, "run", Manifest({}, 0, {}, EngineInfo("http", "tiny", "here")))
    script = Script(lambda body: chat("paid for"), delay_s=0.3)

    async def go(url):
        engine = RecordedEngine(HttpEngine(url, settings=HttpSettings(concurrency=2)), store)
        waiting = asyncio.create_task(engine.generate([question(i) for i in range(6)]))
        while len(script.seen) < 2:
            await asyncio.sleep(0.01)
        waiting.cancel()
        await engine.close()
        assert engine.under_way == 0

    with ScriptedServer(script) as server:
        asyncio.run(go(server.url))
    assert len(script.seen) == store.totals.calls == 2
    store.close()


@pytest.mark.parametrize("owner", ["vllm", "someone"])
def test_a_constraint_that_is_ignored_is_seen_at_the_first_answer(owner):
    moves = Constraint("choice", ("move up", "move down"))
    schema = Constraint("json", '{"type": "object", "properties": {"a": {}}, "required": ["a"]}')
    script = Script(lambda body: chat("I would go up."), owner=owner)
    with ScriptedServer(script) as server:
        for constraint in (moves, schema):
            answers = ask(server.url, 3, HttpSettings(), constraint=constraint)
            assert [answer.constrained for answer in answers] == [False] * 3
        script.answer = lambda body: chat("move up")
        obeyed = ask(server.url, 1, HttpSettings(), constraint=moves)[0].constrained
        # Nobody asked a server that is not vLLM to choose, so a choice that fits is luck.
        assert obeyed is (owner == "vllm")
        script.answer = lambda body: chat('{"b": 1}')
        assert ask(server.url, 1, HttpSettings(), constraint=schema)[0].constrained is False


def test_a_redirect_is_not_followed():
    other = Script(lambda body: chat("stolen"))
    with ScriptedServer(other) as elsewhere:
        script = Script(lambda body: chat(""), lambda number, body: f"redirect {elsewhere.url}")
        with ScriptedServer(script) as server:
            (answer,) = ask(server.url, 1, HttpSettings())
    assert answer.finish_reason == "error"
    assert not other.seen


def test_a_body_without_end_is_cut_off():
    script = Script(lambda body: {"x": "y" * (1 << 25)})
    with ScriptedServer(script) as server:
        (answer,) = ask(server.url, 1, HttpSettings(attempts=1))
    assert answer.error == "The server's answer is too long."
