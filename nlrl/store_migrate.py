"""Records of older versions: each version's tables, and how its rows become those of the next.

A record is never changed in place. `migrated` copies it into a private temporary database and steps that up, so that a
reader always sees the present tables; an old run can be read, replayed and exported, but not resumed, for another code
would answer for it.
"""

from __future__ import annotations

import json
import re
import sqlite3
import zlib
from array import array
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache

from nlrl.store_packing import ALONE, deflate, from_column, inflate, pack_floats
from nlrl.store_schema import SCHEMA_VERSION, TABLES, compact_json, text_hash
from nlrl.store_versions import TABLES_1, TABLES_2, TABLES_3


def tables_of(version: int) -> str | None:
    """The statements that made a record of this version; None for a version that never was."""
    return {1: TABLES_1, 2: TABLES_2, 3: TABLES_3, SCHEMA_VERSION: TABLES}.get(version)


def schema_rows(connection: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    """Every table, index, view and trigger of a database, as it was stated."""
    return sorted(connection.execute("SELECT type, name, sql FROM sqlite_schema"), key=repr)


@lru_cache(maxsize=8)
def expected_rows(version: int) -> list[tuple[str, str, str | None]]:
    """What `schema_rows` says of a genuine record of this version."""
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(tables_of(version) or "")
        return schema_rows(model)


def migrated(source: sqlite3.Connection, version: int) -> sqlite3.Connection:
    """A private copy of an older record with the present tables; `source` is only read."""
    copy = sqlite3.connect("", isolation_level=None)
    source.backup(copy)
    for step in range(version, SCHEMA_VERSION):
        _STEPS[step](copy)
    return copy


def _from_1(db: sqlite3.Connection) -> None:
    kept = ("prompts", "texts", "message_lists", "games", "results")
    _set_aside(db, "run", "calls", "steps", "metrics", *kept)
    db.executescript(TABLES_2)
    for table in kept:
        db.execute(f"INSERT INTO {table} SELECT * FROM old_{table}")
    db.execute("INSERT INTO run SELECT *, '{}', 0 FROM old_run")
    db.create_function("pack_text", 1, lambda text: zlib.compress(text.encode("ascii"), 1))
    db.execute(
        "INSERT INTO steps SELECT game, step, action, reward, total_return, observation, picture, legal, "
        "pack_text(decision) FROM old_steps"
    )
    db.execute(
        "INSERT INTO metrics SELECT name, row_number() OVER (PARTITION BY name ORDER BY number) - 1, value "
        "FROM old_metrics"
    )
    db.execute(
        "INSERT INTO calls SELECT number, 'version 1, ' || number, game, step, role, action, variation, 0, attempt, "
        "messages_hash, constraint_hash, temperature, top_p, max_tokens, seed, 0, reply_hash, finish_reason, error, "
        "NULL, prompt_token_ids, token_ids, x'', prompt_tokens, completion_tokens, seconds, failure_kind, "
        "failure_reason, failure_reply_hash FROM old_calls"
    )
    _drop_what_was_set_aside(db)


def _from_2(db: sqlite3.Connection) -> None:
    kept = ("run", "prompts", "checkpoints", "metrics", "results")
    _set_aside(db, "texts", "message_lists", "calls", "games", "steps", "evaluations", "examples", *kept)
    db.executescript(TABLES_3)
    for table in kept:
        db.execute(f"INSERT INTO {table} SELECT * FROM old_{table}")
    db.create_function("hash_of", 1, lambda text: text_hash(from_column(text)))
    db.execute("INSERT INTO texts (hash, text) SELECT hash_of(text), text FROM old_texts")
    for table in ("games", "steps"):
        for column in ("observation", "picture"):
            db.execute(f"INSERT OR IGNORE INTO texts (hash, text) SELECT hash_of({column}), {column} FROM old_{table}")
    new = dict(db.execute("SELECT o.hash, t.id FROM old_texts o JOIN texts t ON t.hash = hash_of(o.text)"))
    lists = {
        digest: compact_json([[role, new[text]] for role, text in json.loads(listed)])
        for digest, listed in db.execute("SELECT hash, messages FROM old_message_lists")
    }
    db.create_function("new_id", 1, new.get)
    db.create_function("new_list", 1, lists.get)
    db.execute(
        "INSERT INTO calls SELECT number, key, game, step, role, action, variation, ply, attempt, "
        "new_list(messages_hash), new_id(constraint_hash), temperature, top_p, max_tokens, seed, with_logprobs, "
        "new_id(reply_hash), finish_reason, error, constrained, prompt_token_ids, token_ids, logprobs, prompt_tokens, "
        "completion_tokens, seconds, failure_kind, failure_reason, new_id(failure_reply_hash) FROM old_calls"
    )
    row = "(SELECT id FROM texts WHERE hash = hash_of({}))"
    seen = f"{row.format('observation')}, {row.format('picture')}"
    db.execute(
        f"INSERT INTO games SELECT game, NULL, start, {seen}, optimal_return, outcome, NULL, total_return, steps "
        "FROM old_games"
    )
    db.execute(
        f"INSERT INTO steps SELECT game, step, action, reward, total_return, {seen}, legal, decision FROM old_steps"
    )
    db.execute(
        "INSERT INTO evaluations SELECT game, step, action, variation, source, number, new_id(text_hash) "
        "FROM old_evaluations"
    )
    db.execute(
        "INSERT INTO examples SELECT id, role, new_list(messages_hash), new_id(target_hash), target_token_ids, weight, "
        "'[]' FROM old_examples"
    )
    _drop_what_was_set_aside(db)


def _from_3(db: sqlite3.Connection) -> None:
    kept = ("run", "prompts", "phases", "games", "estimates", "improvements", "examples", "lessons", "checkpoints")
    kept += ("metrics", "results")
    _set_aside(db, "texts", "calls", "steps", "evaluations", "trainings", *kept)
    db.executescript(TABLES)
    for table in kept:
        db.execute(f"INSERT INTO {table} SELECT * FROM old_{table}")
    db.create_function("repacked", 1, lambda packed: deflate(_decision_3(packed)))
    db.create_function("refloated", 1, lambda doubles: pack_floats(_doubles(doubles)))
    db.execute("INSERT INTO texts SELECT id, NULL, text FROM old_texts")
    db.execute("CREATE INDEX by_body ON texts (body)")
    said = "SELECT action FROM old_calls UNION SELECT action FROM old_steps UNION SELECT action FROM old_evaluations"
    for (text,) in db.execute(f"SELECT * FROM ({said} UNION SELECT source FROM old_evaluations)").fetchall():
        db.execute("INSERT INTO texts (body) SELECT ?1 WHERE ?1 NOT IN (SELECT body FROM texts)", (text,))
    kind = "role, temperature, top_p, max_tokens, with_logprobs"
    db.execute(f"INSERT INTO kinds ({kind}) SELECT DISTINCT {kind} FROM old_calls")
    same = " AND ".join(f"k.{column} IS o.{column}" for column in kind.split(", "))
    db.execute("CREATE INDEX by_blob ON blobs (body)")
    ids = "SELECT prompt_token_ids AS ids FROM old_calls UNION SELECT token_ids FROM old_calls"
    db.execute(f"INSERT INTO blobs (body) SELECT ids FROM ({ids}) WHERE ids <> x''")
    db.execute(
        f"INSERT INTO calls SELECT number, key, k.id, game, step, {_id('action')}, variation, ply, attempt, NULL, "
        "NULL, messages, form, seed, reply, finish_reason, error, constrained, "
        f"{_id('prompt_token_ids', 'blobs')}, {_id('token_ids', 'blobs')}, refloated(logprobs), prompt_tokens, "
        f"completion_tokens, CAST(round(seconds * 10000) AS INTEGER) FROM old_calls o JOIN kinds k ON {same}"
    )
    db.execute(
        "INSERT INTO failures SELECT number, failure_kind, failure_reason, coalesce(failure_reply, reply) "
        "FROM old_calls WHERE failure_kind IS NOT NULL"
    )
    db.execute(
        f"INSERT INTO steps SELECT game, step, {_id('action')}, reward, total_return, observation, picture, legal, "
        f"repacked(decision), {ALONE} FROM old_steps"
    )
    db.execute(
        f"INSERT INTO evaluations SELECT game, step, {_id('action')}, variation, {_id('source')}, number, text "
        "FROM old_evaluations"
    )
    db.execute(
        "INSERT INTO trainings SELECT iteration, student, checkpoint, examples, tokens, refloated(losses) "
        "FROM old_trainings"
    )
    db.execute("DROP INDEX by_body")
    db.execute("DROP INDEX by_blob")
    _drop_what_was_set_aside(db)


def _id(column: str, table: str = "texts") -> str:
    return f"(SELECT id FROM {table} WHERE body = {column})"


def _decision_3(packed: bytes) -> bytes:
    """A decision of version 3, but for what its row says too; it was packed with a header of two bytes (RFC 1950)."""
    return re.sub(rb'^{"game":\d+,"step":\d+,', b"{", inflate(packed[2:]))


def _doubles(blob: bytes) -> array[float]:
    values = array("d")
    values.frombytes(blob)
    return values


def _set_aside(db: sqlite3.Connection, *tables: str) -> None:
    for table in tables:
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    db.execute("DROP INDEX calls_of_a_decision")


def _drop_what_was_set_aside(db: sqlite3.Connection) -> None:
    old = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'old!_%' ESCAPE '!'").fetchall()
    for (table,) in old:
        db.execute(f"DROP TABLE {table}")


_STEPS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _from_1, 2: _from_2, 3: _from_3}
