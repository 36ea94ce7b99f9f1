"""What a record takes on the disk, held against the text of its calls, each call's compressed by itself."""

import hashlib
import json
import random
import re
import zlib

import pytest
from small_runs import config, play

from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.engine.scripted import ScriptedEngine
from nlrl.estimate import shortest_reply
from nlrl.store import Manifest, RunReader, RunStore
from nlrl.store_export import export_chat
from nlrl.store_schema import FILE_NAME

SIZES = [pytest.param(2, 4, id="short"), pytest.param(12, 8, id="full", marks=pytest.mark.torture)]
AT_MOST = 1.2
WORDS = ["".join(random.Random(i).choices("aeioulnrstdm", k=2 + i % 8)) for i in range(600)]
"""A vocabulary without meaning, drawn from evenly: harder to compress than a language."""
PIECE = re.compile(r"\w{1,5}|\W{1,2}")


def token_ids(text: str) -> tuple[int, ...]:
    """As many, and as often the same, as a model's: a piece of a word each, in a vocabulary of 50,000."""
    return tuple(zlib.crc32(piece.encode()) % 50_000 for piece in PIECE.findall(text))


def thoughtful(request: Request) -> Completion:
    """A reply of the form that is asked for, with thirty to ninety words in it, another for each request."""
    asked = "".join(m.content for m in request.messages)
    rng = random.Random(hashlib.sha256(f"{asked}{request.call}".encode()).digest())
    reply = json.loads(shortest_reply(request))
    for name, value in reply.items():
        if name == "action":
            assert request.constraint is not None
            reply[name] = rng.choice(json.loads(str(request.constraint.value))["properties"]["action"]["enum"])
        else:
            words = " ".join(rng.choices(WORDS, k=rng.randrange(15, 45)))
            reply[name] = words if isinstance(value, str) else -rng.randrange(100)
    text = json.dumps(reply)
    ids, prompt = token_ids(text), token_ids(asked)
    return Completion(text, ids, prompt, "stop", None, len(prompt), len(ids), (), True)


@pytest.mark.parametrize(("starts", "variations"), SIZES)
def test_a_record_is_as_small_as_the_text_of_its_calls_compressed(starts, variations, tmp_path, row):
    """The prompts that chat models read, replies of some sentences, the ids of every token: decisions, positions and
    evaluations of all moves come on top of what is held against it."""
    settings = config(
        env__map="double_t", env__starts=starts, look_ahead__variations=variations, look_ahead__steps=3,
        env__options__horizon=8, engine__prompts="full", exact=False,
    )  # fmt: skip
    play(tmp_path, "run", settings, wrap=lambda engine: ScriptedEngine(thoughtful, "full"))
    with RunReader.open(tmp_path / "run") as reader:
        calls = export_chat(reader, tmp_path / "chat.jsonl")
        assert reader.rows("SELECT count(*) FROM calls") == [(calls,)]
        texts = [call["messages"] for call in map(json.loads, (tmp_path / "chat.jsonl").open())]
    said = ["".join(message["content"] for message in spoken).encode() for spoken in texts]
    RunStore.create(tmp_path, "empty", Manifest({}, 0, {}, EngineInfo("scripted", "script", "none"))).finish()
    size, empty = ((tmp_path / name / FILE_NAME).stat().st_size for name in ("run", "empty"))
    plain, each = sum(map(len, said)), sum(len(zlib.compress(one)) for one in said)
    row(
        f"{calls:,} calls with {plain / calls:,.0f} bytes of text each: record {size:,} bytes ({empty:,} when empty), "
        f"{size / each:.2f} times that text compressed call by call, {size / plain:.2f} times it plain"
    )
    assert size - empty < AT_MOST * each
