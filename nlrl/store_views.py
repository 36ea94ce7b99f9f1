"""A record as queries see it: texts spelled out, one row a call with everything about it.

The views are temporary: each connection makes its own, and a record's file has none, so that one from a stranger can
have none either. They stand before the tables of the same names (`main.texts` is the table).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from nlrl.store_packing import inflate, plain_blob, plain_text
from nlrl.store_schema import compact_json

CALL_COLUMNS = (
    "key, game, step, role, action, variation, ply, attempt, messages, form, temperature, top_p, "
    "max_tokens, seed, with_logprobs, reply, finish_reason, error, constrained, prompt_token_ids, token_ids, "
    "logprobs, prompt_tokens, completion_tokens, seconds, failure_kind, failure_reason, failure_reply"
)
SHORT = 16
"""Characters of the longest text that is spelled out inside a decision; a longer one is named by its id there."""


def _body(table: str, row: str) -> str:
    """What is packed in a row of `texts` or `blobs`, in a SELECT."""
    base = f"(SELECT b.body FROM main.{table} b WHERE b.id = {row}.base)"
    return f"CASE WHEN {row}.base IS NULL THEN {row}.body ELSE plain_{table}({row}.body, {base}) END"


def _text(number: str) -> str:
    return f"(SELECT {_body('texts', 't')} FROM main.texts t WHERE t.id = {number})"


def _blob(number: str) -> str:
    return f"coalesce((SELECT {_body('blobs', 'i')} FROM main.blobs i WHERE i.id = {number}), x'')"


VIEWS = f"""
CREATE TEMP VIEW texts AS SELECT t.id AS id, {_body("texts", "t")} AS text FROM main.texts t;
CREATE TEMP VIEW calls AS SELECT
    c.number AS number, c.key AS key, c.game AS game, c.step AS step, k.role AS role, {_text("c.action")} AS action,
    c.variation AS variation, c.ply AS ply, c.attempt AS attempt,
    CASE WHEN c.prompt IS NULL THEN c.messages
         WHEN c.system IS NULL THEN json_array(json_array('user', c.prompt))
         ELSE json_array(json_array('system', c.system), json_array('user', c.prompt)) END AS messages,
    c.form AS form, k.temperature AS temperature, k.top_p AS top_p, k.max_tokens AS max_tokens, c.seed AS seed,
    k.with_logprobs AS with_logprobs, c.reply AS reply, coalesce(c.finish_reason, 'stop') AS finish_reason,
    c.error AS error, c.constrained AS constrained,
    {_blob("c.prompt_token_ids")} AS prompt_token_ids, {_blob("c.token_ids")} AS token_ids,
    c.logprobs AS logprobs, c.prompt_tokens AS prompt_tokens,
    c.completion_tokens AS completion_tokens, c.ticks / 10000.0 AS seconds, f.kind AS failure_kind,
    f.reason AS failure_reason, f.reply AS failure_reply
    FROM main.calls c CROSS JOIN main.kinds k ON k.id = c.kind LEFT JOIN main.failures f ON f.call = c.number;
CREATE TEMP VIEW steps AS SELECT
    s.game AS game, s.step AS step, {_text("s.action")} AS action, s.reward AS reward, s.total_return AS total_return,
    s.observation AS observation, s.picture AS picture, s.legal AS legal,
    unpacked(s.game, s.step, s.decision, (SELECT b.body FROM main.blobs b WHERE b.id = s.base)) AS decision
    FROM main.steps s;
CREATE TEMP VIEW evaluations AS SELECT
    e.game AS game, e.step AS step, {_text("e.action")} AS action, e.variation AS variation,
    {_text("e.source")} AS source, e.number AS number, e.text AS text FROM main.evaluations e;
"""
"""A column that is named like a text holds the id of one, as in `nlrl.store_schema.TABLES`, but for `action` and
`source`, which are texts here. `steps.decision` is JSON in which {{"": id}} stands for a text."""


def show(connection: sqlite3.Connection) -> None:
    """Give a connection the views of the record that it is open on."""
    functions: dict[str, tuple[int, Callable[..., Any]]] = {
        "plain_texts": (2, plain_text),
        "plain_blobs": (2, plain_blob),
        "unpacked": (4, _decision),
    }
    for name, (count, function) in functions.items():
        connection.create_function(name, count, function, deterministic=True)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.executescript(VIEWS)


def decision_head(game: int, step: int) -> str:
    """How the JSON of a decision begins; a row of `steps` has it without, for it says the same."""
    return f'{{"game":{game},"step":{step},'


def _decision(game: int, step: int, packed: bytes, base: bytes | None) -> str:
    return decision_head(game, step) + inflate(packed, base or b"").decode("ascii")[1:]


def by_ids(value: Any, number: Callable[[str], int]) -> Any:
    """JSON types with {"": id} in the place of each long text."""
    if isinstance(value, str):
        return value if len(value) <= SHORT else {"": number(value)}
    if isinstance(value, list):
        return [by_ids(item, number) for item in value]
    return {key: by_ids(item, number) for key, item in value.items()} if isinstance(value, dict) else value


def spelled_out(text: str, read: Callable[[int], str]) -> str:
    """A decision's JSON with its texts; raises `ValueError` when it is no JSON."""

    def spell(value: Any) -> Any:
        if isinstance(value, list):
            return [spell(item) for item in value]
        if not isinstance(value, dict):
            return value
        return read(value[""]) if value.keys() == {""} else {key: spell(item) for key, item in value.items()}

    try:
        return compact_json(spell(json.loads(text)))
    except RecursionError:
        raise ValueError("a decision is nested too deeply") from None
