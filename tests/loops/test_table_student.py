"""The oracle's student: what it was taught last about a prompt is what the oracle says."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrl.engine.base import Message, Request, Sampling
from nlrl.engine.oracle import OracleEngine, TableStudent
from nlrl.errors import EngineError
from nlrl.learn import Student
from nlrl.types import Example

V = "value\nfor player\ncell 1"
PI = "policy\nactions left, right, stay\ncell 1"
REPLY = {"left": "0.5: left", "right": "-1.0: right"}


def example(prompt, target, weight=1.0):
    role = "value" if prompt == V else "policy"
    return Example("", role, (("user", prompt),), target, weight=weight)


def teach(student, *examples, iteration=1):
    return asyncio.run(student.learn(examples, iteration=iteration, student="value", seed=0))


def say(engine, prompt, temperature=1.0, seed=0):
    (completion,) = asyncio.run(
        engine.generate([Request((Message("user", prompt),), Sampling(temperature, seed=seed))])
    )
    return completion.text


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8))
def test_a_value_is_the_mean_of_what_was_taught(numbers):
    student = TableStudent()
    trained = teach(student, *(example(V, repr(number)) for number in numbers))
    assert trained.examples == trained.tokens == len(numbers)
    engine = OracleEngine({"cell 1": 7.0}, student=student)
    assert float(say(engine, V)) == pytest.approx(sum(numbers) / len(numbers), abs=1e-9)


def test_a_lesson_replaces_the_last_one_about_its_prompt_and_no_other():
    student, other = TableStudent(), V.replace("1", "2")
    engine = OracleEngine({"cell 1": 7.0}, student=student, unknown=-3.0)
    before = engine.describe().fingerprint
    assert (say(engine, V), say(engine, other)) == ("7.0", "-3.0")
    teach(student, example(V, "1.0"), example(V, "4.0", weight=2.0), example(other, "5.0"))
    assert (say(engine, V), say(engine, other)) == ("3.0", "5.0")
    assert engine.describe().fingerprint != before
    then = OracleEngine({}, student=student.copy())
    teach(student, example(V, "0.0"), iteration=2)
    assert (say(engine, V), say(engine, other)) == ("0.0", "5.0")
    assert say(then, V) == "3.0", "a copy stays what it was"
    with pytest.raises(EngineError, match="no value for the state 'cell 3'"):
        say(OracleEngine({}, student=student), V.replace("1", "3"))


def test_a_move_is_drawn_from_what_was_taught_and_at_temperature_0_the_likeliest():
    student = TableStudent()
    engine = OracleEngine({}, student=student)
    assert say(engine, PI, temperature=0) == "table: left"
    assert {say(engine, PI, seed=seed) for seed in range(40)} == {"table: left", "table: right", "table: stay"}
    teach(student, example(PI, REPLY["right"]), *[example(PI, REPLY["left"])] * 3)
    drawn = [say(engine, PI, seed=seed) for seed in range(400)]
    # 300 expected; three standard deviations are 26.
    assert drawn.count(REPLY["left"]) == pytest.approx(300, abs=26)
    assert set(drawn) == set(REPLY.values())
    assert say(engine, PI, temperature=0) == REPLY["left"]
    curious = OracleEngine({}, student=student, explore=0.5)
    drawn = [say(curious, PI, seed=seed) for seed in range(400)]
    assert sum(reply.startswith("table") for reply in drawn) == pytest.approx(200, abs=30)
    assert say(curious, PI, temperature=0) == REPLY["left"]


def test_it_is_a_student():
    assert isinstance(TableStudent(), Student)
