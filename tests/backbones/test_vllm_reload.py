"""Reloads in place, on a CPU, of what vLLM keeps packed copies of: all of it follows the new weights."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import engines, generate

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

PROMPTS, STEPS = [[5, 9, 60, 33, 2, 71, 8], [90, 4, 4, 17]], 6
SMALL = {"kv_cache_memory_bytes": 16 << 20, "max_model_len": 64}


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    with engines() as make:
        yield lambda folder, **settings: make(folder, **(SMALL | settings))


def reload(llm: Any, folder: Path) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
    llm.reset_prefix_cache()


def assert_follows(llm: Any, folder: Path, tolerance: float = 2e-4) -> None:
    """The greedy continuations and their log-probabilities are those of transformers in float32 with these weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for ids, output in zip(PROMPTS, generate(llm, PROMPTS, STEPS, logprobs=0), strict=True):
        tokens = list(output.outputs[0].token_ids)
        found = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
        with torch.no_grad():
            rows_TV = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        assert found == pytest.approx(rows_TV.max(-1).values.tolist(), abs=tolerance)


def write_llama(folder: Path, seed: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapters", [False, True])
def test_a_tied_head_of_vllms_own_llama_follows(start: Callable[..., Any], tmp_path: Path, adapters: bool) -> None:
    old, new = write_llama(tmp_path / "old", 0), write_llama(tmp_path / "new", 1)
    llm = start(old, enable_lora=adapters, max_lora_rank=8)
    assert_follows(llm, old)
    for folder in (new, old):
        reload(llm, folder)
        assert_follows(llm, folder)
