"""A student over the torch engine: it answers as it has learned, at once, and after a resume as if never stopped."""

import asyncio
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from learning import KNOBS, QUESTIONS, answers, recitation, reply, store
from tiny_students import make_student
from tiny_tokenizer import save_tokenizer

from nlrl.distill.knobs import TrainingKnobs
from nlrl.distill.student import DistilledStudent
from nlrl.engine.scripted import ScriptedEngine
from nlrl.engine.torch import TorchEngine
from nlrl.errors import ConfigError, EngineError, ResumeError, StoreError
from nlrl.learn import Student
from nlrl.registry import resolve_model
from nlrl.store import RunStore
from nlrl.types import Trained


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student("transformer", tmp_path_factory.mktemp("models") / "tiny")


def learn(student: DistilledStudent, iteration: int = 1, seed: int = 7, examples=None) -> Trained:
    examples = recitation(iteration) if examples is None else examples
    return asyncio.run(student.learn(examples, iteration=iteration, student="policy", seed=seed))


def resumed(run: RunStore, base: Path, knobs: TrainingKnobs = KNOBS) -> tuple[DistilledStudent, TorchEngine]:
    """As in a new process."""
    engine = TorchEngine(str(base), device="cpu")
    return DistilledStudent(base, engine, run, knobs), engine


def test_it_answers_what_it_learned_and_after_a_resume_the_same(base, tmp_path):
    run = store(tmp_path)
    student, engine = resumed(run, base)
    assert isinstance(student, Student)
    before, first = answers(engine), engine.describe().fingerprint
    trained = learn(student)
    assert (trained.checkpoint, trained.examples, trained.iteration) == ("policy-1", 64, 1)
    assert trained.losses_T[-1] < 0.3 < 5 < trained.losses_T[0]
    assert len(trained.losses_T) == 16 * 4
    said = answers(engine)
    assert sum(a == reply(q) for a, q in zip(said, QUESTIONS, strict=True)) >= 60
    assert said != before
    assert engine.describe().fingerprint not in ("", first)
    engine.prompt_set = "compact"  # as of a model in the box, whatever its template suggests
    learn(student, 2)
    assert resolve_model(str(tmp_path / "run" / "checkpoints" / "policy-2")).prompt_set == "compact"
    run.close()

    run = RunStore.resume(tmp_path, "run")
    student, other = resumed(run, base)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "policy-2")  # it is neither needed nor looked at yet
    assert learn(student) == trained  # though its training state was pruned
    assert answers(other) == said
    assert other.describe().fingerprint == f"{first[:16]} with {other.describe().fingerprint.rpartition(' ')[2]}"
    with pytest.raises(StoreError, match="'policy-2' is not what was written"):
        learn(student, 2)


def test_a_resumed_run_trains_on_as_one_that_never_stopped(base, tmp_path):
    runs = {name: store(tmp_path, name) for name in ("on", "stopped")}
    few = replace(KNOBS, epochs=1)
    student, engine = resumed(runs["on"], base, few)
    learn(student)
    on = learn(student, 2)
    student, _ = resumed(runs["stopped"], base, few)
    learn(student)
    runs["stopped"].close()
    student, other = resumed(RunStore.resume(tmp_path, "stopped"), base, few)
    learn(student)
    assert learn(student, 2) == on
    for name in runs:
        states = [path.parts[-3] for path in (tmp_path / name / "checkpoints").glob("*/training/*.safetensors")]
        assert states == ["policy-2"] * 2
    assert answers(engine, QUESTIONS[:4], 1.0) == answers(other, QUESTIONS[:4], 1.0)
    assert engine.describe().fingerprint == other.describe().fingerprint


def killed_in(place: str, root: Path, base: Path, knobs: TrainingKnobs) -> None:
    """A run whose process dies while it trains, or when it would reload."""
    store(root).close()
    child = os.fork()
    if child == 0:
        from nlrl.distill import training

        student, engine = resumed(RunStore.resume(root, "run"), base, knobs)
        if place == "training":
            training.write_model = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        else:
            engine.update_weights = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        learn(student)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("place", [pytest.param("training", marks=pytest.mark.full), "reload"])
def test_killed_anywhere_it_resumes_to_the_same_answers(base, tmp_path, monkeypatch, place):
    few = replace(KNOBS, epochs=1)
    killed_in(place, tmp_path, base, few)
    student, engine = resumed(RunStore.resume(tmp_path, "run"), base, few)
    whole, other = resumed(store(tmp_path, "whole"), base, few)
    expected = learn(whole)
    if place == "reload":
        monkeypatch.setattr("nlrl.distill.training.train", None)  # what was trained is not trained again
    assert learn(student) == expected
    assert answers(engine) == answers(other)
    assert engine.describe().fingerprint == other.describe().fingerprint
    card = json.loads((tmp_path / "run" / "checkpoints" / "policy-1" / "training" / "card.json").read_text())
    assert (card["examples"], card["seed"], len(card["losses"])) == (64, 7, 4)


def test_a_checkpoint_of_other_examples_is_not_taken(base, tmp_path):
    run, few = store(tmp_path), replace(KNOBS, epochs=1)
    student, _ = resumed(run, base, few)
    learn(student)
    for examples, seed in ((recitation()[:-1], 7), (recitation(), 8)):
        student, _ = resumed(run, base, few)
        with pytest.raises(ResumeError, match="'policy-1' was trained on other examples or in another way than now"):
            learn(student, 1, seed, examples)


def test_nothing_to_learn_changes_nothing(base, tmp_path):
    student, engine = resumed(store(tmp_path), base)
    before = engine.describe().fingerprint
    assert learn(student, examples=[]) == Trained(1, "policy", "", 0, 0)
    assert engine.describe().fingerprint == before


def test_one_that_is_stopped_ends_soon_and_leaves_nothing(base, tmp_path):
    student, _ = resumed(store(tmp_path), base, replace(KNOBS, epochs=10_000))

    async def interrupted() -> None:
        task = asyncio.create_task(student.learn(recitation(), iteration=1, student="policy", seed=0))
        await asyncio.sleep(1.5)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert not (tmp_path / "run" / "checkpoints" / "policy-1").exists()


def test_the_event_loop_turns_while_it_trains(base, tmp_path):
    student, _ = resumed(store(tmp_path), base, replace(KNOBS, epochs=3))
    turns = 0

    async def both() -> None:
        nonlocal turns
        task = asyncio.create_task(student.learn(recitation(), iteration=1, student="policy", seed=0))
        while not task.done():
            await asyncio.sleep(0.05)
            turns += 1
        await task

    asyncio.run(both())
    assert turns > 5


def test_what_cannot_be_a_student_is_one_sentence_before_anything_is_spent(base, tmp_path):
    run = store(tmp_path)
    with pytest.raises(
        ConfigError, match=r"engine of kind 'scripted' cannot be trained from here: take engine\.kind ="
    ):
        DistilledStudent(base, ScriptedEngine([]), run, KNOBS)
    other = make_student("transformer", tmp_path / "other")
    save_tokenizer(other, 310)
    engine = TorchEngine(str(base), device="cpu")
    with pytest.raises(ConfigError, match="have different vocabularies, so distributions cannot be learned: leave out"):
        DistilledStudent(base, engine, run, replace(KNOBS, teacher=other))
    with pytest.raises(EngineError, match=r"weights cannot be loaded into 'tiny'"):
        engine.update_weights(make_student("ngpt", tmp_path / "ngpt"))


def test_adapters_are_merged_into_what_the_engine_gets(base, tmp_path):
    student, engine = resumed(store(tmp_path), base, replace(KNOBS, lora_rank=8, epochs=3))
    before = answers(engine)
    trained = learn(student)
    assert trained.losses_T[-1] < trained.losses_T[0] - 1
    assert answers(engine) != before


@pytest.mark.full
@pytest.mark.parametrize("sharded", [False, True])
def test_a_group_of_two_processes_takes_the_steps_of_one(base, tmp_path, sharded):
    """Half the rows each, no more rows and no less: the first step's loss is one process's up to rounding."""
    knobs, examples = replace(KNOBS, epochs=2, batch=64, carry=not sharded), recitation()
    weights = []
    for processes in (1, 2):
        run = store(tmp_path, str(processes))
        how = replace(knobs, processes=processes, sharded=sharded and processes > 1)
        student, engine = resumed(run, base, how)
        weights.append((learn(student, examples=examples), answers(engine)))
    (one, said), (two, also) = weights
    assert two.losses_T == pytest.approx(one.losses_T, rel=1e-4)
    assert sum(a == b for a, b in zip(said, also, strict=True)) >= 60
