"""Names of Hymba's tensors in official checkpoints, and their shapes: data, not code that moves tensors.

Our transformers model uses the official names as they are, so reading and writing an official checkpoint needs no
renaming. Where a view of the model does rename (vLLM stacks and drops indices), it starts from this table.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from nlrl_backbones.common.checkpoint import CheckpointError, check_tensors, read_json, read_tensors
from nlrl_backbones.hymba.config import HymbaConfig

if TYPE_CHECKING:
    import torch

FAMILY = "hymba"
SIGNATURE = (r"^model\.memory_tokens$", r"\.mamba\.pre_avg_layernorm2\.weight$")
"""Names that no other family's checkpoints have: the meta tokens, and the norm of the scan's branch."""
TIED_HEAD = "lm_head.weight"
"""Absent from official files: the head is the embedding. Accepted when present."""


def official_shapes(config: HymbaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an official checkpoint, the tied head left out."""
    width = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, width),
        "model.memory_tokens": (config.num_meta, width),
        "model.final_layernorm.weight": (width,),
    }
    if not config.tie_word_embeddings:
        shapes[TIED_HEAD] = (config.vocab_size, width)
    for layer in range(config.num_hidden_layers):
        for name, shape in layer_shapes(config, layer).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def layer_shapes(config: HymbaConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """Name inside the layer and shape of each of its tensors."""
    width, inner, feed = config.hidden_size, config.inner_size, config.intermediate_size
    rank, states = config.mamba_dt_rank, config.mamba_d_state
    rows = sum(count for _, count in in_proj_rows(config, layer))
    return {
        "input_layernorm.weight": (width,),
        "mamba.in_proj.weight": (rows, width),
        "mamba.conv1d.weight": (inner, 1, config.mamba_d_conv),
        "mamba.conv1d.bias": (inner,),
        "mamba.x_proj.0.weight": (rank + 2 * states, inner),
        "mamba.dt_proj.0.weight": (inner, rank),
        "mamba.dt_proj.0.bias": (inner,),
        "mamba.A_log.0": (inner, states),
        "mamba.D.0": (inner,),
        "mamba.dt_layernorm.weight": (rank,),
        "mamba.B_layernorm.weight": (states,),
        "mamba.C_layernorm.weight": (states,),
        "mamba.pre_avg_layernorm1.weight": (inner,),
        "mamba.pre_avg_layernorm2.weight": (inner,),
        "mamba.out_proj.weight": (width, inner),
        "pre_moe_layernorm.weight": (width,),
        "moe.experts.0.gate_proj.weight": (feed, width),
        "moe.experts.0.up_proj.weight": (feed, width),
        "moe.experts.0.down_proj.weight": (width, feed),
    }


def in_proj_rows(config: HymbaConfig, layer: int) -> list[tuple[str, int]]:
    """What the rows of the layer's ``in_proj`` are, in order; a consumer has no key and value rows."""
    keys = config.num_key_value_heads * config.key_head_dim
    values = config.num_key_value_heads * config.value_head_dim
    shared = [] if config.is_consumer(layer) else [("key", keys), ("value", values)]
    queries = config.num_attention_heads * config.key_head_dim
    return [("query", queries), *shared, ("scan_input", config.inner_size), ("gate", config.inner_size)]


def read_official(folder: Path) -> "tuple[HymbaConfig, dict[str, torch.Tensor]]":
    """Configuration and tensors of an official checkpoint, the tied head left out.

    Raises:
        CheckpointError: files are missing or unsafe, or the tensors are not those that ``config.json`` asks for.
        ValueError: ``config.json`` has a key or a setting that is not Hymba's.
    """
    keys = read_json(folder / "config.json")
    kind = keys.get("model_type", FAMILY)
    if kind != FAMILY:
        raise CheckpointError(f"{folder / 'config.json'} describes a model of type {kind!r}, not a Hymba.")
    config = HymbaConfig(**keys)
    found = read_tensors(folder)
    tensors = from_official(config, found)
    if len(tensors) < len(found) and not found[TIED_HEAD].equal(found["model.embed_tokens.weight"]):
        raise CheckpointError(f"{TIED_HEAD} is not the embedding: set tie_word_embeddings to false in config.json.")
    check_tensors(FAMILY, {name: tuple(value.shape) for name, value in tensors.items()}, official_shapes(config))
    return config, tensors


def from_official(config: HymbaConfig, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Tensors under the names of our transformers model: the same; a head that is tied anyway is left out."""
    tied = TIED_HEAD if config.tie_word_embeddings else None
    return {name: tensor for name, tensor in tensors.items() if name != tied}


def to_official(config: HymbaConfig, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The inverse: the same names, the tied head left out."""
    return from_official(config, tensors)
