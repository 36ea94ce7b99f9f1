"""SmolLM2-135M-Instruct from GGUF: sensible, the same in transformers and in vLLM, its published chat format."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_model import model_folder

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.real]

CHAT = [
    ("user", "I need help with my order"),
    ("assistant", "I'd be happy to help. Could you provide your order number?"),
    ("user", "It's ORDER-123"),
]
PUBLISHED = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nI need help with my order<|im_end|>\n"
    "<|im_start|>assistant\nI'd be happy to help. Could you provide your order number?<|im_end|>\n"
    "<|im_start|>user\nIt's ORDER-123<|im_end|>\n<|im_start|>assistant\n"
)
"""As the publisher's course on agents prints it (unit 1, "Messages and Special Tokens")."""
ASKED = {"What is the capital of France?": "Paris", "What is 2+3?": "5", "Which planet do we live on?": "Earth"}


@pytest.fixture(scope="module")
def folder() -> Path:
    return model_folder()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Any]:
    from nlrl.engine.vllm import VllmEngine

    running = VllmEngine(str(folder), arguments={"max_model_len": 2048, "max_num_seqs": 8})
    yield running
    asyncio.run(running.close())


def test_the_chat_format_is_the_published_one_with_one_first_token(folder: Path) -> None:
    from transformers import AutoTokenizer

    from nlrl.engine.base import Message
    from nlrl.engine.local import encode_messages

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = encode_messages(tokenizer, [Message(role, text) for role, text in CHAT])  # type: ignore[arg-type]
    assert tokenizer.decode(ids) == PUBLISHED
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    assert ids.count(tokenizer.bos_token_id) == PUBLISHED.count("<|im_start|>")
    assert tokenizer.tokenize("a.\n\n5  12") == ["a", ".", "ĊĊ", "5", "ĠĠ", "1", "2"]


def test_it_answers_simple_questions_as_in_transformers_and_stops(engine: Any, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from nlrl.engine.base import Message, Request, Sampling

    how = Sampling(max_tokens=24, logprobs=True)
    requests = [Request((Message("user", text),), how) for text in ASKED]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.dtype == torch.float32
    for (text, word), got in zip(ASKED.items(), asyncio.run(engine.generate(requests)), strict=True):
        assert word in got.text, text
        assert got.finish_reason == "stop", text
        ids = torch.tensor([[*got.prompt_token_ids, *got.token_ids]])
        with torch.no_grad():
            rows_TV = model(ids).logits[0, len(got.prompt_token_ids) - 1 : -1].log_softmax(-1)
        assert rows_TV.argmax(-1).tolist() == list(got.token_ids), text
        assert got.logprobs == pytest.approx(rows_TV.max(-1).values.tolist(), abs=1e-3), text
