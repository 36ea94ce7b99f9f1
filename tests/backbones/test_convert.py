"""`convert`: official checkpoints to folders that load; a bad one gets one sentence, and nothing of it runs."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nlrl_backbones.common.checkpoint import CheckpointError, read_pickle, read_tensors
from nlrl_backbones.convert import FAMILIES, convert, family_module

HERE = Path(__file__).parent
GOLDEN = {
    "hymba": HERE / "golden_hymba",
    "diff": HERE / "golden_diff" / "v1",
    "diffllama": HERE / "golden_diffllama" / "plain",
    "ngpt": HERE / "golden_ngpt",
    "bimamba": HERE / "golden_bimamba",
}


def official(family: str, tmp_path: Path) -> Path:
    """The golden checkpoint alone, as its authors would publish it."""
    folder = tmp_path / f"official-{family}"
    folder.mkdir()
    for name in ("config.json", "ckpt.pt", "model.safetensors", "pytorch_model.bin"):
        if (GOLDEN[family] / name).is_file():
            shutil.copyfile(GOLDEN[family] / name, folder / name)
    if (folder / "ckpt.pt").is_file():
        (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_converted_checkpoint_loads_and_goes_back_unchanged(family, tmp_path):
    from transformers import AutoModelForCausalLM

    import nlrl_backbones  # noqa: F401  registers the architectures

    source = official(family, tmp_path)
    (source / "tokenizer.json").write_text("{}")
    (source / "modeling_evil.py").write_text("raise SystemExit('code of a checkpoint ran')")
    done = convert(family, source, tmp_path / "out")
    assert done.copied == ("tokenizer.json",)
    assert {file.name for file in done.folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    weights = family_module(family)
    config, tensors = weights.read_official(source)
    written = load_file(done.folder / "model.safetensors")
    back = weights.to_official(config, written)
    assert back.keys() == weights.official_shapes(config).keys()
    assert all(torch.equal(back[name], tensors[name]) for name in back)
    assert done.tensors == len(written)
    both: Any = AutoModelForCausalLM.from_pretrained(done.folder, output_loading_info=True)
    loaded, report = both
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert sum(tensor.numel() for tensor in written.values()) == done.parameters
    assert type(loaded).__name__ == loaded.config.architectures[0]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_wrong_and_missing_tensors_are_named_with_their_shapes(family, tmp_path):
    source = official(family, tmp_path)
    _, tensors = family_module(family).read_official(source)
    dropped, bent = sorted(
        name for name in tensors if tensors[name].ndim == 2 and ("layers.0." in name or ".h.0." in name)
    )[:2]
    for file in source.glob("*.bin"):
        file.unlink()
    if (source / "ckpt.pt").is_file():
        (source / "ckpt.pt").unlink()
    changed = {name: tensor for name, tensor in tensors.items() if name != dropped}
    changed[bent] = torch.zeros(3, 5)
    save_file({name: tensor.contiguous().clone() for name, tensor in changed.items()}, source / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        convert(family, source, tmp_path / "out")
    said = str(refused.value)
    assert f"missing {dropped} {list(tensors[dropped].shape)}" in said
    assert f"{bent} has shape [3, 5] where {list(tensors[bent].shape)} was expected" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_checkpoint_of_another_family_is_recognised(family, tmp_path):
    other = "ngpt" if family != "ngpt" else "hymba"
    source = official(family, tmp_path)
    with pytest.raises(
        CheckpointError, match=f"looks like a {family} checkpoint, not {other}: use `nlrl convert {family}`"
    ):
        convert(other, source, tmp_path / "out")


class Evil:
    """What a malicious pickle does: unpickled, it would run a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt"])
def test_a_pickle_that_would_run_code_is_refused_before_it_runs(tmp_path, name):
    folder, marker = tmp_path / "evil", tmp_path / "ran"
    folder.mkdir()
    (folder / "config.json").write_text((GOLDEN["bimamba"] / "config.json").read_text())
    torch.save({"model": Evil(marker), "backbone.embedding.weight": torch.zeros(1)}, folder / name)
    for family in ("bimamba", "ngpt", "hymba"):
        with pytest.raises(CheckpointError):
            convert(family, folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="would run code when it is read, so it was not read"):
        read_pickle(folder / name)
    assert not marker.exists()
    with (folder / name).open("wb") as stream:
        pickle.dump(Evil(marker), stream)
    with pytest.raises(CheckpointError):
        read_pickle(folder / name)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"<html>", b"PK\x03\x04", b"\x80\x02}q\x00.", bytes(range(256)), b""])
def test_what_is_no_checkpoint_is_not_accused_of_running_code(tmp_path, content):
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        read_pickle(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (tmp_path / "config.json").write_text((GOLDEN["bimamba"] / "config.json").read_text())
    with pytest.raises(CheckpointError, match="git lfs pull"):
        convert("bimamba", tmp_path, tmp_path / "out")


def test_a_matrix_without_signs_and_a_value_of_the_wrong_kind_are_refused(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    keys = json.loads((GOLDEN["bimamba"] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(keys))
    tensors = load_file(GOLDEN["bimamba"] / "model.safetensors")
    tensors["backbone.layers.0.mixer.in_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.0\.mixer\.in_proj\.weight cannot be packed"):
        convert("bimamba", folder, tmp_path / "out", packed=True)
    (folder / "config.json").write_text(json.dumps(keys | {"n_layer": [2]}))
    with pytest.raises(CheckpointError, match="wrong kind"):
        convert("bimamba", folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_auto_map_of_an_official_folder_is_not_followed(tmp_path):
    source = official("hymba", tmp_path)
    settings = json.loads((source / "config.json").read_text())
    settings["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.HymbaForCausalLM"}
    (source / "config.json").write_text(json.dumps(settings))
    (source / "modeling_evil.py").write_text("raise SystemExit('code of a checkpoint ran')")
    done = convert("hymba", source, tmp_path / "out")
    assert "auto_map" not in json.loads((done.folder / "config.json").read_text())


def test_what_cannot_be_read_or_written_is_said_in_one_sentence(tmp_path):
    source = official("hymba", tmp_path)
    with pytest.raises(CheckpointError, match="There is no family 'himba': choose one of hymba, diff"):
        convert("himba", source, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is there already and is kept"):
        convert("hymba", source, source)
    with pytest.raises(CheckpointError, match="hymba has no packed form"):
        convert("hymba", source, tmp_path / "out", packed=True)
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert("hymba", tmp_path / "nowhere", tmp_path / "out")
    (source / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        convert("hymba", source, tmp_path / "out")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_tensors(source)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_parts_that_disagree_about_a_tensor_are_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "model-2.safetensors")
    with pytest.raises(CheckpointError, match="disagree about a"):
        read_tensors(tmp_path)
