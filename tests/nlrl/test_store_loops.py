"""The record of a loop that learns: every event once, and the same again when it is resumed."""

import dataclasses

import pytest

from nlrl.engine.base import EngineInfo
from nlrl.errors import StoreError
from nlrl.store import Manifest, RunReader, RunStore
from nlrl.store_export import digest
from nlrl.store_loops import PhaseRecord, dataset, datasets, phases, trainings
from nlrl.types import (
    CallId,
    Candidate,
    Estimated,
    Evaluation,
    Example,
    GameEnd,
    GameStart,
    Improved,
    ImprovedPolicy,
    LanguageValue,
    LookAhead,
    LoopEvent,
    PhaseStart,
    Situation,
    Trained,
)

BOARD = "1 2 3\n4 5 6\n7 8 9\n"
HERE = Situation((BOARD,), CallId(0, 2, "monte_carlo"), ("1", "5"), "X")
WON = LookAhead((BOARD, "5", "1 2 3\n4 X 6\n7 8 9\n"), ("5",), (1.0,), "X has won.", 4)
VALUE = Evaluation(HERE, "5", LanguageValue("good: 0.5", 0.5), (WON, dataclasses.replace(WON, game=2)), '{"v": 0.5}')
CHOICE = ImprovedPolicy("5", "the middle: 5", (Candidate("5", VALUE.value), Candidate("1", LanguageValue("bad", None))))
EXAMPLES = [
    Example(
        "1/value/0/2/5/0", "value", (("system", "Judge."), ("user", BOARD)), '{"v": 0.5}', (7, 9), sources=(0, 2, 4)
    ),
    Example("1/policy/0/2//0", "policy", (("user", BOARD),), "the middle: 5", (5,), sources=(0,)),
]
EVENTS: list[LoopEvent] = [
    PhaseStart(0, "evaluate", 1),
    GameStart(0, "empty", BOARD, "...", 0.0),
    GameEnd(0, 1.0, 5, "success", "X has won with 1, 2 and 3."),
    PhaseStart(1, "estimate", 1),
    Estimated(1, (VALUE, dataclasses.replace(VALUE, action=None))),
    PhaseStart(1, "improve", 2),
    Improved(1, (HERE, HERE), (CHOICE, None)),
    Trained(1, "value", "value-1", 2, 30, (1.5, 0.25)),
    Trained(1, "policy", "policy-1", 1, 9, (0.5,)),
]


def record(store: RunStore) -> None:
    store.begin_stage("actor_critic")
    for event in EVENTS:
        store.record_event(event)
    store.record_lessons(EXAMPLES, 1, "value")
    store.record_lessons(EXAMPLES[1:], 1, "policy")


@pytest.fixture
def store(tmp_path):
    made = RunStore.create(tmp_path, "run", Manifest({}, 0, {}, EngineInfo("scripted", "script", "none")))
    record(made)
    yield made
    made.close()


def test_what_a_loop_yields_can_be_read(store):
    with RunReader.open(store.path) as run:
        assert phases(run)[0] == PhaseRecord(0, "actor_critic", 0, "evaluate", 1, 1, 1)
        assert [(p.number, p.iteration, p.name) for p in phases(run)][1:] == [(1, 1, "estimate"), (2, 1, "improve")]
        assert run.events(0)[-1] == EVENTS[2]
        assert trainings(run) == [event for event in EVENTS if isinstance(event, Trained)]
        assert datasets(run) == [(1, "value", 2), (1, "policy", 1)]
        assert list(dataset(run, 1, "value")) == EXAMPLES
        text = "(SELECT text FROM texts WHERE id = {0})"
        estimates = run.rows(f"SELECT phase, item, action, number, {text.format('reply')}, games FROM estimates")
        assert estimates == [(1, 0, "5", 0.5, '{"v": 0.5}', "[2,4]"), (1, 1, None, 0.5, '{"v": 0.5}', "[2,4]")]
        improved = run.rows(f"SELECT item, action, {text.format('thought')} FROM improvements")
        assert improved == [(0, "5", "the middle: 5"), (1, None, None)]
        said = "SELECT json_extract(c.value, '$[0]'), t.text FROM improvements, json_each(candidates) c "
        said += "JOIN texts t ON t.id = json_extract(c.value, '$[3]')"
        assert run.rows(said) == [("5", "good: 0.5"), ("1", "bad")]


def test_going_through_it_again_changes_nothing_and_another_course_is_refused(store, tmp_path):
    with RunReader.open(store.path) as run:
        before = digest(run)
    store.close()
    again = RunStore.resume(tmp_path, "run")
    record(again)
    with RunReader.open(store.path) as run:
        assert digest(run) == before
    for event in (
        PhaseStart(2, "collect", 5),
        dataclasses.replace(EVENTS[2], ending="X gave up."),  # type: ignore[type-var]
        Trained(1, "value", "value-1", 2, 30, (1.5, 0.5)),
    ):
        again.phase = -1
        with pytest.raises(StoreError, match="took another course"):
            again.record_event(event)
    with pytest.raises(StoreError, match=r"another course than recorded \(lessons"):
        again.record_lessons(EXAMPLES[1:], 1, "value")
    again.close()


def test_the_digest_does_not_depend_on_the_order_of_arrival(store, tmp_path):
    other = RunStore.create(tmp_path, "other", Manifest({}, 0, {}, EngineInfo("scripted", "script", "none")))
    other.record_example(EXAMPLES[1])
    record(other)
    with RunReader.open(store.path) as first, RunReader.open(other.path) as second:
        assert first.rows("SELECT id, text FROM texts") != second.rows("SELECT id, text FROM texts")
        assert digest(first) == digest(second)
    other.close()


def test_a_text_is_there_once_however_often_it_is_said(store):
    with RunReader.open(store.path) as run:
        assert run.rows("SELECT count(*) - count(DISTINCT text) FROM texts") == [(0,)]
        assert run.rows("SELECT count(*) FROM texts WHERE text = ?", BOARD) == [(1,)]
