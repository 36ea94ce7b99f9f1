"""nGPT's checkpoints and configuration: official layouts in, official bytes out, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ngpt_golden import GOLDEN, PREFIX, write_folders
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import nlrl_backbones  # noqa: F401  registers the architecture with transformers
from nlrl_backbones.common.checkpoint import CheckpointError, looks_like
from nlrl_backbones.ngpt import weights
from nlrl_backbones.ngpt.config import NGPTConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(official folder, our folder) of each golden model."""
    return {kind: write_folders(kind, tmp_path_factory.mktemp(kind)) for kind in PREFIX}


def test_the_training_scripts_checkpoint_is_the_same_model(folders, tmp_path):
    shutil.copy(GOLDEN / "ckpt.pt", tmp_path)
    config, tensors = weights.read_official(tmp_path)
    expected_config, expected = weights.read_official(folders["ngpt"][0])
    assert config.to_dict() == expected_config.to_dict()
    assert tensors.keys() == expected.keys()
    assert all(tensors[name].equal(expected[name]) for name in expected)


def write_checkpoint(folder, tensors, **others):
    arguments = json.loads((GOLDEN / "config.json").read_text())
    torch.save({"model": tensors, "model_args": arguments} | others, folder / "ckpt.pt")


def test_a_compiled_runs_mixed_checkpoint_is_kept_as_stored(tmp_path):
    stored = {
        f"_orig_mod.{name}": tensor.to(torch.bfloat16) if ".h." in name and tensor.ndim == 2 else tensor
        for name, tensor in load_file(GOLDEN / "model.safetensors").items()
    }
    write_checkpoint(tmp_path, stored)
    config, tensors = weights.read_official(tmp_path)
    back = weights.to_official(config, weights.from_official(config, tensors))
    assert {f"_orig_mod.{name}" for name in back} == stored.keys()
    for name, tensor in back.items():
        before = stored[f"_orig_mod.{name}"]
        assert (tensor.dtype, tensor.shape) == (before.dtype, before.shape)
        assert tensor.view(torch.uint8).equal(before.view(torch.uint8))
    assert config.dtype == torch.float32  # the widest: loading rounds nothing


@pytest.mark.parametrize("kind", PREFIX)
def test_saving_and_converting_back_gives_the_official_bytes(folders, tmp_path, kind):
    official, ours = folders[kind]
    AutoModelForCausalLM.from_pretrained(ours).save_pretrained(tmp_path)
    config: Any = AutoConfig.from_pretrained(tmp_path)
    back = weights.to_official(config, load_file(tmp_path / "model.safetensors"))
    save_file(back, tmp_path / "back.safetensors", metadata={"format": "pt"})
    save_file(load_file(official / "model.safetensors"), tmp_path / "was.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "was.safetensors").read_bytes()
    arguments = json.loads((official / "config.json").read_text())
    assert {name: getattr(config, name) for name in arguments} == arguments


def test_a_checkpoint_that_lacks_or_bends_a_tensor_is_refused(tmp_path):
    tensors = load_file(GOLDEN / "model.safetensors")
    del tensors["transformer.h.1.sqk"]
    tensors["sz"] = tensors["sz"][:100]
    write_checkpoint(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=r"missing transformer\.h\.1\.sqk \[48\].*sz has shape \[100\].*\[192\]"):
        weights.read_official(tmp_path)


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor ckpt\.pt"):
        weights.read_official(tmp_path)
    torch.save({"weights": torch.ones(2)}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="has no model_args and model"):
        weights.read_official(tmp_path)
    torch.save({"model": {"sz": "x"}, "model_args": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match="other than tensors"):
        weights.read_official(tmp_path)


def test_a_pickle_that_would_run_code_is_refused_before_it_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    write_checkpoint(tmp_path, {"sz": Trap()})
    with pytest.raises(CheckpointError, match="would run code"):
        weights.read_official(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", PREFIX)
def test_the_family_is_recognised_by_its_names(folders, kind):
    names = load_file(folders[kind][0] / "model.safetensors")
    assert looks_like(names, {"ngpt": weights.SIGNATURE, "other": (r"q_proj",)}) == "ngpt"
    assert looks_like(["transformer.h.0.attn.c_proj.weight"], {"ngpt": weights.SIGNATURE}) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 4}, r"unknown configuration keys \['n_heads'\]"),
        ({"use_nGPT": 2}, "use_nGPT=2 is not supported"),
        ({"bias": True}, "bias=True is not supported"),
        ({"dropout": 0.1}, "dropout=0.1 is not supported"),
        ({"position": "alibi"}, "position='alibi' is not supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True is not supported"),
        ({"n_head": 7}, "even whole width"),
        ({"n_embd": 48, "n_head": 16}, "even whole width"),
        ({"n_layer": 0}, "n_layer must be at least 1"),
        ({"base_scale": -1.0}, "base_scale must be above 0"),
    ],
)
def test_unsupported_settings_are_refused_in_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        NGPTConfig(**settings)
    assert str(caught.value).startswith("nGPT: ")


def test_other_libraries_find_their_names():
    config = NGPTConfig(n_embd=64, n_head=4, n_layer=3, block_size=256)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    assert [getattr(config, name) for name in names] == [64, 3, 4, 4, 16]
    assert (config.max_position_embeddings, config.intermediate_size) == (256, 256)
    aliases: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4}
    assert NGPTConfig(**aliases).n_embd == 64
