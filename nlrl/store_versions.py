"""The tables of records that older versions of nlrl wrote; the present ones are in `nlrl.store_schema`."""

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

TABLES_2 = """
CREATE TABLE run (
    id TEXT PRIMARY KEY, config TEXT NOT NULL, seed INTEGER NOT NULL, versions TEXT NOT NULL, engine TEXT NOT NULL,
    started TEXT NOT NULL, finished TEXT, status TEXT NOT NULL, identity TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE prompts (
    prompt_set TEXT NOT NULL, name TEXT NOT NULL, hash TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (prompt_set, name, hash));
CREATE TABLE texts (hash TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE message_lists (hash TEXT PRIMARY KEY, messages TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE calls (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, game INTEGER, step INTEGER, role TEXT, action TEXT,
    variation INTEGER, ply INTEGER NOT NULL, attempt INTEGER, messages_hash TEXT NOT NULL, constraint_hash TEXT,
    temperature REAL NOT NULL, top_p REAL NOT NULL, max_tokens INTEGER NOT NULL, seed INTEGER,
    with_logprobs INTEGER NOT NULL, reply_hash TEXT NOT NULL, finish_reason TEXT NOT NULL, error TEXT,
    constrained INTEGER, prompt_token_ids BLOB NOT NULL, token_ids BLOB NOT NULL, logprobs BLOB NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, seconds REAL NOT NULL,
    failure_kind TEXT, failure_reason TEXT, failure_reply_hash TEXT);
CREATE INDEX calls_of_a_decision ON calls (game, step);
CREATE TABLE games (
    game INTEGER PRIMARY KEY, start TEXT NOT NULL, observation TEXT NOT NULL, picture TEXT NOT NULL,
    optimal_return REAL, outcome TEXT, total_return REAL, steps INTEGER);
CREATE TABLE steps (
    game INTEGER NOT NULL, step INTEGER NOT NULL, action TEXT NOT NULL, reward REAL NOT NULL,
    total_return REAL NOT NULL, observation TEXT NOT NULL, picture TEXT NOT NULL, legal INTEGER NOT NULL,
    decision BLOB NOT NULL, PRIMARY KEY (game, step));
CREATE TABLE evaluations (
    game INTEGER NOT NULL, step INTEGER NOT NULL, action TEXT NOT NULL, variation INTEGER NOT NULL,
    source TEXT NOT NULL, number REAL, text_hash TEXT NOT NULL,
    PRIMARY KEY (game, step, action, variation)) WITHOUT ROWID;
CREATE TABLE examples (
    id TEXT PRIMARY KEY, role TEXT NOT NULL, messages_hash TEXT NOT NULL, target_hash TEXT NOT NULL,
    target_token_ids BLOB NOT NULL, weight REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE checkpoints (
    name TEXT PRIMARY KEY, files TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE metrics (
    name TEXT NOT NULL, step INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (name, step)) WITHOUT ROWID;
CREATE TABLE results (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

TABLES_3 = """
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
