"""Every record of a run survives the way to JSON and back, unchanged."""

import json
import math
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl import codec
from nlrl.engine.base import Completion, Constraint, EngineInfo, Request
from nlrl.types import Decision, Event, GameEnd, GameStart, Step

RECORDS = (Decision, Step, GameStart, GameEnd, Request, Completion, Constraint, EngineInfo)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_round_trip(record: type, data: st.DataObject) -> None:
    value = data.draw(st.from_type(record))
    text = codec.dumps(value)
    assert text.isascii()
    assert repr(codec.loads(text, record)) == repr(value)


@settings(max_examples=40, deadline=None)
@given(event=st.one_of(st.from_type(Step), st.from_type(GameStart), st.from_type(GameEnd)))
def test_a_union_of_records_is_told_apart_by_its_type(event: Event) -> None:
    back = codec.loads(codec.dumps(event, Event), Event)  # type: ignore[arg-type]
    assert type(back) is type(event)
    assert repr(back) == repr(event)


@dataclass(frozen=True)
class Odd:
    pair: tuple[int, str]
    number: float
    table: dict[str, tuple[float, ...]]
    mode: Literal["a", "b"] = "a"
    maybe: int | None = None


def test_floats_that_json_lacks_and_lone_surrogates() -> None:
    odd = Odd((1, "\ud800 \x1b[2J"), -math.inf, {"x": (math.nan, math.inf, 0.1)})
    text = codec.dumps(odd)
    assert json.loads(text)["number"] == "-inf"
    assert repr(codec.loads(text, Odd)) == repr(odd)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Not JSON"),
        ("[1]", "is not a Odd"),
        ('{"pair":[1,"x"],"number":1,"table":{},"colour":1}', "no field 'colour'"),
        ('{"pair":[1],"number":1,"table":{}}', "1 items do not fit"),
        ('{"pair":[true,"x"],"number":1,"table":{}}', "True is not a int"),
        ('{"pair":[1,"x"],"number":"one","table":{}}', "'one' is not a float"),
        ('{"pair":[1,"x"],"number":1,"table":{},"mode":"c"}', "none of"),
        ('{"pair":[1,"x"],"number":1,"table":{},"maybe":"c"}', "fits none of"),
        ('{"number":1,"table":{}}', "cannot be read"),
        ("[" * 100_000, "Not JSON"),
    ],
)
def test_data_of_another_shape_is_refused(text: str, says: str) -> None:
    with pytest.raises(codec.CodecError, match=says):
        codec.loads(text, Odd)


def test_what_is_no_record_is_not_written() -> None:
    with pytest.raises(TypeError, match="cannot hold a set"):
        codec.encode({1, 2})
