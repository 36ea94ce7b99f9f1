"""The tables of a run's SQLite file, and how texts and token ids lie in them.

Texts are content-addressed: `texts.hash` is the SHA-256 of the UTF-8 text, and a call names its reply, its
constraint and its list of messages by such hashes, so a prompt that a thousand calls share is stored once.
"""

from __future__ import annotations

import hashlib
import re
import sys
from array import array
from collections.abc import Sequence

from nlrl.errors import ConfigError

SCHEMA_VERSION = 1
FILE_NAME = "run.sqlite"
RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

TABLES = """
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

CALL_COLUMNS = (
    "game, step, role, action, variation, attempt, messages_hash, constraint_hash, temperature, top_p, max_tokens, "
    "seed, reply_hash, finish_reason, error, prompt_token_ids, token_ids, prompt_tokens, completion_tokens, seconds, "
    "failure_kind, failure_reason, failure_reply_hash"
)


def check_run_id(run_id: str) -> str:
    """`run_id` itself; raises `ConfigError` when it could not be a plain folder name everywhere."""
    if not RUN_ID.fullmatch(run_id):
        raise ConfigError(
            f"The run id {run_id[:80]!r} cannot be used: 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit."
        )
    return run_id


def sha256_text(text: str) -> str:
    """Hex digest of a text; lone surrogates, which a model may send inside JSON, are hashed as they are."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def to_column(text: str) -> str | bytes:
    """A text as SQLite takes it: TEXT, or bytes when it holds a lone surrogate, which UTF-8 cannot say."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def from_column(value: str | bytes) -> str:
    """The text that `to_column` stored."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as little-endian unsigned integers behind one byte that states their width, 2 or 4."""
    if not ids:
        return b""
    packed = array("H" if max(ids) < 1 << 16 else "I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return bytes((packed.itemsize,)) + packed.tobytes()


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    """The token ids that `pack_ids` packed."""
    if not blob:
        return ()
    if blob[0] not in (2, 4):
        raise ValueError(f"Token ids of {blob[0]} bytes each were never written.")
    ids = array("H" if blob[0] == 2 else "I")
    ids.frombytes(blob[1:])
    if sys.byteorder == "big":
        ids.byteswap()
    return tuple(ids)
