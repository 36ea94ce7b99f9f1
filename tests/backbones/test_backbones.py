"""The registry of backbones, their configuration and names, and check_backbone on all of them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_models import build
from safetensors.torch import load_file, save_file

from nlrl_backbones import BACKBONES, boxed_dir
from nlrl_backbones.check import BackboneCheckError, check_backbone
from nlrl_backbones.hymba.config import HymbaConfig
from nlrl_backbones.hymba.weights import official_shapes

GOLDEN = Path(__file__).parent / "golden_hymba"


def run_python(code):
    path = [p for p in sys.path if p]
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_the_package_loads_nothing_heavy():
    done = run_python(
        "import nlrl_backbones; heavy = {'torch', 'transformers', 'vllm', 'triton', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "order", ["nlrl_backbones, transformers", pytest.param("transformers, nlrl_backbones", marks=pytest.mark.full)]
)
def test_auto_classes_know_the_backbones_in_either_import_order(order):
    done = run_python(
        f"import {order}\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(GOLDEN)!r})\n"
        "assert type(model).__module__ == 'nlrl_backbones.hymba.model', type(model)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["LlamaForCausalLM", pytest.param("MistralForCausalLM", marks=pytest.mark.full)])
def test_a_model_of_transformers_own_may_be_imported_first(first):
    """Its module imports the auto classes halfway, when ours cannot be imported yet."""
    done = run_python(
        f"import nlrl_backbones\nfrom transformers import {first}, AutoConfig, AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({str(GOLDEN)!r}))\n"
        "assert type(model).__module__ == 'nlrl_backbones.hymba.model', type(model)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backbone_id", [name for name, backbone in BACKBONES.items() if backbone.boxed])
def test_a_boxed_checkpoint_keeps_the_contract(backbone_id):
    folder = boxed_dir(backbone_id)
    if not (folder / "config.json").is_file():
        pytest.skip("the boxed checkpoint is not in this tree")
    check_backbone(folder)


def test_an_unknown_backbone_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=f"There is no backbone 'himba': choose one of {', '.join(sorted(BACKBONES))}"):
        boxed_dir("himba")


@pytest.mark.parametrize("backbone_id", [name for name, backbone in BACKBONES.items() if not backbone.boxed])
def test_a_backbone_without_a_model_in_the_box_says_so(backbone_id):
    with pytest.raises(ValueError, match=f"No model of {backbone_id} ships in the box: give a folder or a hub id"):
        boxed_dir(backbone_id)


OF_TRANSFORMERS = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
    "diffllama": {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
}


def test_every_model_of_transformers_is_held_to_the_contract():
    """So that the next test leaves none out."""
    assert OF_TRANSFORMERS.keys() == {backbone.model_type for backbone in BACKBONES.values() if not backbone.model}


@pytest.mark.parametrize("model_type", OF_TRANSFORMERS)
def test_a_model_of_transformers_keeps_the_contract(model_type, tmp_path):
    keys = {"model_type": model_type, "num_hidden_layers": 2, "hidden_size": 32, **OF_TRANSFORMERS[model_type]}
    check_backbone(build(keys, 0, tmp_path / "model"))


def test_the_official_checkpoint_keeps_the_contract():
    check_backbone(GOLDEN)


def broken(tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    folder = broken(tmp_path, lambda tensors: tensors.pop("model.layers.1.mamba.D.0"))
    with pytest.raises(BackboneCheckError, match=r"do not fit.*layers\.1\.mamba\.D\.0"):
        check_backbone(folder)


def test_a_checkpoint_that_is_not_finite_is_refused(tmp_path):
    folder = broken(tmp_path, lambda tensors: tensors["model.final_layernorm.weight"].fill_(float("nan")))
    with pytest.raises(BackboneCheckError):
        check_backbone(folder)


def test_a_foreign_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(BackboneCheckError, match=r"Model type 'gpt2' is not registered: the backbones are .*'hymba'"):
        check_backbone(tmp_path)


def test_the_official_file_holds_exactly_the_named_tensors():
    config = HymbaConfig.from_pretrained(GOLDEN)
    tensors = load_file(GOLDEN / "model.safetensors")
    assert official_shapes(config) == {name: tuple(x.shape) for name, x in tensors.items()}


def test_hymba_1_5b_has_the_published_number_of_parameters():
    numbers = [torch.Size(shape).numel() for shape in official_shapes(HymbaConfig()).values()]
    assert sum(numbers) == 1_522_797_824


def test_the_mean_width_of_keys_and_values_is_even():
    """vLLM takes it for the width that rotary positions turn."""
    assert HymbaConfig(hidden_size=350, num_attention_heads=25).head_dim == 22  # of 14 and 28
    assert HymbaConfig().head_dim == 96


def test_roles_and_widths_of_hymba_1_5b():
    config = HymbaConfig()
    assert (config.key_head_dim, config.value_head_dim, config.num_meta) == (64, 128, 128)
    assert config.rope_base == pytest.approx(74_534.83, abs=0.01)
    assert [i for i in range(32) if config.is_global(i)] == [0, 15, 31]
    assert [i for i in range(32) if config.is_consumer(i)] == [2, 4, 6, 8, 10, 12, 14, 17, 18, 20, 22, 24, 26, 28, 30]
    assert (config.kv_producer(18), config.kv_producer(16), config.window(15), config.window(16)) == (
        16,
        None,
        None,
        1024,
    )


def test_the_official_config_survives_a_round_trip(tmp_path):
    config = HymbaConfig.from_pretrained(GOLDEN)
    # vLLM would take this attribute for the window of every layer.
    assert not hasattr(config, "sliding_window")
    config.save_pretrained(tmp_path)
    official, saved = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN, tmp_path))
    derived = {"auto_map", "conv_dim", "layer_type", "v_head_dim", "torch_dtype", "transformers_version"}
    assert {k: v for k, v in official.items() if k not in derived} == {
        k: v for k, v in saved.items() if k not in derived | {"dtype"}
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden_size": 64}, "unknown configuration keys"),
        ({"num_experts": 8}, "num_experts=8 is not supported"),
        ({"kq_norm": "rms"}, "kq_norm='rms' is not supported"),
        ({"rope_type": "dynamic_ntk"}, "rope_type='dynamic_ntk' is not supported"),
        ({"num_hidden_layers": 8}, "layer 15 .* does not exist"),
        ({"kv_reuse_group": [[1, 2], [2, 3]]}, "one kv_reuse_group only"),
        ({"kv_reuse_group": [[14, 15]]}, "all global or all windowed"),
        ({"num_attention_heads": 24}, "even whole width"),
        ({"num_key_value_heads": 3}, "cannot be split evenly"),
        ({"sliding_window": 0}, "at least 1 or null"),
        ({"layer_type": ["h", "m"]}, "layer_type must be"),
    ],
)
def test_unsupported_settings_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        HymbaConfig(**settings)
