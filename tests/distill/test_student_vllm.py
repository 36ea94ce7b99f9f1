"""A student over vLLM in this process: it trains, and answers with what it learned, and no engine is restarted."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytest.importorskip("accelerate")

from learning import KNOBS, QUESTIONS, answers, recitation, reply, store
from tiny_students import FAMILIES, make_student

from nlrl.distill.student import DistilledStudent
from nlrl.engine.base import Message, Request, Sampling
from nlrl.engine.torch import TorchEngine
from nlrl.engine.vllm import VllmEngine
from nlrl.recorded import RecordedEngine
from nlrl.store import RunStore
from nlrl.types import Trained

pytestmark = pytest.mark.vllm
SMALL = {"kv_cache_memory_bytes": 32 << 20, "max_model_len": 128, "dtype": "float32", "enforce_eager": True}


def start(folder: Path) -> VllmEngine:
    return VllmEngine(str(folder), device="cpu", arguments=SMALL)


def learn(student: DistilledStudent, seed: int = 7) -> Trained:
    return asyncio.run(student.learn(recitation(), iteration=1, student="policy", seed=seed))


def logprobs(engine: Any) -> list[tuple[float, ...]]:
    requests = [Request((Message("user", q),), Sampling(max_tokens=6, logprobs=True)) for q in QUESTIONS[:6]]
    return [completion.logprobs for completion in asyncio.run(engine.generate(requests))]


def test_hymba_learns_answers_and_resumes_without_a_restart(tmp_path):
    base, run = make_student("hymba", tmp_path / "base"), store(tmp_path)
    engine = start(base)
    try:
        recorded = RecordedEngine(engine, run)
        inner, before = engine._engine, answers(recorded)
        student = DistilledStudent(base, engine, run, KNOBS, reloaded=recorded.reloaded)
        trained = learn(student)
        said = answers(recorded)
        assert sum(a == reply(q) for a, q in zip(said, QUESTIONS, strict=True)) >= 60
        assert said != before
        assert engine._engine is inner
        asked = recorded.asked
        assert answers(recorded) == said  # another model than before: nothing old is taken for its answer
        run.close()

        engine.update_weights(base)
        run = RunStore.resume(tmp_path, "run")
        recorded = RecordedEngine(engine, run)
        student = DistilledStudent(base, engine, run, KNOBS, reloaded=recorded.reloaded)
        assert learn(student) == trained
        assert answers(engine) == said
        assert asked == recorded.asked + 2 * len(QUESTIONS)
    finally:
        asyncio.run(engine.close())
    checkpoint = tmp_path / "run" / "checkpoints" / "policy-1"
    assert answers(TorchEngine(str(checkpoint), device="cpu")) == said


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_after_a_reload_every_family_answers_as_a_fresh_engine(family, tmp_path):
    base, run = make_student(family, tmp_path / "base"), store(tmp_path)
    engine = start(base)
    try:
        first = logprobs(engine)
        learn(DistilledStudent(base, engine, run, replace(KNOBS, epochs=2)))
        checkpoint = tmp_path / "run" / "checkpoints" / "policy-1"
        fresh = start(checkpoint)
        try:
            found, wanted = logprobs(engine), logprobs(fresh)
        finally:
            asyncio.run(fresh.close())
        for one, other in zip(found, wanted, strict=True):
            assert one == pytest.approx(other, abs=1e-6)
        assert found != first
    finally:
        asyncio.run(engine.close())
