import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from nlrl import store_packing
from nlrl.engine.base import Completion, Constraint, EngineInfo, Message, Request, Sampling
from nlrl.errors import ConfigError, StoreError
from nlrl.store import Manifest, RunReader, RunStore, Totals, list_runs, new_run_id
from nlrl.store_packing import deflate, pack_floats, pack_ids, unpack_floats, unpack_ids
from nlrl.store_schema import FILE_NAME, call_key
from nlrl.types import (
    CallId,
    Candidate,
    Decision,
    Event,
    Example,
    Failure,
    GameEnd,
    GameStart,
    ImprovedPolicy,
    LanguageValue,
    LookAhead,
    Step,
    Variation,
)

ENGINE = EngineInfo("scripted", "script", "none", {"vllm": "0.32.0"}, ("Requests cannot be seeded.",))
EXAMPLE = Example("0/0/policy", "policy", (("system", "You walk."), ("user", "?")), "move up", (3, 70_000), 0.5)
HOSTILE = "move [up] \x1b[2J\x00 \ud83d lone"


def create(root: Path, run_id: str = "maze-1") -> RunStore:
    manifest = Manifest({"game": "maze", "seeds": [1, 2]}, 7, {"python": "3.11"}, ENGINE, {"code": "c0de"})
    return RunStore.create(root, run_id, manifest)


def game(number: int) -> list[Event]:
    look = LookAhead(("at 1, 1", "move up", HOSTILE), ("move up",), (-1.0,), None)
    value = LanguageValue("far: -7.5", -7.5)
    failure = Failure(CallId(number, 0, "policy"), "format", "no move", HOSTILE)
    choice = ImprovedPolicy("move up", HOSTILE, (Candidate("move up", value, (Variation(look, value),)),))
    steps = [
        Step(number, 0, Decision(number, 0, ("at 1, 1",), choice, (failure,), 37), "move up", -1.0, -1.0, HOSTILE, "#"),
        Step(number, 1, Decision(number, 1, ("at 1, 1",), None), "fly", -4.0, -5.0, "at 1, 1", "#", legal=False),
    ]
    return [GameStart(number, "1, 1", "at 1, 1", "#.#", -6.0), *steps, GameEnd(number, -5.0, 2, "forfeit")]


def record_many_games(store: RunStore) -> None:
    for number in range(1, 500):
        for event in game(number):
            store.record_event(event)


def calls() -> list[tuple[Request, Completion, Failure | None, float]]:
    sampling, place = Sampling(0.7, 0.9, 30, 11, True), CallId(0, 1, "value", "move up", 3, 2, 1)
    messages = (Message("system", "You walk."), Message("user", HOSTILE))
    plain = Request(messages, Sampling())
    tight = Request(messages, sampling, Constraint("choice", ("move up", "move down")), place)
    again = replace(tight, call=replace(place, attempt=2))
    cut = Completion("mov", (1, 70_000), (1, 2, 3), "length", None, 3, 2, (-0.1, -math.inf), False)
    broken = Completion("", finish_reason="error", error="The server answered 500.")
    return [
        (plain, Completion("fine", (5,), (1,), "stop", None, 1, 1, (), True), None, 0.25),
        (tight, cut, Failure(place, "cut", "cut at 2 tokens", "mov"), 0.5),
        (again, broken, Failure(replace(place, attempt=2), "engine", "no reply", HOSTILE), 1.0),
    ]


def record_calls(store: RunStore, round_: int = 0) -> None:
    for request, completion, failure, seconds in calls():
        key = f"{round_}-{call_key(request, 'model')}"
        store.record_call(key, request, completion, seconds)
        if failure is not None:
            store.record_failure(key, failure)


def test_the_very_records_come_back(tmp_path: Path) -> None:
    store = create(tmp_path)
    for number in (0, 1):
        for event in game(number):
            store.record_event(event)
    record_calls(store)
    store.record_prompts([("compact", "policy", "ab12", "Go $where.")] * 2)
    store.record_metric("return", 0, -5.0)
    store.record_metric("return", 1, -6.0)
    store.record_example(EXAMPLE)
    store.record_checkpoint("round-1", {"model.safetensors": "ab"})
    store.finish("finished", {"mean_return": -5.0, "table": [1, 2]})
    with RunReader.open(store.path) as run:
        assert [run.events(number) for number in (0, 1)] == [game(0), game(1)]
        assert [(c.request, c.completion, c.failure, c.seconds) for c in run.calls()] == calls()
        assert (run.id, run.seed, run.status) == ("maze-1", 7, "finished")
        assert run.config == {"game": "maze", "seeds": [1, 2]}
        assert (run.versions, run.engine) == ({"python": "3.11"}, ENGINE)
        assert run.identity == {"code": "c0de"}
        assert list(run.examples()) == [EXAMPLE]
        assert run.checkpoints() == {"round-1": {"model.safetensors": "ab"}}
        assert run.results == {"mean_return": -5.0, "table": [1, 2]}
        assert run.metrics == {"return": [-5.0, -6.0]}
        assert run.prompts() == [("compact", "policy", "ab12", "Go $where.")]
        assert run.games()[1] == (game(1)[0], game(1)[-1])
        assert run.finished is not None
        assert run.finished >= run.started


def test_texts_are_stored_once(tmp_path: Path) -> None:
    store = create(tmp_path)
    for number in range(20):
        store.record_call(str(number), *calls()[0][:2], 0.0)
    store.close()
    with sqlite3.connect(store.path / FILE_NAME) as db:
        assert db.execute("SELECT count(*) FROM calls").fetchone() == (20,)
        assert db.execute("SELECT count(*) FROM texts").fetchone() == (3,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_run_is_readable_while_it_goes_on(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.record_event(game(0)[0])
    with RunReader.open(store.path) as run:
        assert run.events(0) == game(0)[:1]
        assert run.status == "running"
        store.record_event(game(0)[1])
        assert run.events(0) == game(0)[:2]
    store.close()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import create, game, record_calls
store = create(Path(sys.argv[1]))
number = 0
while True:
    for event in game(number): store.record_event(event)
    record_calls(store, number)
    print(number, flush=True)
    number += 1
"""


@pytest.mark.parametrize("acknowledged", [3, 40])
def test_a_killed_run_keeps_everything_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        for _ in range(acknowledged):
            assert child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    with RunReader.open(tmp_path / "maze-1") as run:
        assert run.status == "running"
        assert len(run.games()) >= acknowledged
        for number in range(acknowledged):
            assert run.events(number) == game(number)
        assert len(list(run.calls())) >= 3 * acknowledged
    with sqlite3.connect(tmp_path / "maze-1" / FILE_NAME) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    create(tmp_path).close()
    before = (tmp_path / "maze-1" / FILE_NAME).read_bytes()
    with pytest.raises(StoreError, match="exists already"):
        create(tmp_path)
    assert (tmp_path / "maze-1" / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("run_id", ["../x", "/tmp/x", "", "a/b", ".hidden", "Upper", "x" * 65, "a\x00b", "a\n", "ä"])
def test_run_ids_cannot_leave_the_folder(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(ConfigError, match="run id"):
        create(tmp_path / "out", run_id)
    assert list(tmp_path.iterdir()) == []


def test_new_run_ids_are_plain_and_unused(tmp_path: Path) -> None:
    first = new_run_id(tmp_path, "maze", "Org/My Model..v2!")
    assert first.startswith("maze-org-my-model-v2-2")
    create(tmp_path, first).close()
    second = new_run_id(tmp_path, "maze", "Org/My Model..v2!")
    assert second != first
    create(tmp_path, second).close()
    assert len(new_run_id(tmp_path, "x" * 200)) <= 64
    create(tmp_path, new_run_id(tmp_path, "", "??")).close()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        create(tmp_path / "file")


def test_a_full_disk_is_reported_and_what_was_written_stays(tmp_path: Path) -> None:
    store = create(tmp_path)
    for event in game(0):
        store.record_event(event)
    # max_page_count makes SQLite fail exactly as a full disk does (SQLITE_FULL).
    store._file._db.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StoreError, match=r"full.*free space") as caught:
        record_many_games(store)
    assert caught.value.exit_code == 3
    store.close()
    with RunReader.open(store.path) as run:
        assert run.events(0) == game(0)


def test_a_closed_record_takes_no_more(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed already"):
        store.record_metric("x", 0, 1.0)


def test_a_resumed_record_knows_its_answers_and_its_totals(tmp_path: Path) -> None:
    store = create(tmp_path)
    record_calls(store)
    store.finish("interrupted", seconds=2.5)
    again = RunStore.resume(tmp_path, "maze-1")
    record_calls(again)
    for request, completion, _, _ in calls():
        assert again.answer(f"0-{call_key(request, 'model')}", request.call) == completion
    assert again.answer("0-none", None) is None
    assert again.totals == Totals(3, 4, 3, 2.5, {"cut": 1, "engine": 1}, 1)
    again.close()
    with RunReader.open(store.path) as run:
        assert (run.status, run.finished) == ("running", None)
        assert sum(1 for _ in run.calls()) == 3


def test_what_is_recorded_again_must_be_the_same(tmp_path: Path) -> None:
    store = create(tmp_path)
    for _ in range(2):
        for event in game(0):
            store.record_event(event)
    other = replace(game(0)[1], action="move down")
    with pytest.raises(StoreError, match=r"another course than recorded \(steps, game 0, step 0\)"):
        store.record_event(other)
    with pytest.raises(StoreError, match="another course"):
        store.record_event(replace(game(0)[0], picture="."))
    store.close()
    with RunReader.open(store.path) as run:
        assert run.events(0) == game(0)


def test_a_run_has_one_writer(tmp_path: Path) -> None:
    store = create(tmp_path)
    with pytest.raises(StoreError, match="Another process"):
        RunStore.resume(tmp_path, "maze-1")
    store.close()
    RunStore.resume(tmp_path, "maze-1").close()


def test_evaluations_can_be_queried(tmp_path: Path) -> None:
    store = create(tmp_path)
    for event in game(0):
        store.record_event(event)
    store.close()
    with RunReader.open(store.path) as run:
        query = "SELECT action, variation, number, t.text FROM evaluations e JOIN texts t ON t.id = e.text"
        assert run.rows(query) == [("move up", k, -7.5, "far: -7.5") for k in (-1, 0)]


DATA = Path(__file__).parent / "data"


def old_calls() -> list[tuple[Request, Completion, Failure | None, float]]:
    """As version 1 recorded them: no log-probabilities, no plies, no word on constraints."""
    place = CallId(0, 1, "value", "move up", 3, attempt=1)
    plain, tight, _ = calls()
    request = replace(tight[0], call=place, sampling=replace(tight[0].sampling, logprobs=False))
    cut, broken = Completion("mov", (1, 70_000), (1, 2, 3), "length", None, 3, 2), calls()[2][1]
    return [
        (plain[0], replace(plain[1], constrained=None), None, 0.25),
        (request, cut, Failure(place, "cut", "cut at 2 tokens", "mov"), 0.5),
        (request, broken, Failure(place, "engine", "no reply", HOSTILE), 1.0),
    ]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_records_of_older_versions_open_and_stay_as_they_are(tmp_path: Path, version: int) -> None:
    (tmp_path / "maze-1").mkdir()
    old = DATA / f"run_v{version}.sqlite"
    file = Path(shutil.copy(old, tmp_path / "maze-1" / FILE_NAME))
    with RunReader.open(file.parent) as run:
        assert not run.is_current
        assert [run.events(number) for number in (0, 1)] == [game(0), game(1)]
        found = [(c.request, c.completion, c.failure, c.seconds) for c in run.calls()]
        assert found == (old_calls() if version == 1 else calls())
        assert (run.id, run.seed, run.status) == ("maze-1", 7, "finished")
        assert run.identity == ({} if version == 1 else {"code": "c0de"})
        assert list(run.examples()) == ([] if version == 1 else [EXAMPLE])
        assert run.checkpoints() == ({} if version == 1 else {"round-1": {"model.safetensors": "ab"}})
        assert run.metrics == {"return": [-5.0, -6.0]}
        assert run.results == {"mean_return": -5.0, "table": [1, 2]}
        assert run.prompts() == [("compact", "policy", "ab12", "Go $where.")]
        evaluations = run.rows("SELECT variation, number, t.text FROM evaluations e JOIN texts t ON t.id = e.text")
        assert evaluations == ([] if version == 1 else [(k, -7.5, "far: -7.5") for k in (-1, 0, -1, 0)])
    assert [one.status for one in list_runs(tmp_path)] == ["finished"]
    with pytest.raises(StoreError, match="older nlrl"):
        RunStore.resume(tmp_path, "maze-1")
    assert file.read_bytes() == old.read_bytes()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON games BEGIN DELETE FROM run; END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE extra (x)",
        "ALTER TABLE run ADD COLUMN more TEXT",
        "ALTER TABLE run ADD COLUMN more TEXT AS (hex(zeroblob(100000000)))",
        "DROP TABLE texts; CREATE VIEW texts AS SELECT '' AS hash, '' AS text",
    ],
)
def test_a_record_with_tables_of_its_own_is_refused(tmp_path: Path, statement: str) -> None:
    create(tmp_path).close()
    with sqlite3.connect(tmp_path / "maze-1" / FILE_NAME) as db:
        db.executescript(statement)
    with pytest.raises(StoreError, match="tables are not those"):
        RunReader.open(tmp_path / "maze-1")
    assert list_runs(tmp_path)[0].status == "unreadable"


def test_a_packed_text_from_a_stranger_cannot_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(tmp_path)
    for event in game(0):
        store.record_event(event)
    store.close()
    monkeypatch.setattr(store_packing, "MOST_TEXT", 1 << 20)
    with sqlite3.connect(store.path / FILE_NAME) as db:
        db.execute("UPDATE steps SET decision = ?", (deflate(b" " * (8 << 20)),))
    with RunReader.open(store.path) as run, pytest.raises(StoreError, match="too long"):
        run.events(0)


def test_what_is_no_record_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no recorded run"):
        RunReader.open(tmp_path / "nowhere")
    for name, content in (("text", b"not a database, really" * 100), ("empty", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE_NAME).write_bytes(content)
        with pytest.raises(StoreError, match=r"cannot be read|record version"):
            RunReader.open(tmp_path / name)
    create(tmp_path, "later").close()
    with sqlite3.connect(tmp_path / "later" / FILE_NAME) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="version 99"):
        RunReader.open(tmp_path / "later")


def test_damage_inside_a_record_is_found(tmp_path: Path) -> None:
    store = create(tmp_path)
    record_calls(store)
    for event in game(0):
        store.record_event(event)
    store.close()
    for decision, says in ((b"{}", "damaged"), (deflate(b"{}"), "decision"), (deflate(b'{"":[1]}'), "decision|read")):
        with sqlite3.connect(store.path / FILE_NAME) as db:
            db.execute("UPDATE steps SET decision = ?, base = 0", (decision,))
        with RunReader.open(store.path) as run, pytest.raises(StoreError, match=says):
            run.events(0)
    with sqlite3.connect(store.path / FILE_NAME) as db:
        db.execute("DELETE FROM texts")
    with RunReader.open(store.path) as run:
        with pytest.raises(StoreError, match="damaged"):
            list(run.calls())
        with pytest.raises(StoreError, match="damaged"):
            run.events(0)
        with pytest.raises(StoreError, match="no game 5"):
            run.events(5)


def test_readers_cannot_write(tmp_path: Path) -> None:
    store = create(tmp_path)
    store.close()
    with RunReader.open(store.path) as run, pytest.raises(sqlite3.OperationalError, match="readonly"):
        run._connection.execute("DELETE FROM run")


def test_list_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "absent") == []
    store = create(tmp_path, "good")
    for event in (*game(0), game(1)[0]):
        store.record_event(event)
    store.finish("interrupted")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / FILE_NAME).write_bytes(b"x" * 5000)
    (tmp_path / "notes").mkdir()
    good, bad = list_runs(tmp_path)
    assert (good.id, good.status, good.games, good.finished_games) == ("good", "interrupted", 2, 1)
    assert (bad.id, bad.status) == ("bad", "unreadable")


@pytest.mark.parametrize("ids", [(), (0,), (1, 65_535), (65_536, 3), (2**32 - 1,)])
def test_token_ids_are_packed_without_loss(ids: tuple[int, ...]) -> None:
    assert unpack_ids(pack_ids(ids)) == ids


@pytest.mark.parametrize("values", [(), (-0.1, -math.inf), (float.fromhex("0x1.8p-3"), 0.0), (1e300,)])
def test_numbers_are_packed_without_loss(values: tuple[float, ...]) -> None:
    assert unpack_floats(pack_floats(values)) == values


def test_texts_of_a_kind_lie_packed_and_come_back(tmp_path: Path) -> None:
    store = create(tmp_path)
    prompts = [f"The goal is at position {n}, 6. Your place is 1, {n}. {HOSTILE if n % 3 else ''}" for n in range(90)]
    long = "".join(f"{n} " for n in range(30_000))
    for n, prompt in enumerate([*prompts, long, long + "!"]):
        messages = (Message("user", prompt), Message("assistant", "?"), Message("user", "!"))[: 1 + 2 * (n % 2)]
        said = Completion(prompt[::-1], (1,), tuple(range(n, n + 50)), "stop", None, 50, 1)
        store.record_call(str(n), Request(messages, Sampling()), said, 0.0)
    store.close()
    again = RunStore.resume(tmp_path, "maze-1")
    for n, prompt in enumerate(prompts):
        answer = again.answer(str(n), None)
        assert answer is not None
        assert (answer.text, answer.prompt_token_ids) == (prompt[::-1], tuple(range(n, n + 50)))
        with again._file.transaction():
            again._file.text(prompt, "another kind")
    again.close()
    with RunReader.open(store.path) as run:
        assert [call.request.messages[0].content for call in run.calls()] == [*prompts, long, long + "!"]
        assert run.rows("SELECT count(*) - count(DISTINCT text) FROM texts") == [(0,)]
    with sqlite3.connect(store.path / FILE_NAME) as db:
        query = "SELECT total(length(CAST(body AS BLOB))), count(base) FROM texts WHERE length(body) < 9999"
        ((size, packed),) = db.execute(query)
    assert size < sum(map(len, prompts))
    assert packed > 170
