"""Official checkpoints into folders that transformers and vLLM load: what `nlrl convert FAMILY SRC DST` calls.

The result holds ``config.json`` and safetensors alone, beside the tokenizer's files where the source has them; it loads
with ``AutoModelForCausalLM.from_pretrained`` after ``import nlrl_backbones`` and with ``vllm.LLM``, and runs no code of
its own. The source is only read: tensors by readers that execute nothing, and neither ``auto_map`` nor a Python file
of the folder is followed or copied.
"""

import shutil
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from nlrl_backbones import BACKBONES
from nlrl_backbones.common.checkpoint import CheckpointError, check_tensors, looks_like, new_folder, tensor_names

FAMILIES: dict[str, str] = {
    "hymba": "nlrl_backbones.hymba.weights",
    "diff": "nlrl_backbones.diff_transformer.weights",
    "diffllama": "nlrl_backbones.diff_transformer.weights_diffllama",
    "ngpt": "nlrl_backbones.ngpt.weights",
    "bimamba": "nlrl_backbones.bimamba.weights",
}
"""Module of each family; it offers FAMILY, SIGNATURE, official_shapes, read_official, from_official, to_official."""

GGUF = "gguf"
"""A layout rather than a family: ``nlrl_backbones.gguf`` reads models of many kinds from it."""

_OTHERS: dict[str, tuple[str, ...]] = {
    "Llama": (r"^model\.layers\.0\.self_attn\.q_proj\.weight$", r"^model\.layers\.0\.mlp\.gate_proj\.weight$"),
    "GPT-2": (r"h\.0\.attn\.c_attn\.weight$",),
    "Mamba-2": (r"^backbone\.layers\.0\.mixer\.dt_bias$", r"^backbone\.layers\.0\.mixer\.in_proj\.weight$"),
}
"""Signatures of models that are no family of ours, so that a mix-up can be named."""

_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        folder: the new folder.
        tensors: how many tensors it holds.
        parameters: numbers in them; a packed byte counts as the eight weights it holds.
        size: bytes of the safetensors files.
        copied: names of the tokenizer's files that were copied.
    """

    folder: Path
    tensors: int
    parameters: int
    size: int
    copied: tuple[str, ...]


def convert(family: str, source: str | Path, target: str | Path, *, packed: bool = False) -> Converted:
    """Write the official checkpoint in ``source`` as a folder ``target``.

    Args:
        family: one of ``FAMILIES``, or "gguf".
        source: folder in the layout that the family's authors publish; of GGUF, the file.
        target: folder to make; it must not hold anything yet.
        packed: write 1-bit weights (bimamba alone).

    Raises:
        CheckpointError: one sentence; nothing has been written then.
    """
    weights = None if family == GGUF else family_module(family)
    source, target = Path(source), Path(target)
    if packed and not hasattr(weights, "to_packed"):
        raise CheckpointError(f"{family} has no packed form: leave --packed out.")
    with new_folder(target) as scratch:
        if weights is None:
            tensors, copied = import_module("nlrl_backbones.gguf").write_folder(source, scratch), ()
        else:
            config, tensors = _read(family, weights, source)
            tensors = weights.from_official(config, tensors)
            if packed:
                config, tensors = weights.to_packed(config, tensors)
            copied = _write(config, tensors, source, scratch)
        size = sum(file.stat().st_size for file in scratch.glob("*.safetensors"))
    return Converted(target, len(tensors), sum(map(_numbers, tensors.values())), size, copied)


def family_module(family: str) -> ModuleType:
    """The module that knows a family's layout.

    Raises:
        CheckpointError: an unknown family; the sentence lists the known ones.
    """
    if family not in FAMILIES:
        raise CheckpointError(f"There is no family '{family}': choose one of {', '.join(FAMILIES)} or {GGUF}.")
    return import_module(FAMILIES[family])


def _read(family: str, weights: ModuleType, source: Path) -> tuple[Any, dict[str, Any]]:
    try:
        config, tensors = weights.read_official(source)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        check_tensors(family, shapes, weights.official_shapes(config))
    except TypeError as error:  # a list or a text where the configuration's class reckons with a number
        raise CheckpointError(f"A value in the configuration of '{source}' has the wrong kind: {error}.") from error
    except ValueError as error:  # of the files, or a configuration that the family's class refuses
        other = _family_of(source)
        if other in (None, family):
            raise error if isinstance(error, CheckpointError) else CheckpointError(str(error)) from error
        hint = f"use `nlrl convert {other}`" if other in FAMILIES else "the libraries load it as it is"
        raise CheckpointError(f"'{source}' looks like a {other} checkpoint, not {family}: {hint}.") from error
    return config, tensors


def _family_of(source: Path) -> str | None:
    """The family whose tensor names the folder holds, if its files can be read at all."""
    try:
        names = tensor_names(source)
    except CheckpointError:
        return None
    ours = {name: family_module(name).SIGNATURE for name in FAMILIES}
    return looks_like(names, ours) or looks_like(names, _OTHERS)


def _write(config: Any, tensors: dict[str, Any], source: Path, folder: Path) -> tuple[str, ...]:
    """Write configuration and tensors to ``folder``; returns the names of the files copied along."""
    from huggingface_hub import save_torch_state_dict

    architectures = {backbone.model_type: backbone.architecture for backbone in BACKBONES.values()}
    config.architectures = [architectures[config.model_type]]
    config.dtype = _widest_dtype(tensors)
    config.save_pretrained(folder)
    save_torch_state_dict(tensors, folder, metadata={"format": "pt"})
    copied = tuple(name for name in _COPIED if (source / name).is_file())
    for name in copied:
        shutil.copyfile(source / name, folder / name)
    return copied


def _numbers(tensor: Any) -> int:
    import torch

    return tensor.numel() * (8 if tensor.dtype == torch.uint8 else 1)


def _widest_dtype(tensors: dict[str, Any]) -> Any:
    """The floating type that holds every tensor exactly, so that loading in the file's own type rounds nothing."""
    import torch

    return reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()})
