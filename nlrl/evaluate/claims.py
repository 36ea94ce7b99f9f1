"""Claims that an evaluation makes in words, each found in its text and held against the position it speaks of.

A pattern names one kind of sentence; its check turns a match into claims that are true or false on the board. What no
pattern matches stays unchecked and is counted so: nothing is taken for faithful that was not looked up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: n for n, word in enumerate(_WORDS)} | {"a": 1, "an": 1, "zero": 0, "none": 0, "only one": 1}
COUNT = rf"(?:\d{{1,3}}|{'|'.join(sorted(NUMBERS, key=len, reverse=True))})"
"""A count, in digits or words."""
_CONNECTING = re.compile(r"\b(?:and|but|or|then|also|at once|still|both|only|with|the|a|an|so|yet|now)\b|[^a-z0-9]+")


@dataclass(frozen=True, slots=True)
class Claim:
    """One thing that was said of the position."""

    kind: str
    """What it is about: "win", "mark", "pawns", ...; the same words for every game where the matter is the same."""
    said: str
    true: bool


@dataclass(frozen=True, slots=True)
class Checked:
    """What an evaluation said, sentence by sentence."""

    claims: tuple[Claim, ...]
    sentences: int
    unchecked: int
    """Sentences in which no claim was found."""
    partly: int
    """Sentences in which there are words that no claim explains, beside a claim."""
    omitted: int = 0
    """Facts that a fixed form of words promises to list and does not."""


Check = Callable[[re.Match[str]], Iterable[Claim]]
Patterns = Sequence[tuple[re.Pattern[str], Check]]


def check_text(text: str, patterns: Patterns) -> Checked:
    """All claims of a text. Earlier patterns come first: what one has matched, a later one does not see."""
    claims: list[Claim] = []
    unchecked = partly = 0
    found = sentences(text)
    for sentence in found:
        rest, before = sentence, len(claims)
        for pattern, check in patterns:
            for match in pattern.finditer(rest):
                claims.extend(check(match))
            rest = pattern.sub(" ", rest)
        if len(claims) == before:
            unchecked += 1
        elif _CONNECTING.sub("", rest.casefold()):
            partly += 1
    return Checked(tuple(claims), len(found), unchecked, partly)


def sentences(text: str) -> list[str]:
    """A text cut at full stops and line ends; a stop inside a number does not count."""
    return [part.strip() for part in re.split(r"(?<!\d)[.!?]|[.!?](?!\d)|\n", text) if re.search(r"\w", part)]


def said_in(reply: str, text: str) -> str:
    """All words of an evaluation: the texts of a JSON reply, or the evaluation itself."""
    start = reply.find("{")
    if start < 0:
        return reply or text
    try:
        fields, _ = json.JSONDecoder().raw_decode(reply, start)
    except (ValueError, RecursionError):
        return text
    return "\n".join(value for value in fields.values() if isinstance(value, str)) if isinstance(fields, dict) else text


def number_of(word: str) -> int:
    """A count in digits or words."""
    return int(word) if word.isdecimal() else NUMBERS[word.casefold()]


def listed(text: str, item: str) -> list[str]:
    """The items of "1, 2 and 3"; [] for "none"."""
    return re.findall(item, text)


def list_of(item: str) -> str:
    """A pattern for one or more items: "1", "1 and 2", "1, 2, or 3"."""
    return rf"{item}(?:(?:, (?:and |or )?| and | or ){item})*"
