"""Hymba for transformers against numbers from the official code (golden_hymba/README.md), and against itself."""

import json
from pathlib import Path

import nlrl_backbones  # noqa: F401  registers the architecture with transformers
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

GOLDEN = Path(__file__).parent / "golden_hymba"
CASES = json.loads((GOLDEN / "cases.json").read_text())
META, WINDOW = 5, 16
PROMPTS = range(8)
GREEDY = (0, 2, 4, 6)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(GOLDEN, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model_f64():
    return AutoModelForCausalLM.from_pretrained(GOLDEN, dtype=torch.float64).eval()


@pytest.mark.parametrize("k", PROMPTS)
def test_logits_equal_the_official_float32(model, golden, k):
    with torch.no_grad():
        logits = model(golden[f"prompt.{k}.input_ids"][None]).logits[0]
    torch.testing.assert_close(logits, golden[f"prompt.{k}.logits"], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("k", PROMPTS)
def test_logits_equal_the_official_float64(model_f64, golden, k):
    with torch.no_grad():
        logits = model_f64(golden[f"prompt.{k}.input_ids"][None]).logits[0]
    torch.testing.assert_close(logits, golden[f"prompt.{k}.logits_f64"], atol=1e-10, rtol=0)


@pytest.mark.parametrize("k", GREEDY)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_continuation_is_the_official_full_pass_one(model, golden, k, use_cache):
    ids = golden[f"prompt.{k}.input_ids"][None]
    out = model.generate(
        ids, max_new_tokens=24, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    assert out[0, ids.shape[1] :].tolist() == golden[f"prompt.{k}.greedy_recompute_ids"].tolist()
