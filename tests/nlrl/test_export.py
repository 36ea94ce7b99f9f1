"""A record for other tools says what the record says."""

import json
import sqlite3
import sys

import pytest
from small_runs import config, play

from nlrl.errors import ConfigError, StoreError
from nlrl.store import RunReader
from nlrl.store_export import digest, export_chat, export_parquet, export_sqlite, lasting_lines


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    play(root, "run", config(engine__logprobs=True))
    with RunReader.open(root / "run") as found:
        yield found


def test_conversations_are_the_calls(reader, tmp_path):
    file = tmp_path / "chat.jsonl"
    count = export_chat(reader, file)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    calls = list(reader.calls())
    assert count == len(lines) == len(calls)
    for line, call in zip(lines, calls, strict=True):
        spoken = [(m["role"], m["content"]) for m in line["messages"]]
        assert spoken == [*((m.role, m.content) for m in call.request.messages), ("assistant", call.completion.text)]
        assert (line["game"], line["role"]) == (call.request.call.game, call.request.call.role)


def test_parquet_tables_are_the_record(reader, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    counts = export_parquet(reader, tmp_path / "tables")
    calls = parquet.read_table(tmp_path / "tables" / "calls.parquet").to_pylist()
    assert len(calls) == counts["calls"] == reader.rows("SELECT count(*) FROM calls")[0][0]
    recorded = list(reader.calls())
    assert [call["reply"] for call in calls] == [call.completion.text for call in recorded]
    assert [tuple(call["token_ids"]) for call in calls] == [call.completion.token_ids for call in recorded]
    steps = parquet.read_table(tmp_path / "tables" / "steps.parquet").to_pylist()
    assert json.loads(steps[0]["decision"])["game"] == 0
    evaluations = parquet.read_table(tmp_path / "tables" / "evaluations.parquet").to_pylist()
    assert {row["source"] for row in evaluations} == {"model", "terminal"}
    with pytest.raises(StoreError, match="not empty"):
        export_parquet(reader, tmp_path / "tables")


def test_a_plain_sqlite_file_says_the_same_to_any_reader(reader, tmp_path):
    file = tmp_path / "plain.sqlite"
    counts = export_sqlite(reader, file)
    with sqlite3.connect(file) as db:
        first_text = "JOIN texts t ON t.id = json_extract(c.messages, '$[0][1]')"
        columns = "c.reply, json_array_length(c.token_ids), t.text"
        said = db.execute(f"SELECT {columns} FROM calls c {first_text} ORDER BY number").fetchall()
        ((first,),) = db.execute("SELECT decision ->> '$.history[0]' FROM steps WHERE game = 0 AND step = 0")
    calls = [(c.completion.text, len(c.completion.token_ids), c.request.messages[0].content) for c in reader.calls()]
    assert said == calls
    assert len(said) == counts["calls"]
    assert first == reader.events(0)[0].observation
    with pytest.raises(StoreError, match="exists already"):
        export_sqlite(reader, file)


def test_without_pyarrow_one_sentence_says_what_to_do(reader, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"nlrl\[export\]"):
        export_parquet(reader, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_what_cannot_be_written_is_one_sentence(reader, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        export_chat(reader, tmp_path / "file" / "chat.jsonl")


def test_the_digest_is_of_what_lasts(reader):
    lines = list(lasting_lines(reader))
    tables = {json.loads(line)[0] for line in lines}
    assert {"run", "games", "steps", "evaluations", "calls", "texts", "prompts", "results"} <= tables
    assert lines == list(lasting_lines(reader))
    assert len(digest(reader)) == 64
