"""Reply text to typed fields, or a `ParseError`. No fallbacks: a move is never guessed from prose.

What is accepted beside the exact form, because no harm can come of it: white space around the reply; a JSON object
inside a code fence or amid text that has no second one; a number written as a string; another spelling of a legal
action that differs only in letter case, surrounding quotes, white space or final punctuation, when just one legal
action fits. What says two things is refused: a second object, or a property that stands twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nlrl.errors import ParseError
from nlrl_prompts import Reply, fill_actions

_NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,4})?", re.ASCII)
_OUTSIDE = " \t\r\n\"'`.,;:!"


@dataclass(frozen=True, slots=True)
class Parsed:
    """The fields of a reply; those its form does not have are empty."""

    text: str
    """The evaluation as later prompts read it: the `evaluation` field, or the whole reply when there is none."""
    number: float | None = None
    action: str | None = None
    thought: str = ""


def parse_reply(text: str, reply: Reply, actions: Sequence[str] = (), *, finished: bool = True) -> Parsed:
    """Check `text` against the form `reply` and the legal `actions`.

    `finished` is False when the engine stopped at its token limit. Raises `ParseError`, whose kind says whether the
    reply was empty, cut, out of form or an illegal move.
    """
    stripped = text.strip()
    if not stripped:
        raise ParseError("empty", "The model said nothing.")
    fields = _regex_fields(stripped, reply, tuple(actions)) if reply.kind == "regex" else _json_fields(stripped, reply)
    if fields is None:
        reason = (
            "The reply was cut off at the token limit." if not finished else "The reply does not have the asked form."
        )
        raise ParseError("format" if finished else "cut", reason)
    number, action = fields.get("number"), fields.get("action")
    return Parsed(
        text=str(fields.get("evaluation") or stripped),
        number=None if number is None else _within(_number(number), reply),
        action=None if action is None else match_action(str(action), actions),
        thought=str(fields.get("thought") or ""),
    )


def match_action(said: str, actions: Sequence[str]) -> str:
    """The legal action that `said` names; raises `ParseError` of kind "illegal" when none or several fit."""
    if said in actions:
        return said
    plain = _plain(said)
    fitting = [a for a in actions if _plain(a) == plain]
    if len(fitting) != 1:
        raise ParseError("illegal", f"'{said[:80]}' is not a legal move; legal are: {', '.join(actions)}.")
    return fitting[0]


def _plain(action: str) -> str:
    return " ".join(action.strip(_OUTSIDE).casefold().split())


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ParseError("format", "The evaluation's number is not a number.")
    # Python would also read other scripts' digits, underscores and the words nan and infinity.
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        raise ParseError("format", f"'{value[:40]}' is not a number.")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ParseError("format", f"'{str(value)[:40]}' is not a number.") from None
    if not math.isfinite(number):
        raise ParseError("format", "The evaluation's number is not finite.")
    return number


def _within(number: float, reply: Reply) -> float:
    """`number` unless it lies outside the bounds that the form's schema states: no return is there."""
    low, high = _bounds(reply.schema, (reply.fields or {}).get("number", ""))
    if not low <= number <= high:
        raise ParseError("format", f"The evaluation's number {number:g} does not lie between {low:g} and {high:g}.")
    return number


@lru_cache(maxsize=256)
def _bounds(schema: str, name: str) -> tuple[float, float]:
    wanted = json.loads(schema)["properties"].get(name, {}) if schema else {}
    return wanted.get("minimum", -math.inf), wanted.get("maximum", math.inf)


# Tic-Tac-Toe has 500 sets of legal moves, and to compile one takes as long as to read ten replies.
@lru_cache(maxsize=4096)
def _compiled(pattern: str, actions: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(fill_actions(pattern, actions), re.ASCII)


def _regex_fields(text: str, reply: Reply, actions: tuple[str, ...]) -> dict[str, Any] | None:
    match = _compiled(reply.pattern, actions).fullmatch(text)
    return None if match is None else match.groupdict()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; raises `ValueError` when a property stands twice, for either could be meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a property stands twice")
    return found


# Not strict: a tab or a line end inside a text means itself, and constrained decoders let some through.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, strict=False)


def _json_fields(text: str, reply: Reply) -> dict[str, Any] | None:
    start = text.find("{")
    if start < 0:
        return None
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    if "{" in text[end:]:
        return None
    names = reply.fields or {}
    required = json.loads(reply.schema).get("required", [])
    if not isinstance(value, dict) or any(key not in value for key in required):
        return None
    fields = {field: value.get(key) for field, key in names.items()}
    wrong = any(
        fields.get(f) is not None and not isinstance(fields[f], str) for f in ("action", "thought", "evaluation")
    )
    return None if wrong else fields
