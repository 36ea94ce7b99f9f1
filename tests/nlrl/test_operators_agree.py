"""What many decisions agree on."""

from dataclasses import replace

import pytest
from small_runs import play

from nlrl.config import load_config
from nlrl.operators.agree import agreed
from nlrl.policy import policy_question
from nlrl.store import RunReader
from nlrl.store_loops import dataset
from nlrl.types import CallId, ImprovedPolicy, Situation


def decided(moves: str, histories: list[tuple[str, ...]], player: str = "player"):
    """(situations, choices): a letter a choice, "-" for none."""
    situations = [Situation(h, CallId(g, 0, "policy"), ("u", "d"), player) for g, h in enumerate(histories)]
    return situations, [None if m == "-" else ImprovedPolicy(m, f"{m}{g}") for g, m in enumerate(moves)]


def kept(choices):
    return [None if choice is None else choice.thought for choice in choices]


def test_the_majority_of_like_situations_is_kept():
    here, there = ("here",), ("there",)
    assert kept(agreed(*decided("uduud", [here, here, here, there, there]))) == ["u0", None, "u2", None, "d4"]
    assert kept(agreed(*decided("du-d", [here] * 4))) == ["d0", None, None, "d3"]
    assert agreed([], []) == []


def test_of_equally_frequent_moves_the_later_counts():
    assert kept(agreed(*decided("udud", [("here",)] * 4))) == [None, "d1", None, "d3"]


def test_histories_are_told_apart_by_what_the_policy_reads():
    found = decided("udd", [("a", "u", "here"), ("b", "u", "here"), ("c", "u", "here")])
    assert kept(agreed(*found)) == ["u0", "d1", "d2"]
    assert kept(agreed(*found, items=1)) == [None, "d1", "d2"]
    assert kept(agreed(*found, items=1, once=True)) == [None, None, "d2"]
    other = [replace(found[0][0], player="other"), *found[0][1:]]
    assert kept(agreed(other, found[1], items=1)) == ["u0", "d1", "d2"]


def test_every_situation_has_a_choice_or_none():
    situations, choices = decided("u", [("here",)])
    with pytest.raises(ValueError, match="zip"):
        agreed(situations, choices * 2)


def test_a_policy_may_read_less_than_it_is_given():
    situation = Situation(("a", "u", "b", "d", "c"), CallId(0, 0, "policy"), ("u", "d"))
    shown = [policy_question(situation, items).variables["history"] for items in (None, 1, 3, 4)]
    assert shown == ["a\nu\nb\nd\nc", "c", "b\nd\nc", "b\nd\nc"]


def test_a_loop_teaches_each_place_once_from_the_last_iterations(tmp_path):
    more = {
        "engine.kind": "oracle", "env.map": "umaze", "look_ahead.variations": 1, "look_ahead.steps": 1,
        "training.iterations": 3, "training.evaluation_games": 2, "env.policy_items": 1, "training.agreed": True,
        "training.every_occurrence": False, "training.policy_buffer": 2,
    }  # fmt: skip
    play(tmp_path, "agreed", load_config("maze_policy_iteration", more))
    with RunReader.open(tmp_path / "agreed") as run:
        taught = [list(dataset(run, iteration, "policy")) for iteration in (1, 2, 3)]
        asked = [
            c.request.messages[-1].content for c in run.calls() if c.request.call and c.request.call.role == "policy"
        ]
    for examples in taught:
        prompts = [example.messages for example in examples]
        assert len(prompts) == len(set(prompts)) == 6, "umaze has six cells beside the goal"
    assert max(game // 10_000_000 for example in taught[2] for game in example.sources) == 3
    assert {one.messages[-1][1] for one in taught[0]} >= set(asked), "it is asked as it was taught"
