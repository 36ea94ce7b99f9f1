"""Records of older versions: each version's tables, and how its rows become those of the next.

A record is never changed in place. `migrated` copies it into a private temporary database and steps that up, so that a
reader always sees the present tables; an old run can be read, replayed and exported, but not resumed, for another code
would answer for it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache

from nlrl.store_schema import SCHEMA_VERSION, TABLES, compact_json, from_column, pack_text, text_hash
from nlrl.store_versions import TABLES_1, TABLES_2


def tables_of(version: int) -> str | None:
    """The statements that made a record of this version; None for a version that never was."""
    return {1: TABLES_1, 2: TABLES_2, SCHEMA_VERSION: TABLES}.get(version)


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
    db.create_function("pack_text", 1, pack_text)
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
    db.executescript(TABLES)
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


def _set_aside(db: sqlite3.Connection, *tables: str) -> None:
    for table in tables:
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    db.execute("DROP INDEX calls_of_a_decision")


def _drop_what_was_set_aside(db: sqlite3.Connection) -> None:
    old = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE 'old!_%' ESCAPE '!'").fetchall()
    for (table,) in old:
        db.execute(f"DROP TABLE {table}")


_STEPS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _from_1, 2: _from_2}
