"""Replies to fields: what is accepted, what is refused and under which name, and that nothing is ever guessed."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.errors import ParseError
from nlrl.parse import parse_reply
from nlrl_prompts import available, load

ACTIONS = ("move left", "move right", "move up", "move down")
COMPACT = load("compact", "maze")
FULL = load("full", "maze")
BOARD = load("full", "tic_tac_toe")


def reply_form(prompts, role):
    form = prompts[role].reply
    assert form is not None
    return form


def classify(text, form):
    """The parsed reply, or the error that says why there is none."""
    try:
        return parse_reply(text, form, ACTIONS)
    except ParseError as failure:
        return failure


def test_compact_replies_in_the_exact_form_are_read():
    value = parse_reply(
        "Goal 5 down, 1 right: 6 steps. Bumped 2 times. Came back 1 times. Worth -12.", reply_form(COMPACT, "value")
    )
    assert value.number == -12.0
    assert value.text.startswith("Goal 5 down")
    average = "On average 6.2 steps, 1.0 bumps, 0.5 returns. After move up worth -13.2."
    assert parse_reply(average, reply_form(COMPACT, "aggregate"), ACTIONS).number == -13.2
    choice = parse_reply("Most worth is -8.5 after move up.", reply_form(COMPACT, "improve"), ACTIONS)
    assert (choice.action, choice.thought) == ("move up", "Most worth is -8.5")


@pytest.mark.parametrize(
    "text",
    [
        '{"thought": "t", "action": "move up"}',
        ' \n{"thought": "t", "action": "move up"}\n ',
        '```json\n{"thought": "t", "action": "move up"}\n```',
        '{"thought": "t", "action": "move up"} That is my move.',
        '{"thought": "t", "action": "Move Up."}',
        '{"thought": "t", "action": " \'move  up\' "}',
        '{"action": "move up", "thought": "t", "extra": 1}',
    ],
)
def test_harmless_variants_of_a_json_move_are_accepted(text):
    assert parse_reply(text, reply_form(FULL, "policy"), ACTIONS).action == "move up"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("I would move up.", "format"),
        ('{"thought": "t"}', "format"),
        ('{"thought": "t", "action": 3}', "format"),
        ('{"thought": "t", "action": ["move up"]}', "format"),
        ('{"thought": "t" "action": "move up"}', "format"),
        ("{'thought': 't', 'action': 'move up'}", "format"),
        ('["move up"]', "format"),
        ('{"a": ' * 10_000, "format"),
        ('{"thought": "t", "action": "fly"}', "illegal"),
        ('{"thought": "t", "action": ""}', "illegal"),
        ('{"thought": "t", "action": "move up or move down"}', "illegal"),
    ],
)
def test_unusable_moves_fail_under_their_name(text, kind):
    with pytest.raises(ParseError) as failure:
        parse_reply(text, reply_form(FULL, "policy"), ACTIONS)
    assert failure.value.kind == kind


@pytest.mark.parametrize("worth", ["NaN", "Infinity", "1e999", '"much"', "true", "[1]", '"NaN"'])
def test_numbers_that_are_none_are_refused(worth):
    text = f'{{"thoughts": "t", "evaluation": "e", "worth": {worth}}}'
    with pytest.raises(ParseError):
        parse_reply(text, reply_form(FULL, "value"))


def test_a_reply_cut_at_the_token_limit_is_called_cut():
    with pytest.raises(ParseError) as failure:
        parse_reply('{"thought": "t", "act', reply_form(FULL, "policy"), ACTIONS, finished=False)
    assert failure.value.kind == "cut"


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["policy", "value", "combine", "aggregate", "improve"]))
def test_any_text_is_classified_and_never_becomes_a_move(text, role):
    for name in available():
        outcome = classify(text, reply_form(load(name, "maze"), role))
        if isinstance(outcome, ParseError):
            assert outcome.kind in ("empty", "format", "illegal")
        else:
            assert outcome.action is None or outcome.action in text.casefold()


def test_a_megabyte_is_classified_quickly():
    for text in ("a" * 1_000_000, json.dumps({"thought": "b" * 1_000_000}), "{" * 1_000_000):
        begun = time.perf_counter()
        for prompts in (COMPACT, FULL):
            with pytest.raises(ParseError):
                parse_reply(text, reply_form(prompts, "policy"), ACTIONS)
        assert time.perf_counter() - begun < 0.5


@pytest.mark.parametrize("number", [1.01, -2, "70", 1e5])
def test_a_number_off_the_scale_is_refused_not_clipped(number):
    text = json.dumps({"thoughts": "", "evaluation": "X is ahead.", "worth": number})
    with pytest.raises(ParseError, match=r"does not lie between -1 and 1"):
        parse_reply(text, reply_form(BOARD, "value"))
    assert parse_reply(text, reply_form(FULL, "value")).number == float(number)
    with pytest.raises(ParseError, match=r"does not lie between -1e\+06 and 1e\+06"):
        parse_reply(text.replace(json.dumps(number), "1e300"), reply_form(FULL, "value"))


def test_a_tab_or_a_line_end_within_a_text_means_itself():
    """Constrained decoders let a tab through, and models copy line ends from what they read."""
    text = '{"thoughts": "a\tb\nc", "evaluation": "X\tis ahead.", "worth": 0.5}'
    found = parse_reply(text, reply_form(BOARD, "value"))
    assert (found.text, found.thought, found.number) == ("X\tis ahead.", "a\tb\nc", 0.5)
