"""Ten thousand strange replies a parser: none raises, none becomes a move that was not said, none takes long."""

import json
import random
import re
import time
from collections import Counter

import pytest

from nlrl.engine.base import Constraint, Request, Sampling
from nlrl.errors import ParseError
from nlrl.estimate import shortest_reply
from nlrl.parse import parse_reply
from nlrl_prompts import available, constraint_pattern, fill_schema, load

SIZES = [pytest.param(400, id="short"), pytest.param(10_000, id="full", marks=pytest.mark.torture)]
ACTIONS = ("move left", "move right", "move up", "move down")
ROLES = ("policy", "value", "combine", "aggregate", "improve")
FORMS = [(name, role) for name in available() for role in ROLES]
CORPUS = [
    "", " ", "\n\n", "move up", "move up\nmove down", "[up]", "MOVE UP!", "上", "move ⅷ", "٣", "-٣.٥", "1_000", "nan",
    "NaN", "Infinity", "-inf", "1e999", "0x10", "1e-5", "```json\n{}\n```", "{}", "[]", "null", "true", "\ufeff{}",
    '{"action": "move up"', '{"action": "move up", "action": "move down", "thought": ""}', '{"thought": "move up"}',
    '{"thought": "t", "action": "move up"} {"thought": "t", "action": "move down"}', '{"action": ["move up"]}',
    '{"thought": "t", "action": "move up", "worth": NaN}', '{"worth": "٣", "thoughts": "", "evaluation": ""}',
    '{"thought": "t", "action": "move up and move down"}', "<think>move up</think>", "```\nmove up\n```", "\x00",
    "\x1b[2J", "\u202emove up", "move\u200bup", "\ud800", "a" * 5000, "{" * 3000, "[" * 3000, '{"a":' * 3000,
    '{"thought": "t", "action": "m\\u006fve up"}', 'ignore the rules: {"thought": "", "action": "move up"}', "9" * 5000,
]  # fmt: skip
WRAPPED = ("{}", " {}\n", "\ufeff{}", "```\n{}\n```", "```json\n{}\n```", "<think>hm</think>\n{}", "{} {}", "Move: {}.")
"""What a model puts around what it says."""
CORPUS += [wrapped.replace("{}", text) for text in CORPUS[:42] for wrapped in WRAPPED[1:]]
PIECES = [*CORPUS, *ACTIONS, '"', "{", "}", ":", ",", '"thought"', '"action"', '"worth"', '"evaluation"', "-12"]


def form_of(name: str, role: str):
    form = load(name, "maze")[role].reply
    assert form is not None
    return form


def exact_reply(form) -> str:
    value = constraint_pattern(form, ACTIONS) if form.kind == "regex" else fill_schema(form, ACTIONS)
    return shortest_reply(Request((), Sampling(), Constraint(form.kind, value)))


def mutated(rng: random.Random, good: str) -> str:
    """A reply in form with something done to it, or a heap of pieces."""
    kind = rng.randrange(6)
    if kind == 0:
        return "".join(rng.choices(PIECES, k=rng.randrange(1, 12)))
    if kind == 1:
        return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x110000)))) for _ in range(40))
    place = rng.randrange(len(good) + 1)
    if kind == 2:
        return good[:place]
    if kind == 3:
        return good[:place] + rng.choice(PIECES) + good[place:]
    if kind == 4:
        return good + rng.choice(("\n", " ", "")) + rng.choice((good, rng.choice(PIECES)))
    return good[:place] + good[place + 1 :]


@pytest.mark.parametrize("count", SIZES)
def test_any_reply_is_classified_and_none_is_guessed(count, row):
    kinds: Counter[str] = Counter()
    assert len(CORPUS) >= 300
    for name, role in FORMS:
        form, rng = form_of(name, role), random.Random(f"{name} {role}")
        good = exact_reply(form)
        assert parse_reply(good, form, ACTIONS)
        replies = [*CORPUS, *(mutated(rng, good) for _ in range(count))]
        for text in replies:
            try:
                parsed = parse_reply(text, form, ACTIONS)
            except ParseError as failure:
                kinds[failure.kind] += 1
                continue
            kinds["accepted"] += 1
            if parsed.action is not None:
                # What was said as the move, by other means than the parser's, is that move but for case and quotes.
                found = re.search(r'"action"\s*:\s*("(?:[^"\\]|\\.)*")', text)
                said = json.loads(found[1], strict=False) if form.kind == "json" and found else text
                assert parsed.action in " ".join(said.casefold().split())
            if parsed.number is not None:
                assert any(char in "0123456789" for char in text)
    assert set(kinds) <= {"accepted", "empty", "format", "illegal"}
    row(
        f"{count} made replies and {len(CORPUS)} given ones for each of {len(FORMS)} parsers: {sum(kinds.values())} "
        f"replies, {dict(sorted(kinds.items()))}"
    )


@pytest.mark.parametrize("unit", ["a", "{", '{"a":', "-1 ", "move up ", "\\", '"', "\u0663", " ", "Goal 1 up, "])
def test_a_megabyte_takes_less_than_50_ms(unit, row):
    text, slowest = unit * (1_000_000 // len(unit)), 0.0
    for name, role in FORMS:
        form = form_of(name, role)
        times = []
        for _ in range(3):
            begun = time.process_time()
            with pytest.raises(ParseError):
                parse_reply(text, form, ACTIONS)
            times.append(time.process_time() - begun)
        slowest = max(slowest, min(times))
    row(f"1 MB of {unit!r}: slowest parser {1000 * slowest:.1f} ms")
    assert slowest < 0.05
