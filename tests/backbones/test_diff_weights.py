"""The Differential Transformer's configurations, and its checkpoints from one layout into another and back."""

import json
import shutil

import pytest
import torch
from diff_golden import ATTENTION, DIFFLLAMAS, FOLDERS, load, official
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DiffLlamaConfig, DiffLlamaForCausalLM

import nlrl_backbones  # noqa: F401  registers the architecture with transformers
from nlrl_backbones.common.checkpoint import CheckpointError
from nlrl_backbones.convert import convert, family_module
from nlrl_backbones.diff_transformer import weights, weights_diffllama
from nlrl_backbones.diff_transformer.config import DiffTransformerConfig
from nlrl_backbones.diff_transformer.weights_diffllama import config_to_diffllama, v1_to_diffllama

FAMILIES = {name: "diffllama" if name in DIFFLLAMAS else "diff" for name in FOLDERS}


@pytest.mark.parametrize("name", FOLDERS)
def test_there_and_back_changes_no_byte(name, tmp_path):
    family = family_module(FAMILIES[name])
    folder = official(name, tmp_path / "official")
    convert(FAMILIES[name], folder, tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    back = family.to_official(model.config, {key: x.contiguous() for key, x in model.state_dict().items()})
    save_file(back, tmp_path / "back.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "back.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_both_styles_of_configuration_are_read_alike(tmp_path):
    for name in DIFFLLAMAS:
        both = [
            weights_diffllama.read_official(official(name, tmp_path / f"{name}{old}", old_style=old))[0].to_dict()
            for old in (False, True)
        ]
        assert both[0] == both[1]
        written = config_to_diffllama(DiffTransformerConfig(**both[0])).to_dict()
        expected = json.loads((FOLDERS[name] / "config.json").read_text())
        assert {key: written[key] for key in expected if key not in ("transformers_version", "dtype")} == {
            key: value for key, value in expected.items() if key not in ("transformers_version", "dtype")
        }


def test_what_follows_from_microsofts_keys():
    v1, v2 = (DiffTransformerConfig.from_pretrained(FOLDERS[name]) for name in ("v1", "v2"))
    assert (v1.num_hidden_layers, v1.num_attention_heads, v1.num_key_value_heads, v1.head_dim) == (4, 8, 8, 8)
    assert (v1.heads, v1.cached_heads, v1.cached_width, v1.head_norm_eps) == (4, 4, 16, 1e-5)
    assert (v2.num_hidden_layers, v2.num_attention_heads, v2.num_key_value_heads, v2.head_dim) == (4, 8, 2, 16)
    assert (v2.heads, v2.cached_heads, v2.cached_width, v2.head_norm_eps) == (4, 2, 16, None)
    for config in (v1, v2):
        assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
        assert (config.max_position_embeddings, config.architectures) == (128, ["DiffTransformerForCausalLM"])
    paper = DiffTransformerConfig()
    assert (paper.heads, paper.head_dim, paper.cached_width) == (12, 128, 256)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "v3"}, "variant='v3' is not known: choose one of v1, v2, diffllama"),
        ({"hiden_size": 64}, "unknown configuration keys"),
        ({"variant": "diffllama", "num_heads": 4}, "num_heads and num_kv_heads are keys of v1 and v2"),
        ({"lambda_init": "0.8"}, "lambda_init='0.8' is not what variant v1 does"),
        ({"variant": "v2", "lambda_init": "0.8"}, "lambda_init has no meaning in variant v2"),
        ({"reference_module": "naive"}, "reference_module='naive' is not what variant v1 does"),
        ({"rope_interleaved": False}, "rope_interleaved=False is not what variant v1 does"),
        ({"variant": "v2", "subln_eps": 1e-5}, "subln_eps is a key of v1, not of v2"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type must be one of default, linear, llama3"),
        ({"num_attention_heads": 25}, "num_attention_heads=25 must be even"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must be even in variant v1"),
        ({"num_key_value_heads": 10}, "makes 5 cached heads, over which 12 differential heads cannot be split"),
        ({"head_dim": 64}, "but 24 \\* 64 is not 3072"),
        ({"variant": "v2", "head_dim": 63}, "head_dim=63 must be even"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"num_heads": 0}, "num_attention_heads must be at least 1"),
    ],
)
def test_unsupported_settings_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        DiffTransformerConfig(**settings)


def broken(tmp_path, change=None, **keys):
    folder = official("v1", tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps({key: x for key, x in config.items() if x is not None}))
    return folder


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (lambda tensors: tensors.pop("norm.weight"), {}, r"missing norm\.weight \[64\]"),
        (
            lambda tensors: tensors.update({"norm.weight": torch.ones(3)}),
            {},
            r"norm\.weight has shape \[3\] where \[64\] was expected",
        ),
        (None, {"variant": None}, "lacks the key variant"),
        (None, {"variant": "v9"}, "variant='v9' is not known"),
        (None, {"model_type": "llama"}, "model_type 'llama'"),
        (
            None,
            {"variant": "v2", "lambda_init": None, "reference_module": None, "subln_eps": None},
            r"missing layers\.0\.attention\.lambda_proj\.weight \[4, 64\]",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path, change, keys, message):
    with pytest.raises(CheckpointError, match=message):
        convert("diff", broken(tmp_path, change, **keys), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_checkpoint_of_the_other_layout_is_named(tmp_path):
    for name, family in (("v1", "diffllama"), ("plain", "diff")):
        folder = official(name, tmp_path / name)
        with pytest.raises(CheckpointError, match=f"looks like a {FAMILIES[name]} checkpoint"):
            convert(family, folder, tmp_path / "ours")


def test_v1_becomes_a_diffllama_that_transformers_own_class_runs(tmp_path):
    golden = load("v1")
    config, tensors = weights.read_official(official("v1", tmp_path / "official"))
    new, regrouped = v1_to_diffllama(config, weights.from_official(config, tensors))
    shapes = {key: tuple(x.shape) for key, x in regrouped.items()}
    assert shapes == weights_diffllama.official_shapes(new)
    config_to_diffllama(new).save_pretrained(tmp_path / "diffllama")
    save_file(regrouped, tmp_path / "diffllama" / "model.safetensors", metadata={"format": "pt"})
    convert("diffllama", tmp_path / "diffllama", tmp_path / "ours")
    for model in (
        DiffLlamaForCausalLM.from_pretrained(tmp_path / "diffllama"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "ours"),
    ):
        for k, ids in enumerate(golden.prompts):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0]
            torch.testing.assert_close(logits, golden.tensors[f"prompt{k}.logits"], atol=3e-5, rtol=0)


@pytest.mark.parametrize("case", [2, 3])
def test_grouped_heads_become_diffllamas(case):
    """Attention alone, 4 heads over 2 cached ones and over one: transformers' module gives Microsoft's output."""
    from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention

    golden = load_file(ATTENTION / "attn.safetensors")
    keys = json.loads((ATTENTION / "attn.json").read_text())["cases"][case]
    counts = {name: keys[name] for name in ("num_heads", "num_kv_heads")}
    config = DiffTransformerConfig(variant="v1", hidden_size=keys["embed_dim"], num_hidden_layers=1, **counts)
    root = f"case{case}.w."
    official_names = {f"layers.0.attention.{k.removeprefix(root)}": x for k, x in golden.items() if k.startswith(root)}
    new, regrouped = v1_to_diffllama(config, weights.from_official(config, official_names))
    theirs: DiffLlamaConfig = config_to_diffllama(new)
    theirs._attn_implementation = "sdpa"
    module = DiffLlamaAttention(theirs, keys["depth"]).eval()
    module.load_state_dict({k.removeprefix("model.layers.0.self_attn."): x for k, x in regrouped.items()})
    x, cos, sin = (golden[f"case{case}.{key}"] for key in ("x", "cos", "sin"))
    with torch.no_grad():
        y = module(x, (cos[None].repeat(1, 1, 2), sin[None].repeat(1, 1, 2)))[0]
    torch.testing.assert_close(y, golden[f"case{case}.y"], atol=3e-5, rtol=0)


def test_only_v1_with_one_epsilon_becomes_a_diffllama():
    with pytest.raises(ValueError, match="Only variant v1"):
        v1_to_diffllama(DiffTransformerConfig(variant="v2"), {})
    with pytest.raises(ValueError, match="one epsilon for all norms"):
        v1_to_diffllama(DiffTransformerConfig(rms_norm_eps=1e-6), {})
    with pytest.raises(ValueError, match="no DiffLlama"):
        config_to_diffllama(DiffTransformerConfig(variant="v2"))


def test_a_pickle_is_read_as_data_alone(tmp_path):
    folder = official("v2", tmp_path / "official")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    convert("diff", folder, tmp_path / "ours")
    shutil.rmtree(folder)
    official("v2", folder)
    convert("diff", folder, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
    assert one.keys() == two.keys()
    assert all(one[key].equal(two[key]) for key in one)
