"""The tables of a run's SQLite file, and the keys by which things are found in them.

Every text is there once, and whatever contains it names its row: a prompt that a thousand calls share, a position that
every game begins with, a reply that becomes an evaluation, a thought and an example; how it lies there
`nlrl.store_packing` says. `calls.key` is the identity of a question (see `call_key`): by it, among the calls of its
decision, an answer is found when a run is resumed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import lru_cache

from nlrl import codec
from nlrl.engine.base import Constraint, Request
from nlrl.errors import ConfigError
from nlrl.types import CallId

SCHEMA_VERSION = 4
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
CREATE TABLE texts (id INTEGER PRIMARY KEY, base INTEGER, body NOT NULL);
CREATE TABLE text_ids (hash INTEGER NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (hash, id)) WITHOUT ROWID;
CREATE TABLE blobs (id INTEGER PRIMARY KEY, base INTEGER, body BLOB NOT NULL);
CREATE TABLE kinds (
    id INTEGER PRIMARY KEY, role TEXT, temperature REAL NOT NULL, top_p REAL NOT NULL, max_tokens INTEGER NOT NULL,
    with_logprobs INTEGER NOT NULL);
CREATE TABLE calls (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, kind INTEGER NOT NULL, game INTEGER, step INTEGER, action INTEGER,
    variation INTEGER, ply INTEGER NOT NULL, attempt INTEGER, system INTEGER, prompt INTEGER, messages TEXT,
    form INTEGER, seed INTEGER, reply INTEGER NOT NULL, finish_reason TEXT, error TEXT, constrained INTEGER,
    prompt_token_ids INTEGER, token_ids INTEGER, logprobs BLOB NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, ticks INTEGER NOT NULL);
CREATE INDEX calls_of_a_decision ON calls (game, step);
CREATE TABLE failures (call INTEGER PRIMARY KEY, kind TEXT NOT NULL, reason TEXT NOT NULL, reply INTEGER NOT NULL);
CREATE TABLE phases (
    number INTEGER PRIMARY KEY, stage TEXT NOT NULL, iteration INTEGER NOT NULL, name TEXT NOT NULL,
    total INTEGER NOT NULL);
CREATE TABLE games (
    game INTEGER PRIMARY KEY, phase INTEGER, start TEXT NOT NULL, observation INTEGER NOT NULL,
    picture INTEGER NOT NULL, optimal_return REAL, outcome TEXT, ending TEXT, total_return REAL, steps INTEGER);
CREATE TABLE steps (
    game INTEGER NOT NULL, step INTEGER NOT NULL, action INTEGER NOT NULL, reward REAL NOT NULL,
    total_return REAL NOT NULL, observation INTEGER NOT NULL, picture INTEGER NOT NULL, legal INTEGER NOT NULL,
    decision BLOB NOT NULL, base INTEGER NOT NULL, PRIMARY KEY (game, step)) WITHOUT ROWID;
CREATE TABLE evaluations (
    game INTEGER NOT NULL, step INTEGER NOT NULL, action INTEGER NOT NULL, variation INTEGER NOT NULL,
    source INTEGER NOT NULL, number REAL, text INTEGER NOT NULL,
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
"""The tables as they lie in the file; `nlrl.store_views` shows them as queries see them.

`texts.body` is a text, or, where `texts.base` is not NULL, one that is packed against the text of that id (0: against
none); `blobs` the same for what is no text, and `steps.decision` against the blob `steps.base`. `text_ids` finds a text
by 48 bits of its hash. `kinds` says what the calls of a role have in common. A column that is named like a text and is
an integer (`reply`, `form`, `action`, `picture`, `thought`, ...) is the id of one; `calls.prompt_token_ids` and
`token_ids` are those of blobs. The messages of a call are `system`, if it has one, and `prompt`, or else what
`messages` lists: JSON, [role, id of a text]. Its `finish_reason` is "stop" where it is NULL; `ticks` are tenths of a
millisecond.
`history` is a list of ids; `candidates` a list of [action, source, number, id of a text]; `games` of numbers of games.

`evaluations.variation` is -1 for the Q^L of an action, else the number of the look-ahead whose leaf is evaluated.
`games.phase` is the phase that the game was played in. `lessons` says on which examples, in which order, a student was
trained in an iteration."""


def check_run_id(run_id: str) -> str:
    """`run_id` itself; raises `ConfigError` when it could not be a plain folder name everywhere."""
    if not RUN_ID.fullmatch(run_id) or _DEVICES.fullmatch(run_id) or run_id.endswith("."):
        raise ConfigError(
            f"The run id {run_id[:80]!r} cannot be used: 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit."
        )
    return run_id


def call_key(request: Request, model: str) -> str:
    """What makes a question this one and no other: 96 bits of its SHA-256, as 16 characters.

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
    return base64.urlsafe_b64encode(_sha256("\n".join(parts))).decode()[:16]


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


def short_hash(digest: bytes) -> int:
    """48 bits of `text_hash`, by which a text is looked for; who finds one compares the texts themselves."""
    return int.from_bytes(digest[:6])


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


_remembered_sha256 = lru_cache(maxsize=4096)(_sha256)
