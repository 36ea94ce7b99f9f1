"""Sequences are the engine's prompt, the reply as drawn and an end; the loss is on the reply; nothing is cut."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tiny_tokenizer import save_tokenizer
from transformers import AutoTokenizer

from nlrl.distill.dataset import IGNORED, TokenPair, encode_examples, end_tokens, pad, same_tokenizer
from nlrl.engine.base import Message, Request, Sampling
from nlrl.engine.local import encode_request
from nlrl.errors import ConfigError
from nlrl.types import Example

MESSAGES = (("system", "Play."), ("user", "the board is empty\nmove?"))
EXAMPLE = Example("1/policy/0/0//0", "policy", MESSAGES, "the centre: 5", sources=(3, 4))
TEMPLATES = {
    "begins": "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: ",
    "plain": "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
    "none": None,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(made, 320)
    return made


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prompt_is_what_the_engine_sends_and_begins_once(folder, template):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES[template]
    (pair,) = encode_examples([EXAMPLE], tokenizer, context=512, end_ids=(2,))
    request = Request(tuple(Message(*m) for m in MESSAGES), Sampling(max_tokens=9))  # type: ignore[arg-type]
    assert list(pair.prompt) == encode_request(tokenizer, request, 512, "m")
    assert pair.prompt.count(tokenizer.bos_token_id) == (1 if template == "begins" else 0)


def test_the_reply_is_taken_as_drawn_and_ends_once(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    drawn = (70, 71, 72)  # spelled letter by letter; the tokenizer would merge them
    examples = [EXAMPLE, replace(EXAMPLE, target_token_ids=drawn), replace(EXAMPLE, target_token_ids=(*drawn, 9))]
    own = encode_examples(examples, tokenizer, context=512, end_ids=(2, 9))
    text = tuple(tokenizer.encode("the centre: 5"))
    assert [pair.reply for pair in own] == [(*text, 2), (70, 71, 72, 2), (70, 71, 72, 9)]
    others = encode_examples(examples, tokenizer, context=512, end_ids=(2, 9), as_drawn=False)
    assert {pair.reply for pair in others} == {(*text, 2)}


def test_what_is_too_long_or_weighed_is_one_sentence(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (pair,) = encode_examples([EXAMPLE], tokenizer, context=512, end_ids=(2,))
    assert encode_examples([EXAMPLE], tokenizer, context=len(pair), end_ids=(2,)) == [pair]
    with pytest.raises(ConfigError, match=rf"Example '1/policy/0/0//0' has {len(pair)} tokens and the student reads"):
        encode_examples([EXAMPLE], tokenizer, context=len(pair) - 1, end_ids=(2,))
    with pytest.raises(ConfigError, match=r"has weight 0\.5; only examples of weight 1"):
        encode_examples([replace(EXAMPLE, weight=0.5)], tokenizer, context=512, end_ids=(2,))


def test_labels_stand_on_the_reply_and_its_end_alone():
    batch = pad([TokenPair((5, 6, 7), (8, 2)), TokenPair((5,), (2,))], padding=2)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 2] + [2] * 11, [5, 2] + [2] * 14]
    assert batch["labels"].tolist() == [[IGNORED] * 3 + [8, 2] + [IGNORED] * 11, [IGNORED, 2] + [IGNORED] * 14]


def test_end_tokens_are_the_tokenizers_then_the_settings(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert end_tokens(folder, tokenizer) == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert end_tokens(tmp_path, tokenizer) == (2, 7)


def test_tokenizers_are_told_apart_by_their_vocabulary_not_their_template(folder, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    AutoTokenizer.from_pretrained(folder, chat_template=TEMPLATES["plain"]).save_pretrained(same)
    save_tokenizer(other, 310)
    assert same_tokenizer(folder, same)
    assert not same_tokenizer(folder, other)
