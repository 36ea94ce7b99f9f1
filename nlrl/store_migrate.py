"""Records of older versions: each version's tables, and how its rows become those of the next.

A record is never changed in place. `migrated` copies it into a private temporary database and steps that up, so that a
reader always sees the present tables; an old run can be read, replayed and exported, but not resumed, for another code
would answer for it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import lru_cache

from nlrl.store_schema import SCHEMA_VERSION, TABLES, pack_text

TABLES_1 = """
CREATE TABLE run (
    id TEXT PRIMARY KEY, config TEXT NOT NULL, seed INTEGER NOT NULL, versions TEXT NOT NULL, engine TEXT NOT NULL,
    started TEXT NOT NULL, finished TEXT, status TEXT NOT NULL);
CREATE TABLE prompts (
    prompt_set TEXT NOT NULL, name TEXT NOT NULL, hash TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (prompt_set, name, hash));
CREATE TABLE texts (hash TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE message_lists (hash TEXT PRIMARY KEY, messages TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE calls (
    number INTEGER PRIMARY KEY, game INTEGER, step INTEGER, role TEXT, action TEXT, variation INTEGER,
    attempt INTEGER, messages_hash TEXT NOT NULL, constraint_hash TEXT, temperature REAL NOT NULL,
    top_p REAL NOT NULL, max_tokens INTEGER NOT NULL, seed INTEGER, reply_hash TEXT NOT NULL,
    finish_reason TEXT NOT NULL, error TEXT, prompt_token_ids BLOB NOT NULL, token_ids BLOB NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    failure_kind TEXT, failure_reason TEXT, failure_reply_hash TEXT);
CREATE INDEX calls_of_a_decision ON calls (game, step);
CREATE TABLE games (
    game INTEGER PRIMARY KEY, start TEXT NOT NULL, observation TEXT NOT NULL, picture TEXT NOT NULL,
    optimal_return REAL, outcome TEXT, total_return REAL, steps INTEGER);
CREATE TABLE steps (
    game INTEGER NOT NULL, step INTEGER NOT NULL, action TEXT NOT NULL, reward REAL NOT NULL,
    total_return REAL NOT NULL, observation TEXT NOT NULL, picture TEXT NOT NULL, legal INTEGER NOT NULL,
    decision TEXT NOT NULL, PRIMARY KEY (game, step));
CREATE TABLE metrics (number INTEGER PRIMARY KEY, name TEXT NOT NULL, value REAL NOT NULL);
CREATE TABLE results (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_KEPT = ("prompts", "texts", "message_lists", "games", "results")
"""Tables that version 2 took over as they were."""


def tables_of(version: int) -> str | None:
    """The statements that made a record of this version; None for a version that never was."""
    return {1: TABLES_1, SCHEMA_VERSION: TABLES}.get(version)


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
    for table in ("run", "calls", "steps", "metrics", *_KEPT):
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    db.execute("DROP INDEX calls_of_a_decision")
    db.executescript(TABLES)
    for table in _KEPT:
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
    for table in ("run", "calls", "steps", "metrics", *_KEPT):
        db.execute(f"DROP TABLE old_{table}")


_STEPS: Mapping[int, Callable[[sqlite3.Connection], None]] = {1: _from_1}
