"""Differential Transformer for transformers against Microsoft's modules, transformers' DiffLlama, and itself."""

import json
from typing import Any

import pytest
import torch
from diff_golden import ATTENTION, DIFFLLAMAS, FOLDERS, load, official
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, DiffLlamaForCausalLM

import nlrl_backbones  # noqa: F401  registers the architecture with transformers
from nlrl_backbones.check import check_backbone
from nlrl_backbones.convert import convert
from nlrl_backbones.diff_transformer.config import DiffTransformerConfig
from nlrl_backbones.diff_transformer.heads import lambda_init, lambda_of
from nlrl_backbones.diff_transformer.model import DiffAttention

ATTENTION_CASES = json.loads((ATTENTION / "attn.json").read_text())["cases"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each golden model, converted to our layout."""
    root = tmp_path_factory.mktemp("diff")
    for name in FOLDERS:
        family = "diffllama" if name in DIFFLLAMAS else "diff"
        convert(family, official(name, root / "official" / name), root / name)
    return {name: root / name for name in FOLDERS}


@pytest.fixture(scope="module")
def models(folders):
    loaded = {}

    def get(name, dtype=torch.float32):
        if (name, dtype) not in loaded:
            loaded[name, dtype] = AutoModelForCausalLM.from_pretrained(folders[name], dtype=dtype).eval()
        return loaded[name, dtype]

    return get


@pytest.fixture(scope="module", params=FOLDERS)
def golden(request):
    return load(request.param)


def logits_of(model, ids, **settings):
    with torch.no_grad():
        return model(torch.tensor([ids]), **settings).logits[0]


def test_logits_equal_the_official_float32(models, golden):
    for k, ids in enumerate(golden.prompts):
        expected = golden.tensors[f"prompt{k}.logits"]
        torch.testing.assert_close(logits_of(models(golden.name), ids), expected, atol=2e-4, rtol=0)


def test_logits_equal_the_official_float64(models, golden):
    # DiffLlama's float64 run has float64 angles; ours, like every other run, float32 ones.
    tolerance = 1e-4 if golden.name in DIFFLLAMAS else 1e-11
    for k, ids in enumerate(golden.prompts):
        expected = golden.tensors[f"prompt{k}.logits_f64"]
        torch.testing.assert_close(logits_of(models(golden.name, torch.float64), ids), expected, atol=tolerance, rtol=0)


def test_hidden_states_equal_the_official_ones(models, golden):
    model, found, handles = models(golden.name), {}, []

    def record(module, name, pick):
        def hook(module, arguments, output):
            found[name] = pick(arguments, output)[0]

        handles.append(module.register_forward_hook(hook))

    for i, layer in enumerate(model.model.layers):
        record(layer.self_attn, f"layers.{i}.attn_in", lambda arguments, output: arguments[0])
        record(layer.self_attn, f"layers.{i}.attn_out", lambda arguments, output: output)
        record(layer.mlp, f"layers.{i}.mlp_out", lambda arguments, output: output)
        record(layer, f"layers.{i}.out", lambda arguments, output: output)
    with torch.no_grad():
        states = model(torch.tensor([golden.prompts[2]]), output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    found |= {"embed": states[0][0], "final_norm": states[-1][0]}
    expected = {key for key in golden.tensors if key.startswith("prompt2.hidden.")}
    assert {f"prompt2.hidden.{name}" for name in found} == expected
    for name, value in found.items():
        torch.testing.assert_close(value, golden.tensors[f"prompt2.hidden.{name}"], atol=1e-4, rtol=0, msg=name)
    assert len(states) == len(model.model.layers) + 1


def test_lambda_is_the_official_one_and_stays_in_float32(folders):
    for name in ("v1", *DIFFLLAMAS):
        cases = load(name).cases
        model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.bfloat16)
        for i, layer in enumerate(model.model.layers):
            module = layer.self_attn
            vectors = [module.lambda_q1, module.lambda_k1, module.lambda_q2, module.lambda_k2]
            assert {vector.dtype for vector in vectors} == {torch.float32}
            assert lambda_init(i) == pytest.approx(cases["lambda_init"][i], abs=1e-12)
            lam = lambda_of(vectors, lambda_init(i), torch.bfloat16)
            assert lam.item() == pytest.approx(cases["lambda_full"][i], abs=1e-6)
        assert module.q_proj.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_continuation_is_the_official_one(models, golden, use_cache):
    ids = torch.tensor([golden.prompts[golden.continued]])
    out = models(golden.name).generate(
        ids, max_new_tokens=24, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    assert out[0, ids.shape[1] :].tolist() == golden.continuation


def test_loss_equals_that_of_the_official_logits(models, golden):
    for k, ids in enumerate(golden.prompts):
        if len(ids) > 1:
            loss = models(golden.name)(torch.tensor([ids]), labels=torch.tensor([ids])).loss
            assert loss.item() == pytest.approx(-sum(golden.logprobs(k)) / (len(ids) - 1), abs=2e-5)


def attention(case, golden, dtype):
    """Our module with the weights of a stored case."""
    keys = {name: case[name] for name in ("variant", "head_dim", "num_heads", "num_kv_heads")}
    config = DiffTransformerConfig(hidden_size=case["embed_dim"], **keys)
    config._attn_implementation = "sdpa"
    module = DiffAttention(config, case.get("depth", 0)).to(dtype)
    root = f"{case['name']}.w."
    weights = {key.removeprefix(root): x for key, x in golden.items() if key.startswith(root)}
    module.load_state_dict({name.replace("out_proj", "o_proj"): x for name, x in weights.items()})
    return module.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=lambda case: case["name"])
def test_attention_equals_microsofts_modules(case, dtype):
    golden, name = load_file(ATTENTION / "attn.safetensors"), case["name"]
    x, cos, sin = (golden[f"{name}.{key}"].to(dtype) for key in ("x", "cos", "sin"))
    rotary = (cos[None].repeat(1, 1, 2), sin[None].repeat(1, 1, 2))
    with torch.no_grad():
        y = attention(case, golden, dtype)(x, None, rotary, None)
    expected, tolerance = (golden[f"{name}.y"], 2e-5) if dtype == torch.float32 else (golden[f"{name}.y_f64"], 1e-9)
    torch.testing.assert_close(y, expected, atol=tolerance, rtol=0)
    if case["num_heads"] != case["num_kv_heads"] and case["variant"] == "v1":
        assert (y - golden[f"{name}.y_naive"]).abs().max() > 0.5


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows_alone(models, golden, side):
    rows = golden.prompts
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    places = [slice(width - len(row), None) if side == "left" else slice(0, len(row)) for row in rows]
    for k, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[k, place], mask[k, place] = torch.tensor(row), 1
    with torch.no_grad():
        logits = models(golden.name)(ids, attention_mask=mask).logits
    for k, place in enumerate(places):
        torch.testing.assert_close(logits[k, place], golden.tensors[f"prompt{k}.logits"], atol=2e-4, rtol=0)


def test_a_left_padded_batch_generates_what_each_row_does(models, golden):
    rows = [golden.prompts[1], golden.prompts[golden.continued]]
    width = max(map(len, rows)) + 3
    ids = torch.stack([F.pad(torch.tensor(row), (width - len(row), 0)) for row in rows])
    mask = torch.stack([F.pad(torch.ones(len(row), dtype=torch.long), (width - len(row), 0)) for row in rows])
    out = models(golden.name).generate(
        ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert out[1, width:].tolist() == golden.continuation


def test_any_number_of_tokens_may_follow_on_a_filled_cache(models, golden):
    ids, model, cache, parts, begin = golden.prompts[3], models(golden.name), None, [], 0
    for size in (1, 20, 2, 17):
        with torch.no_grad():
            output = model(torch.tensor([ids[begin : begin + size]]), past_key_values=cache, use_cache=True)
        cache, begin = output.past_key_values, begin + size
        parts.append(output.logits[0])
    assert begin == len(ids) == cache.get_seq_length()
    torch.testing.assert_close(torch.cat(parts), golden.tensors["prompt3.logits"], atol=2e-4, rtol=0)


def test_beam_search_reorders_the_cache(models, golden):
    ids, model = torch.tensor([golden.prompts[2]]), models(golden.name)
    settings = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached, plain = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert cached.tolist() == plain.tolist()


def test_the_contract_of_a_backbone_holds(folders, golden):
    check_backbone(folders[golden.name])


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_microsofts_layout_loads_unchanged_and_is_saved_in_ours(folders, models, name, tmp_path):
    official(name, tmp_path / "official")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "official", output_loading_info=True)
    model, report = loaded
    assert not any(report.values()), report
    converted = models(name).state_dict()
    assert all(value.equal(converted[key]) for key, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "saved")
    saved, ours = (load_file(folder / "model.safetensors") for folder in (tmp_path / "saved", folders[name]))
    assert saved.keys() == ours.keys()
    assert all(saved[key].equal(ours[key]) for key in ours)


@pytest.mark.parametrize("name", DIFFLLAMAS)
def test_logits_and_gradients_equal_those_of_transformers_diffllama(folders, name):
    golden = load(name)
    theirs: nn.Module = DiffLlamaForCausalLM.from_pretrained(FOLDERS[name], dtype=torch.float64)
    ours = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float64)
    ids = torch.tensor([golden.prompts[3]])
    outputs = [model(ids, labels=ids) for model in (theirs, ours)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, atol=1e-4, rtol=0)
    for output in outputs:
        output.loss.backward()
    expected: dict[str, Any] = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    assert expected.keys() == {key for key, _ in ours.named_parameters()}
    parameter: Any
    for key, parameter in ours.named_parameters():
        scale = expected[key].abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), expected[key], atol=1e-4 * scale, rtol=0, msg=key)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_gradients_are_those_of_finite_differences(folders, name):
    model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float64)
    ids = torch.tensor([load(name).prompts[2]])
    model(ids, labels=ids).loss.backward()
    module = model.model.layers[1].self_attn
    generator = torch.Generator().manual_seed(0)
    tensors = [module.q_proj.weight, module.k_proj.weight, module.v_proj.weight, module.o_proj.weight]
    tensors += [module.lambda_proj.weight] if name == "v2" else [module.subln.weight]
    for parameter in tensors:
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slope, losses = (parameter.grad * direction).sum().item(), []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                parameter += step * direction
                losses.append(model(ids, labels=ids).loss.item())
            parameter += 1e-5 * direction
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_gradient_checkpointing_gives_the_same_gradients(folders, golden):
    ids, gradients = torch.tensor([golden.prompts[2]]), []
    for checkpointing in (False, True):
        model = AutoModelForCausalLM.from_pretrained(folders[golden.name]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient)


def test_the_shape_of_the_box_trains_in_bfloat16_autocast_on_padded_batches():
    """float32 weights, bfloat16 products; padding on the right needs no mask, for nothing looks ahead."""
    from nlrl.pretrain.shapes import SHAPES

    torch.manual_seed(0)
    config = AutoConfig.for_model(**SHAPES["diff"], vocab_size=640, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1_746_288, rel=0.03)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for vector in (model.model.layers[0].self_attn.lambda_q1, model.model.layers[7].self_attn.lambda_k2):
        assert 0.05 < vector.std().item() < 0.2
    ids = torch.randint(1, 640, (2, 24), generator=torch.Generator().manual_seed(1))
    ids[1, 10:] = 0
    with torch.no_grad():
        exact = model(ids).logits
        torch.testing.assert_close(model(ids[1:, :10]).logits[0], exact[1, :10], atol=1e-5, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().mean() < 0.02 * exact.abs().mean()
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all()), key
        assert bool((parameter.grad != 0).any()), key
