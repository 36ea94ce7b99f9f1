"""Names of nGPT's tensors in official checkpoints, and their shapes; reading what the published ``train.py`` saves.

Our transformers model uses the official names as they are. Official files mix dtypes (block matrices in bfloat16,
embeddings, head and scales in float32); tensors are kept as they are stored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrl_backbones.common.checkpoint import CheckpointError, check_tensors, read_json, read_pickle, read_tensors
from nlrl_backbones.ngpt.config import NGPTConfig

if TYPE_CHECKING:
    import torch

FAMILY = "ngpt"
SIGNATURE = (r"transformer\.h\.\d+\.att_c_proj\.weight$", r"transformer\.h\.\d+\.mlp_c_proj\.weight$")
"""Tensor names of nGPT, and of the GPT baseline in the same file, that no other family has."""
CHECKPOINT = "ckpt.pt"
"""The file that the published ``train.py`` writes: a dictionary with ``model`` and ``model_args`` among its keys."""
COMPILED = "_orig_mod."
"""What torch.compile puts in front of every name; training runs of the published script save it."""
ARCHITECTURE = "NGPTForCausalLM"

ROWS = ("query", "key", "value", "c_fc")
"""Matrices of a block whose rows have the model's width, and unit length in nGPT; so have the embeddings and head."""
COLUMNS = ("att_c_proj", "mlp_c_proj")
"""Matrices of a block whose columns have the model's width, and unit length in nGPT."""


def official_shapes(config: NGPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an official checkpoint."""
    vocabulary, width = config.vocab_size, config.n_embd
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
    }
    shapes |= {"sz": (vocabulary,)} if config.use_nGPT else {"rmsnorm_f.weight": (width,)}
    for layer in range(config.n_layer):
        for name, shape in layer_shapes(config).items():
            shapes[f"transformer.h.{layer}.{name}"] = shape
    return shapes


def layer_shapes(config: NGPTConfig) -> dict[str, tuple[int, ...]]:
    """Name inside a block and shape of each of its tensors."""
    width, inner = config.n_embd, config.intermediate_size
    matrices: dict[str, tuple[int, ...]] = {
        "query.weight": (width, width),
        "key.weight": (width, width),
        "value.weight": (width, width),
        "att_c_proj.weight": (width, width),
        "c_fc.weight": (2 * inner, width),
        "mlp_c_proj.weight": (width, inner),
    }
    if config.use_nGPT:
        return matrices | {"attn_alpha": (width,), "mlp_alpha": (width,), "sqk": (width,), "suv": (2 * inner,)}
    return matrices | {"rmsnorm_att.weight": (width,), "rmsnorm_mlp.weight": (width,)}


def read_official(folder: Path) -> tuple[NGPTConfig, "dict[str, torch.Tensor]"]:
    """Configuration and tensors of a folder with ``config.json`` and ``model*.safetensors``, else with ``ckpt.pt``.

    Raises:
        CheckpointError: nothing there can be read, or the tensors are not those that the configuration asks for.
        ValueError: the configuration is not nGPT's.
    """
    if any(folder.glob("model*.safetensors")):
        arguments, tensors = read_json(folder / "config.json"), read_tensors(folder, "model*.safetensors")
    elif (folder / CHECKPOINT).is_file():
        arguments, tensors = _read_training_checkpoint(folder / CHECKPOINT)
    else:
        raise CheckpointError(f"The folder '{folder}' holds neither model.safetensors nor {CHECKPOINT}; give one.")
    tensors = {name.removeprefix(COMPILED): tensor for name, tensor in tensors.items()}
    if arguments.get("model_type", FAMILY) != FAMILY:
        raise CheckpointError(f"{folder / 'config.json'} is of a {arguments['model_type']} model, not of nGPT.")
    config = NGPTConfig(**arguments)
    check_tensors(FAMILY, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, official_shapes(config))
    config.architectures, config.dtype = [ARCHITECTURE], _widest(tensors)
    return config, tensors


def from_official(config: NGPTConfig, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors under the names of our model, which are the official ones."""
    return dict(tensors)


def to_official(config: NGPTConfig, tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors under the official names, which are those of our model."""
    return dict(tensors)


def _read_training_checkpoint(file: Path) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    import torch

    content = read_pickle(file)
    content = content if isinstance(content, Mapping) else {}
    arguments, tensors = content.get("model_args"), content.get("model")
    if not isinstance(arguments, Mapping) or not isinstance(tensors, Mapping):
        raise CheckpointError(
            f"{file} has no model_args and model in it: give a checkpoint that nGPT's train.py saved."
        )
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{file} holds something other than tensors under 'model'; give the model's weights.")
    return dict(arguments), dict(tensors)


def _widest(tensors: "Mapping[str, torch.Tensor]") -> "torch.dtype":
    """The dtype that holds every tensor exactly: what the configuration names, so that loading rounds nothing."""
    from functools import reduce

    import torch

    return reduce(torch.promote_types, [tensor.dtype for tensor in tensors.values()])
