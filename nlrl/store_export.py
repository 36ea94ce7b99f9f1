"""A record for other tools: tables, conversations as JSON lines, and a digest to compare two runs by."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from nlrl.errors import ConfigError, StoreError
from nlrl.store_packing import from_column, unpack_floats, unpack_ids
from nlrl.store_reader import RunReader, text_of
from nlrl.store_schema import compact_json, text_hash
from nlrl.store_views import spelled_out

LASTING = {
    "run": "seed, versions, identity, status",
    "prompts": "prompt_set, name, hash, text",
    "phases": "number, stage, iteration, name, total",
    "games": "game, phase, start, @observation, @picture, optimal_return, outcome, ending, total_return, steps",
    "steps": "game, step, action, reward, total_return, @observation, @picture, legal, decision",
    "evaluations": "game, step, action, variation, source, number, @text",
    "estimates": ("phase, item, game, step, player, @@history, action, source, number, @text, @reply, achieved, games"),
    "improvements": "phase, item, game, step, player, @@history, action, @thought, @@candidates",
    "calls": (
        "key, game, step, role, action, variation, ply, attempt, @@messages, @form, temperature, top_p, "
        "max_tokens, seed, with_logprobs, @reply, finish_reason, error, constrained, prompt_token_ids, token_ids, "
        "logprobs, prompt_tokens, completion_tokens, failure_kind, failure_reason, @failure_reply"
    ),
    "texts": "text",
    "examples": "id, role, @@messages, @target, target_token_ids, weight, games",
    "lessons": "iteration, student, position, example",
    "trainings": "iteration, student, checkpoint, examples, tokens, losses",
    "checkpoints": "name, files",
    "metrics": "name, step, value",
}
"""The columns of a record that repeat when a run does: all but times, the order of arrival, where the engine was and
how fast it was asked. Each table's rows are named by its first columns. "@" marks the id of a text, "@@" a list that
has them; the texts' hashes are taken in their place, for ids are an order of arrival."""
TIMED_FILE = "training/card.json"
"""The file of a checkpoint that also says how long the training took (`nlrl.distill.student.CARD`)."""
REPEATED_RESULTS = ("rows", "failures")

TABLES = {
    "phases": ("number, stage, iteration, name, total", {}),
    "games": (
        f"game, phase, start, {text_of('observation')}, {text_of('picture')}, optimal_return, outcome, ending, "
        "total_return, steps",
        {},
    ),
    "steps": (
        f"game, step, action, reward, total_return, {text_of('observation')}, {text_of('picture')}, legal, decision",
        {},
    ),
    "evaluations": (f"game, step, action, variation, source, number, {text_of('text')}", {}),
    "estimates": (
        f"phase, item, game, step, player, history, action, source, number, {text_of('text')}, {text_of('reply')}, "
        "achieved, games",
        {},
    ),
    "improvements": (
        f"phase, item, game, step, player, history, action, {text_of('thought')}, candidates",
        {},
    ),
    "calls": (
        "number, key, game, step, role, action, variation, ply, attempt, temperature, top_p, max_tokens, seed, "
        f"messages, {text_of('form')}, {text_of('reply')}, finish_reason, error, constrained, "
        "prompt_token_ids, token_ids, logprobs, prompt_tokens, completion_tokens, seconds, failure_kind, "
        "failure_reason",
        {"prompt_token_ids": unpack_ids, "token_ids": unpack_ids, "logprobs": unpack_floats},
    ),
    "texts": ("id, text", {}),
    "examples": (
        f"id, role, messages, {text_of('target')}, target_token_ids, weight, games",
        {"target_token_ids": unpack_ids},
    ),
    "lessons": ("iteration, student, position, example", {}),
    "trainings": ("iteration, student, checkpoint, examples, tokens, losses", {"losses": unpack_floats}),
    "metrics": ("name, step, value", {}),
}
"""What is exported of each table, and how its packed columns are unpacked. Lists are JSON, and texts in them
`texts.id`s."""

TYPES = dict.fromkeys(
    (
        "game", "step", "number", "variation", "ply", "attempt", "max_tokens", "seed", "constrained", "steps", "legal",
        "phase", "item", "iteration", "total", "achieved", "position", "tokens",
    ),
    "int",
) | {
    "prompt_tokens": "int", "completion_tokens": "int", "temperature": "real", "top_p": "real", "seconds": "real",
    "reward": "real", "total_return": "real", "optimal_return": "real", "value": "real", "weight": "real",
    "prompt_token_ids": "ids", "token_ids": "ids", "target_token_ids": "ids", "logprobs": "reals",
    "losses": "reals",
}  # fmt: skip
"""Types of columns that are no text; those that depend on the table are in `_type`."""


def lasting_lines(reader: RunReader) -> Iterator[str]:
    """The record as lines, in an order of their own: the same for two runs with the same seed and the same answers."""
    hashes = {number: text_hash(from_column(text)).hex() for number, text in reader.rows("SELECT id, text FROM texts")}
    for table, columns in LASTING.items():
        named = columns.split(", ")
        plain = [name.lstrip("@") for name in named]
        lasting = [_lasting(name, hashes, reader.text) for name in named]
        rows = reader.rows(f"SELECT {', '.join(plain)} FROM {table}")
        for row in sorted(([read(value) for read, value in zip(lasting, row, strict=True)] for row in rows), key=repr):
            yield json.dumps([table, *row])
    results = reader.results
    for name in REPEATED_RESULTS:
        yield json.dumps(["results", name, results.get(name)])


def _lasting(name: str, hashes: Mapping[int, str], text: Callable[[int], str]) -> Callable[[Any], Any]:
    """How a column of `LASTING` is read."""
    if name == "files":
        return lambda value: {file: digest for file, digest in json.loads(value).items() if file != TIMED_FILE}
    if name == "decision":
        return lambda told: spelled_out(told, text)
    if name.startswith("@@"):
        where = {"@@history": None, "@@messages": 1, "@@candidates": 3}[name]

        def listed(value: str) -> Any:
            items = json.loads(value)
            if where is None:
                return [hashes[item] for item in items]
            return [[*item[:where], hashes[item[where]]] for item in items]

        return listed
    return (lambda value: value if value is None else hashes[value]) if name.startswith("@") else _plain


def digest(reader: RunReader) -> str:
    """SHA-256 of `lasting_lines`."""
    found = hashlib.sha256()
    for line in lasting_lines(reader):
        found.update(line.encode() + b"\n")
    return found.hexdigest()


def export_chat(reader: RunReader, path: Path) -> int:
    """Write every usable call as a conversation, one JSON object a line; returns how many.

    The object has `messages` (role and content, the reply last, as trainers read it) and the call's place in the run.

    Raises:
        StoreError: the file cannot be written.
    """
    count = 0
    with writing(path), path.open("w", encoding="utf-8", newline="\n") as file:
        for call in reader.calls():
            if call.failure is not None or call.completion.finish_reason == "error":
                continue
            spoken = [{"role": m.role, "content": m.content} for m in call.request.messages]
            place = call.request.call
            where = {} if place is None else {"game": place.game, "step": place.step, "role": place.role}
            said = {"role": "assistant", "content": call.completion.text}
            file.write(json.dumps({"messages": [*spoken, said], **where}) + "\n")
            count += 1
    return count


def export_parquet(reader: RunReader, folder: Path) -> dict[str, int]:
    """Write the tables as `<table>.parquet` into a folder; returns the number of rows of each.

    Raises:
        ConfigError: pyarrow is not installed.
        StoreError: the folder exists and holds something, or cannot be written.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("Parquet needs pyarrow: pip install 'nlrl[export]', or export to a .jsonl file.") from error
    counts: dict[str, int] = {}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StoreError(f"'{folder}' is not empty; name a new folder.")
        for table, (columns, packed) in TABLES.items():
            unpack = {**packed, "decision": lambda told: spelled_out(told, reader.text)}
            names = [name.rpartition(" ")[2] for name in _split(columns)]
            types = {
                "int": pa.int64(),
                "real": pa.float64(),
                "ids": pa.list_(pa.int64()),
                "reals": pa.list_(pa.float64()),
            }
            schema = pa.schema([(name, types.get(_type(table, name), pa.string())) for name in names])
            counts[table] = 0
            with parquet.ParquetWriter(folder / f"{table}.parquet", schema, compression="zstd") as writer:
                for rows in reader.stream(f"SELECT {columns} FROM {table} ORDER BY 1, 2"):
                    arrays = {name: [unpack.get(name, _text)(row[i]) for row in rows] for i, name in enumerate(names)}
                    writer.write_table(pa.table(arrays, schema=schema))
                    counts[table] += len(rows)
    return counts


def export_sqlite(reader: RunReader, path: Path) -> dict[str, int]:
    """Write the tables of `TABLES` into a new SQLite file, every text spelled out and every list as JSON; returns the
    number of rows of each. For the `sqlite3` shell and whatever else reads SQLite; it is no record of a run.

    Raises:
        StoreError: the file exists, or cannot be written.
    """
    counts: dict[str, int] = {}
    if path.exists():
        raise StoreError(f"'{path}' exists already; name a new file.")
    with writing(path), closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        for table, (columns, packed) in TABLES.items():
            lists = {name: lambda value, unpack=unpack: compact_json(unpack(value)) for name, unpack in packed.items()}
            unpack = {**lists, "decision": lambda told: spelled_out(told, reader.text)}
            names = [name.rpartition(" ")[2] for name in _split(columns)]
            kinds = {"int": " INTEGER", "real": " REAL"}
            db.execute(f"CREATE TABLE {table} ({', '.join(n + kinds.get(_type(table, n), ' TEXT') for n in names)})")
            counts[table] = 0
            for rows in reader.stream(f"SELECT {columns} FROM {table} ORDER BY 1, 2"):
                plain = [[unpack.get(name, _text)(v) for name, v in zip(names, row, strict=True)] for row in rows]
                db.executemany(f"INSERT INTO {table} VALUES (?{', ?' * (len(names) - 1)})", plain)
                counts[table] += len(rows)
        db.execute("COMMIT")
    return counts


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever goes wrong while a file is written, as one sentence."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, StoreError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(f"'{path}' cannot be written: {reason}.") from error


def _type(table: str, name: str) -> str:
    special = {
        ("evaluations", "number"): "real", ("estimates", "number"): "real", ("texts", "id"): "int",
        ("trainings", "examples"): "int",
    }  # fmt: skip
    return special.get((table, name)) or TYPES.get(name, "text")


def _split(columns: str) -> list[str]:
    """Columns of a SELECT at the commas that are in no bracket."""
    found, depth = [""], 0
    for char in columns:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return [name.strip() for name in found]


def _text(value: Any) -> Any:
    """A text that could not be TEXT holds a lone surrogate, which Parquet cannot hold either."""
    return from_column(value).encode("utf-8", "replace").decode() if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
