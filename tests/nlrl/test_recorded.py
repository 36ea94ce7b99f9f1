"""Recorded runs: resumed at any call, refused when changed, within their budget, the same at any concurrency."""

import asyncio
import os
import random
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from small_runs import config, digest_of, play

from nlrl.budget import Gate, Use
from nlrl.config import BudgetConfig
from nlrl.engine.base import Completion, Constraint, EngineInfo, Message, Request, Sampling
from nlrl.engine.scripted import ScriptedEngine
from nlrl.errors import BudgetError, EngineError
from nlrl.recorded import RecordedEngine
from nlrl.store import Manifest, RunReader, RunStore, Totals


class Counting:
    """Passes requests on, counts them, and can break at one of them."""

    def __init__(self, engine, breaks_at=None) -> None:
        self.engine, self.prompt_set = engine, engine.prompt_set
        self.asked, self.breaks_at = 0, breaks_at

    async def generate(self, requests):
        self.asked += len(requests)
        await asyncio.sleep(0)
        if self.breaks_at is not None and self.asked > self.breaks_at:
            raise EngineError("The engine broke.")
        return await self.engine.generate(requests)

    def describe(self):
        return self.engine.describe()

    async def close(self):
        await self.engine.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    engine = play(root, "whole", config(), Counting)
    return root, engine.asked, digest_of(root, "whole")


def test_a_run_that_breaks_again_and_again_ends_as_if_it_had_not(tmp_path, whole):
    _, calls, wanted = whole
    total, at = 0, 1
    while True:
        try:
            total += play(tmp_path, "broken", config(), partial(Counting, breaks_at=at)).asked
            break
        except EngineError:
            total += at + 1
            at += 37
    assert digest_of(tmp_path, "broken") == wanted
    # Every break costs the request it broke at, and those beside it in its batch.
    assert total < calls * 1.5


def test_a_finished_run_asks_nothing(tmp_path, whole):
    root, calls, wanted = whole
    assert calls > 100
    assert play(root, "whole", config(), Counting).asked == 0
    assert digest_of(root, "whole") == wanted


def test_a_new_run_may_use_the_answers_of_another(tmp_path, whole):
    root, _, wanted = whole
    with RunReader.open(root / "whole") as reader:
        assert play(tmp_path, "again", config(), Counting, reader.answer).asked == 0
    assert digest_of(tmp_path, "again") == wanted


def test_the_sample_is_part_of_the_question(tmp_path, whole):
    """Another seed asks the plain policy's questions anew, although the prompts are the same."""
    root, calls, wanted = whole
    with RunReader.open(root / "whole") as reader:
        engine = play(tmp_path, "other-seed", config(seed=1, env__starts="all"), Counting, reader.answer)
    assert engine.asked > calls / 2
    assert digest_of(tmp_path, "other-seed") != wanted


@pytest.mark.parametrize("at_once", [1, 2, 64])
def test_concurrency_changes_nothing(tmp_path, whole, at_once):
    _, _, wanted = whole
    stop = threading.Event()

    def meddle():
        while not stop.wait(0.001):
            random.seed(0)

    meddler = threading.Thread(target=meddle)
    meddler.start()
    try:
        play(tmp_path, "run", config(engine__at_once=at_once))
    finally:
        stop.set()
        meddler.join()
    assert digest_of(tmp_path, "run") == wanted


def test_the_hash_seed_of_the_interpreter_changes_nothing(tmp_path, whole):
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]; from small_runs import *; play(Path(sys.argv[1]), 'run', config())"
    )
    for seed in ("0", "random"):
        folder = tmp_path / seed
        folder.mkdir()
        support = str(Path(__file__).parents[1] / "support")
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, str(folder), support], env=environment, check=True, timeout=120)
        assert digest_of(folder, "run") == whole[2]


def question(number: int, constraint=None) -> Request:
    return Request((Message("user", f"question {number}"),), Sampling(max_tokens=5, seed=number), constraint)


def new_store(root: Path) -> RunStore:
    return RunStore.create(root, "run", Manifest({}, 0, {}, EngineInfo("scripted", "script", "none")))


@pytest.mark.parametrize(
    ("limits", "most"),
    [
        ({"calls": 7}, {"calls": 7}),
        ({"tokens": 50}, {"tokens": 50 + 7}),
        ({"money": 50.0, "price_read": 1e6, "price_written": 1e6}, {"tokens": 50 + 7}),
        ({"calls": 0}, {"calls": 0}),
    ],
)
def test_a_run_stops_within_one_request_of_its_budget(tmp_path, limits, most):
    store = new_store(tmp_path)

    async def go():
        engine = RecordedEngine(
            ScriptedEngine(lambda request: "one two three four five"),  # 5 tokens written, 2 read
            store,
            gate=Gate(BudgetConfig(**limits), store.totals),
        )
        with pytest.raises(BudgetError, match="resume the run with a greater one") as caught:
            await engine.generate([question(i) for i in range(60)])
        assert caught.value.exit_code == 4
        await engine.close()

    asyncio.run(go())
    used = {"calls": store.totals.calls, "tokens": store.totals.prompt_tokens + store.totals.completion_tokens}
    store.close()
    for name, limit in most.items():
        assert limit - 7 <= used[name] <= limit, used


def test_a_budget_of_seconds_counts_those_of_earlier_processes():
    now = [0.0]
    gate = Gate(BudgetConfig(seconds=10), Totals(seconds=8), clock=lambda: now[0])

    async def go():
        async with gate.place(question(0)):
            now[0] = 2.5
        with pytest.raises(BudgetError, match=r"seconds: 10\.50 of 10"):
            async with gate.place(question(1)):
                raise AssertionError

    asyncio.run(go())


def test_a_run_goes_on_with_a_greater_budget(tmp_path, whole):
    with pytest.raises(BudgetError):
        play(tmp_path, "run", config(budget__calls=50))
    with RunReader.open(tmp_path / "run") as reader:
        assert reader.status == "interrupted"
        assert sum(1 for _ in reader.calls()) == 50
    play(tmp_path, "run", config(budget__calls=100_000))
    assert digest_of(tmp_path, "run") == whole[2]


def test_an_answer_that_nobody_waits_for_any_more_is_recorded(tmp_path):
    store = new_store(tmp_path)
    sent, answer_now = asyncio.Event(), asyncio.Event()

    class Slow(ScriptedEngine):
        held = False

        async def generate(self, requests):
            sent.set()
            await answer_now.wait()
            return await super().generate(requests)

        def hold(self):
            self.held = True

    async def go():
        model = Slow(lambda request: "paid for")
        engine = RecordedEngine(model, store)
        waiting = asyncio.create_task(engine.generate([question(0)]))
        await sent.wait()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0)
        assert model.held
        answer_now.set()
        await draining

    asyncio.run(go())
    assert store.totals.calls == 1
    store.close()


def test_one_question_is_asked_once(tmp_path):
    store = new_store(tmp_path)
    engine = ScriptedEngine(lambda request: "yes")

    async def go():
        recorded = RecordedEngine(engine, store)
        return await recorded.generate([question(0), question(0), question(1)])

    assert [completion.text for completion in asyncio.run(go())] == ["yes"] * 3
    assert len(engine.requests) == 2
    store.close()


def test_a_reply_that_was_not_held_to_its_form_can_end_the_run(tmp_path):
    store = new_store(tmp_path)
    form = Constraint("choice", ("up", "down"))
    engine = ScriptedEngine(lambda request: Completion("I would go up", constrained=False))

    async def go(require):
        return await RecordedEngine(engine, store, require_constraints=require).generate([question(0, form)])

    assert asyncio.run(go(False))[0].constrained is False
    with pytest.raises(EngineError, match="structured outputs"):
        asyncio.run(go(True))
    assert store.totals.unconstrained == 1
    store.close()


def test_use_adds_up():
    assert Use(1, 2, 3) + Use(1, 1, 1) - Use(1, 1, 1) == Use(1, 2, 3)
    assert Use(0, 2_000_000, 1_000_000).money(BudgetConfig(price_read=0.5, price_written=2)) == 3
