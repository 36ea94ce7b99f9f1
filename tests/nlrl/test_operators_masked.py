"""Masked improvement, and questions asked once."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from nlrl.ask import Asker, Question
from nlrl.engine.base import Completion
from nlrl.engine.oracle import OracleEngine
from nlrl.operators.improve import improve_all, tied
from nlrl.operators.masked import Mask, Models, improve_masked, masked_actions, unique
from nlrl.operators.once import ask_once
from nlrl.types import CallId, Candidate, ImprovedPolicy, LanguageValue, Situation
from nlrl_prompts import load

ARITHMETIC = load("arithmetic", "line")
MOVES = ("left", "right", "stay")
POLICY = {"cell 1": {"left": 0.6, "right": 0.3, "stay": 0.1}, "cell 2": {"stay": 1.0}}
VALUES = {
    "cell 1\nleft": -3.0, "cell 1\nright": -1.0, "cell 1\nstay": -2.0,
    "cell 2\nleft": -2.0, "cell 2\nright": 0.0, "cell 2\nstay": -1.0,
    "cell 3\nleft": -1.0, "cell 3\nright": -1.0, "cell 3\nstay": -2.0,
}  # fmt: skip


class Watching(OracleEngine):
    def __init__(self, values=VALUES, policy=POLICY):
        super().__init__(values, policy)
        self.asked = []

    async def generate(self, requests):
        self.asked.extend(requests)
        return await super().generate(requests)

    @property
    def roles(self):
        return Counter(r.call.role for r in self.asked)


def run(coroutine):
    return asyncio.run(coroutine)


def at(cell, game, step=0):
    return Situation((f"cell {cell}\n",), CallId(game, step, "policy"), MOVES)


def models(engine, seed=0):
    ask = Asker(engine, ARITHMETIC, "", seed=seed)
    return Models(ask, ask, ask)


def chosen(found) -> list[ImprovedPolicy]:
    assert None not in found.choices_S
    return list(found.choices_S)


def test_all_legal_moves_are_the_argmax_over_all():
    engine = Watching()
    found = run(improve_masked([at(1, 0), at(2, 1)], Mask(samples=0), models=models(engine)))
    assert [c.action for c in chosen(found)] == ["right", "right"]
    assert {c.action: c.value.number for c in chosen(found)[0].candidates_A} == {"left": -3, "right": -1, "stay": -2}
    assert engine.roles == {"value": 6, "improve": 2}
    assert found.calls == 8


def test_only_what_the_policy_draws_is_considered():
    engine = Watching()
    found = run(improve_masked([at(2, 0)], Mask(samples=10), models=models(engine)))
    assert chosen(found)[0].action == "stay"
    assert engine.roles == {"policy": 10, "value": 1, "improve": 1}


def test_the_most_frequent_of_the_samples_are_kept():
    ask = models(Watching()).policy
    all_drawn = run(masked_actions([at(1, 0)], Mask(samples=200), ask=ask)).votes_S[0]
    assert list(all_drawn) == ["left", "right", "stay"]
    assert sum(all_drawn.values()) == 200
    assert all_drawn["left"] / 200 == pytest.approx(0.6, abs=0.12)
    assert list(run(masked_actions([at(1, 0)], Mask(200, top=2), ask=ask)).votes_S[0]) == ["left", "right"]
    found = run(improve_masked([at(1, 0)], Mask(200, top=1), models=models(Watching())))
    assert chosen(found)[0].action == "left"


def test_equal_situations_are_worked_on_once_and_share_the_choice():
    engine = Watching()
    many = [at(1, g) for g in range(256)] + [at(2, g, 1) for g in range(10)]
    found = run(improve_masked(many, Mask(samples=4), models=models(engine), rng=np.random.default_rng(0)))
    assert engine.roles["policy"] == 8
    assert engine.roles["improve"] == 2
    assert found.calls == len(engine.asked)
    assert len(found.choices_S) == 266
    assert len({id(c) for c in found.choices_S[:256]}) == 1
    assert unique(many) == [many[0], many[256]]


def test_a_sample_without_use_is_no_vote_and_a_situation_without_votes_no_choice():
    class Mumbling(OracleEngine):
        async def generate(self, requests):
            return [Completion("mumble") for _ in requests]

    ask = Asker(Mumbling({}), ARITHMETIC, "", attempts=2, seed=0)
    found = run(improve_masked([at(1, 0)], Mask(samples=3), models=Models(ask, ask, ask)))
    assert found.choices_S == (None,)
    assert len(found.failures) == found.calls == 6


def test_candidates_are_shuffled_alike_for_equal_situations_and_otherwise_differently():
    engine = Watching()
    candidates = [Candidate(m, LanguageValue(f"{v}", v)) for m, v in zip(MOVES, (-1.0, -2.0, -3.0), strict=True)]
    many = [at(cell, cell) for cell in range(40)]
    found = run(
        improve_all([*many, at(7, 99)], [candidates] * 41, ask=models(engine).improver, rng=np.random.default_rng(0))
    )
    assert len(engine.asked) == 40
    assert len({r.messages[-1].content for r in engine.asked}) == 6
    assert {c.action for c in chosen(found)} == {"left"}


def test_moves_with_the_same_number_are_tied():
    engine = Watching()
    (choice,) = chosen(run(improve_masked([at(3, 0)], Mask(samples=0), models=models(engine))))
    assert choice.action == "left"
    assert tied(choice) == ("left", "right")
    wordy = ImprovedPolicy("a", "", (Candidate("a", LanguageValue("good")), Candidate("b", LanguageValue("good"))))
    assert tied(wordy) == ("a",)


def test_equal_questions_are_asked_once_unless_they_are_samples():
    def policy(variation, text="cell 1"):
        return Question(CallId(0, 0, "policy", variation=variation), {"history": text}, MOVES)

    engine = Watching()
    ask = Asker(engine, ARITHMETIC, "", seed=0)
    found = run(ask_once(ask, [policy(0), policy(1), policy(0, "cell 2")]))
    assert len(engine.asked) == len(found.distinct) == found.calls == 2
    assert found.answers_I[0] is found.answers_I[1]
    found = run(ask_once(ask, [policy(k) for k in range(5)], samples=True))
    assert len(found.distinct) == 5


def test_a_mask_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one move"):
        Mask(samples=3, top=0)
