"""Hymba for transformers against numbers from the official code (golden_hymba/README.md), and against itself."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import nlrl_backbones  # noqa: F401  registers the architecture with transformers
from nlrl_backbones.hymba.config import HymbaConfig

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


@pytest.mark.parametrize("k", PROMPTS)
def test_loss_equals_the_official_one(model, golden, k):
    ids = golden[f"prompt.{k}.input_ids"][None]
    if ids.shape[1] == 1:
        pytest.skip("one token has no next-token loss")
    with torch.no_grad():
        loss = model(ids, labels=ids).loss
    assert loss.item() == pytest.approx(CASES["cases"][k]["loss"], abs=1e-5)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_hidden_states_and_branches_equal_the_official_ones(model, golden):
    captured = {}

    def record(name, pick):
        def hook(module, arguments, output):
            captured[name] = pick(arguments, output)

        return hook

    handles = []
    for i in (0, 1, 2):
        mixer = model.model.layers[i].mamba
        for module, name in (
            (mixer.pre_avg_layernorm1, "attn_out"),
            (mixer.pre_avg_layernorm2, "scan_out"),
        ):
            handles.append(module.register_forward_hook(record(f"layer{i}.{name}", lambda args, out: args[0][0])))
        handles.append(mixer.register_forward_hook(record(f"layer{i}.mixer_out", lambda args, out: out[0][0])))
    last = model.model.layers[-1]
    handles.append(last.register_forward_hook(record("last_block_out", lambda args, out: out[0][0])))
    with torch.no_grad():
        output = model(golden["prompt.6.input_ids"][None], output_hidden_states=True)
    for handle in handles:
        handle.remove()
    assert len(output.hidden_states) == 9
    for i, hidden in enumerate(output.hidden_states):
        close(hidden[0], golden[f"hidden.6.{i}"][META:])
    close(captured.pop("last_block_out"), golden["hidden.6.last_block_out"])
    for name, value in captured.items():
        close(value, golden[f"debug.6.{name}"])


def test_cache_after_prefill_equals_the_official_one(model, golden):
    with torch.no_grad():
        cache = model(golden["prompt.4.input_ids"][None], use_cache=True).past_key_values
    for i, layer in enumerate(cache.layers):
        root = f"cache.4.prefill.layer{i}"
        close(layer.scan_BCN[0], golden[f"{root}.ssm"])
        close(layer.conv_BKC[0].T, golden[f"{root}.conv"][:, 1:])  # the oldest of the official four is not needed
        if model.config.is_consumer(i):
            assert layer.keys_BGSD is None
            assert f"{root}.key" not in golden
        else:
            close(layer.keys_BGSD[0], golden[f"{root}.key"])
            close(layer.values_BGSV[0], golden[f"{root}.value"])


def test_any_number_of_tokens_may_follow_on_a_filled_cache(model, golden):
    ids = golden["prompt.7.input_ids"][None]
    with torch.no_grad():
        expected, cache, parts, begin = model(ids).logits, None, [], 0
        for size in (1, 20, 2, 24):
            output = model(ids[:, begin : begin + size], past_key_values=cache, use_cache=True)
            cache, begin = output.past_key_values, begin + size
            parts.append(output.logits)
    assert begin == ids.shape[1] == cache.get_seq_length()
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows_alone(model, golden, side):
    rows = [golden[f"prompt.{k}.input_ids"] for k in PROMPTS]
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    places = [slice(width - len(row), None) if side == "left" else slice(0, len(row)) for row in rows]
    for k, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[k, place], mask[k, place] = row, 1
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
    for k, place in enumerate(places):
        torch.testing.assert_close(logits[k, place], golden[f"prompt.{k}.logits"], atol=2e-4, rtol=1e-4)


def test_a_left_padded_batch_generates_what_each_row_does(model, golden):
    rows = [golden[f"prompt.{k}.input_ids"] for k in GREEDY]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=24, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    for row, k in zip(out, GREEDY, strict=True):
        assert row[width:].tolist() == golden[f"prompt.{k}.greedy_recompute_ids"].tolist()


def test_beam_search_reorders_the_cache(model, golden):
    ids = golden["prompt.2.input_ids"][None]
    beams = [
        model.generate(
            ids, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=cached, eos_token_id=None, pad_token_id=0
        )
        for cached in (True, False)
    ]
    assert beams[0].tolist() == beams[1].tolist()


def test_gradient_checkpointing_gives_the_same_gradients(golden):
    ids = golden["prompt.4.input_ids"][None]
    gradients = []
    for checkpointing in (False, True):
        model = AutoModelForCausalLM.from_pretrained(GOLDEN, dtype=torch.float32).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_initialisation_is_the_official_one():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(HymbaConfig.from_pretrained(GOLDEN))
    mixer = model.model.layers[0].mamba
    assert model.model.memory_tokens.float().std().item() == pytest.approx(1.0, rel=0.2)
    assert model.model.embed_tokens.weight.float().std().item() == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(mixer.A_log[0][3].float().exp(), torch.arange(1.0, 9.0), atol=0.05, rtol=0)
    assert bool((mixer.D[0] == 1).all())
    assert bool((mixer.dt_proj[0].bias == 0).all())
    assert model.lm_head.weight is model.model.embed_tokens.weight
