"""Replies keep the token ids that the engine drew, from the engine to what a student learns, but once in the record."""

import asyncio

import pytest

from nlrl import codec
from nlrl.ask import Asker
from nlrl.engine.base import Completion
from nlrl.engine.oracle import OracleEngine
from nlrl.operators.improve import improve_all
from nlrl.policy import act
from nlrl.types import CallId, Candidate, Decision, Group, ImprovedPolicy, LanguageValue, LookAhead, Situation
from nlrl.values.direct import language_values
from nlrl.values.monte_carlo import language_monte_carlo
from nlrl_prompts import load

HERE = Situation(("cell 1\n",), CallId(0, 0, "policy"), ("left", "right"))
GAME = LookAhead(("cell 1\n", "left", "cell 0\n"), ("left",), (-1.0,), "Over.")


def ids_of(text):
    return tuple(map(ord, text))


class Drawing(OracleEngine):
    """The oracle, saying which tokens it drew; the first reply to each prompt cannot be used."""

    def __init__(self, spoiled=False):
        super().__init__({"cell 1": 0.5, "cell 1\nleft": -1.0, "cell 1\nright": 1.0})
        self.spoiled = spoiled

    async def generate(self, requests):
        if self.spoiled:
            self.spoiled = False
            return [Completion("?", token_ids=(0,)) for _ in requests]
        found = await super().generate(requests)
        return [Completion(c.text, token_ids=ids_of(c.text)) for c in found]


def asker(spoiled=False):
    return Asker(Drawing(spoiled), load("arithmetic", "line"), "")


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.mark.parametrize("spoiled", [False, True])
def test_every_operator_keeps_the_ids_of_the_reply_it_used(spoiled):
    decision = run(act(asker(spoiled), HERE.history, HERE.actions, HERE.call))
    assert decision.choice is not None
    assert decision.choice.token_ids == ids_of(decision.choice.thought)
    candidates = [Candidate("left", LanguageValue("-1.0", -1.0)), Candidate("right", LanguageValue("1.0", 1.0))]
    (improved,) = run(improve_all([HERE], [candidates], ask=asker(spoiled))).choices_S
    assert improved is not None
    assert improved.token_ids == ids_of(improved.thought) == ids_of("1.0: right")
    direct = run(language_values([(HERE, None), (HERE, "left")], ask=asker(spoiled))).evaluations
    sampled = run(language_monte_carlo([Group(HERE, "left", (GAME,))], ask=asker(spoiled))).evaluations
    assert [e.reply for e in (*direct, *sampled)] == ["0.5", "-1.0", "-1.0"]
    assert all(e.token_ids == ids_of(e.reply) for e in (*direct, *sampled))


def test_decisions_are_recorded_without_ids_and_old_ones_still_read():
    choice = ImprovedPolicy("left", "1.0: left", token_ids=(5, 6))
    text = codec.dumps(Decision(0, 0, HERE.history, choice))
    assert "token_ids" not in text
    old = (
        '{"game":0,"step":0,"history":["cell 1\\n"],"choice":{"action":"left","thought":"1.0: left",'
        '"candidates_A":[]},"failures":[],"calls":0,"actions":[],"player":"player","own":true}'
    )
    assert text == old
    back = codec.loads(old, Decision)
    assert back == Decision(0, 0, HERE.history, choice)
    assert back.choice is not None
    assert back.choice.token_ids == ()
