"""The tables of a run's SQLite file, and how texts and token ids lie in them.

Every text is there once: `texts.hash` is the first half of the SHA-256 of the UTF-8 text, and whatever contains the
text names its row: a prompt that a thousand calls share, a position that every game begins with, a reply that becomes
an evaluation, a thought and an example. `calls.key` is the identity of a question (see `call_key`): an answer is looked
up by it when a run is resumed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import zlib
from array import array
from collections.abc import Sequence
from functools import lru_cache

from nlrl import codec
from nlrl.engine.base import Constraint, Request
from nlrl.errors import ConfigError
from nlrl.types import CallId

SCHEMA_VERSION = 3
FILE_NAME = "run.sqlite"
LOCK_NAME = "run.lock"
RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names that some file systems take for devices."""

TABLES = """
CREATE TABLE run (
    id TEXT PRIMARY KEY, config TEXT NOT NULL, seed INTEGER NOT NULL, versions TEXT NOT NULL, engine TEXT NOT NULL,
    started TEXT NOT NULL, finished TEXT, status TEXT NOT NULL, identity TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE prompts (
    prompt_set TEXT NOT NULL, name TEXT NOT NULL, hash TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (prompt_set, name, hash));
CREATE TABLE texts (id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
CREATE TABLE calls (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, game INTEGER, step INTEGER, role TEXT, action TEXT,
    variation INTEGER, ply INTEGER NOT NULL, attempt INTEGER, messages TEXT NOT NULL, form INTEGER,
    temperature REAL NOT NULL, top_p REAL NOT NULL, max_tokens INTEGER NOT NULL, seed INTEGER,
    with_logprobs INTEGER NOT NULL, reply INTEGER NOT NULL, finish_reason TEXT NOT NULL, error TEXT,
    constrained INTEGER, prompt_token_ids BLOB NOT NULL, token_ids BLOB NOT NULL, logprobs BLOB NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    failure_kind TEXT, failure_reason TEXT, failure_reply INTEGER);
CREATE INDEX calls_of_a_decision ON calls (game, step);
CREATE TABLE phases (
    number INTEGER PRIMARY KEY, stage TEXT NOT NULL, iteration INTEGER NOT NULL, name TEXT NOT NULL,
    total INTEGER NOT NULL);
CREATE TABLE games (
    game INTEGER PRIMARY KEY, phase INTEGER, start TEXT NOT NULL, observation INTEGER NOT NULL,
    picture INTEGER NOT NULL, optimal_return REAL, outcome TEXT, ending TEXT, total_return REAL, steps INTEGER);
CREATE TABLE steps (
    game INTEGER NOT NULL, step INTEGER NOT NULL, action TEXT NOT NULL, reward REAL NOT NULL,
    total_return REAL NOT NULL, observation INTEGER NOT NULL, picture INTEGER NOT NULL, legal INTEGER NOT NULL,
    decision BLOB NOT NULL, PRIMARY KEY (game, step));
CREATE TABLE evaluations (
    game INTEGER NOT NULL, step INTEGER NOT NULL, action TEXT NOT NULL, variation INTEGER NOT NULL,
    source TEXT NOT NULL, number REAL, text INTEGER NOT NULL,
    PRIMARY KEY (game, step, action, variation)) WITHOUT ROWID;
CREATE TABLE estimates (
    phase INTEGER NOT NULL, item INTEGER NOT NULL, game INTEGER NOT NULL, step INTEGER NOT NULL, player TEXT NOT NULL,
    history TEXT NOT NULL, action TEXT, source TEXT NOT NULL, number REAL, text INTEGER NOT NULL,
    reply INTEGER NOT NULL, achieved INTEGER NOT NULL, games TEXT NOT NULL,
    PRIMARY KEY (phase, item)) WITHOUT ROWID;
CREATE TABLE improvements (
    phase INTEGER NOT NULL, item INTEGER NOT NULL, game INTEGER NOT NULL, step INTEGER NOT NULL, player TEXT NOT NULL,
    history TEXT NOT NULL, action TEXT, thought INTEGER, candidates TEXT NOT NULL,
    PRIMARY KEY (phase, item)) WITHOUT ROWID;
CREATE TABLE examples (
    id TEXT PRIMARY KEY, role TEXT NOT NULL, messages TEXT NOT NULL, target INTEGER NOT NULL,
    target_token_ids BLOB NOT NULL, weight REAL NOT NULL, games TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE lessons (
    iteration INTEGER NOT NULL, student TEXT NOT NULL, position INTEGER NOT NULL, example TEXT NOT NULL,
    PRIMARY KEY (iteration, student, position)) WITHOUT ROWID;
CREATE TABLE trainings (
    iteration INTEGER NOT NULL, student TEXT NOT NULL, checkpoint TEXT NOT NULL, examples INTEGER NOT NULL,
    tokens INTEGER NOT NULL, losses BLOB NOT NULL, PRIMARY KEY (iteration, student)) WITHOUT ROWID;
CREATE TABLE checkpoints (
    name TEXT PRIMARY KEY, files TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE metrics (
    name TEXT NOT NULL, step INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (name, step)) WITHOUT ROWID;
CREATE TABLE results (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
"""A column that is named like a text and is an integer (`reply`, `form`, `picture`, `thought`, ...) is the id of one in
`texts`. `messages` is JSON, a list of [role, id of a text]; `history` a list of ids; `candidates` a list of
[action, source, number, id of a text]; `games` a list of numbers of games.

`evaluations.variation` is -1 for the Q^L of an action, else the number of the look-ahead whose leaf is evaluated.
`games.phase` is the phase that the game was played in. `lessons` says on which examples, in which order, a student was
trained in an iteration."""

CALL_COLUMNS = (
    "key, game, step, role, action, variation, ply, attempt, messages, form, temperature, top_p, "
    "max_tokens, seed, with_logprobs, reply, finish_reason, error, constrained, prompt_token_ids, token_ids, "
    "logprobs, prompt_tokens, completion_tokens, seconds, failure_kind, failure_reason, failure_reply"
)


def check_run_id(run_id: str) -> str:
    """`run_id` itself; raises `ConfigError` when it could not be a plain folder name everywhere."""
    if not RUN_ID.fullmatch(run_id) or _DEVICES.fullmatch(run_id) or run_id.endswith("."):
        raise ConfigError(
            f"The run id {run_id[:80]!r} cannot be used: 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit."
        )
    return run_id


def call_key(request: Request, model: str) -> str:
    """What makes a question this one and no other: 128 bits of its SHA-256, as 22 characters.

    Everything that decides the answer is in it, and the call's place in the run, which is the index of the sample:
    the same prompt asked twice at a temperature is two questions. `model` says who answers (`EngineInfo.fingerprint`).
    """
    sampling, constraint = request.sampling, request.constraint
    parts = (
        model,
        list_text(messages_of(request)),
        "" if constraint is None else constraint_text(constraint),
        repr((sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed, sampling.logprobs)),
        "" if request.call is None else repr(place_of(request.call)),
    )
    return base64.urlsafe_b64encode(_sha256("\n".join(parts))).decode()[:22]


def place_of(call: CallId) -> tuple[int, int, str, str | None, int | None, int, int]:
    """A call's place as its row has it."""
    return call.game, call.step, call.role, call.action, call.variation, call.ply, call.attempt


def messages_of(request: Request) -> tuple[tuple[str, str], ...]:
    """A request's messages as (role, content)."""
    return tuple((message.role, message.content) for message in request.messages)


@lru_cache(maxsize=256)
def list_text(messages: tuple[tuple[str, str], ...]) -> str:
    """What a list of messages is, for `call_key`: each one's role with the hash of its text."""
    return _COMPACT.encode([[role, text_hash(content).hex()] for role, content in messages])


def compact_json(value: object) -> str:
    """A list of plain values as a column has it; a number that JSON lacks is null, as SQLite has it."""
    return _COMPACT.encode(value)


_COMPACT = json.JSONEncoder(separators=(",", ":"))


@lru_cache(maxsize=4096)
def constraint_text(constraint: Constraint) -> str:
    """A constraint as JSON; a run has few different ones."""
    return codec.dumps(constraint)


def text_hash(text: str) -> bytes:
    """16 bytes that name a text; lone surrogates, which a model may send inside JSON, are hashed as they are."""
    return _sha256(text) if len(text) > 4096 else _remembered_sha256(text)


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


_remembered_sha256 = lru_cache(maxsize=4096)(_sha256)


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


def pack_text(text: str) -> bytes:
    """A long ASCII text, compressed: a decision repeats its histories and evaluations many times."""
    return zlib.compress(text.encode("ascii"), 1)


MOST_TEXT = 1 << 28
"""Longest text that is unpacked; a few bytes from a stranger can stand for gigabytes."""


def unpack_text(value: bytes) -> str:
    """The text that `pack_text` packed; raises `ValueError` when it is none, or longer than `MOST_TEXT`."""
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(value, MOST_TEXT)
    except zlib.error as error:
        raise ValueError(f"a packed text is damaged: {error}") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("a packed text is too long or cut off")
    return text.decode("ascii")


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as little-endian unsigned integers behind one byte that states their width, 2 or 4."""
    if not ids:
        return b""
    packed = array("H" if max(ids) < 1 << 16 else "I", ids)
    return bytes((packed.itemsize,)) + _little_endian(packed).tobytes()


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    """The token ids that `pack_ids` packed."""
    if not blob:
        return ()
    if blob[0] not in (2, 4):
        raise ValueError(f"Token ids of {blob[0]} bytes each were never written.")
    ids = array("H" if blob[0] == 2 else "I")
    ids.frombytes(blob[1:])
    return tuple(_little_endian(ids))


def pack_floats(values: Sequence[float]) -> bytes:
    """Numbers as little-endian doubles: an answer read back is the very answer that was given."""
    return _little_endian(array("d", values)).tobytes()


def unpack_floats(blob: bytes) -> tuple[float, ...]:
    """The numbers that `pack_floats` packed."""
    values = array("d")
    values.frombytes(blob)
    return tuple(_little_endian(values))


def _little_endian(values: array) -> array:
    if sys.byteorder == "big":
        values.byteswap()
    return values
