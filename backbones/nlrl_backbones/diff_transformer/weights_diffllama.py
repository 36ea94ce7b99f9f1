"""transformers' DiffLlama: its configuration and tensors, and the exact way from Microsoft's V1 to it.

Our names are DiffLlama's, so its tensors are ours as they are (variant "diffllama" keeps the order of rows too, and the
attention module reads it). V1 is the same function under another order of rows: heads side by side instead of in two
halves, another pairing of the rotation, and a weight on the head norm that folds into the output matrix.
"""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import DiffLlamaConfig

from nlrl_backbones.common.checkpoint import CheckpointError, read_json, read_tensors
from nlrl_backbones.diff_transformer.config import SUBLN_EPS, DiffTransformerConfig
from nlrl_backbones.diff_transformer.weights import LAMBDAS

if TYPE_CHECKING:
    import torch

FAMILY = "diffllama"
# One pattern more than Llama's signature has, whose names all occur here too.
SIGNATURE = (
    r"^model\.layers\.0\.self_attn\.lambda_q1$",
    r"^model\.layers\.0\.self_attn\.q_proj\.weight$",
    r"^model\.layers\.0\.mlp\.gate_proj\.weight$",
)

_SHARED = sorted({f.name for f in fields(DiffLlamaConfig)} & {f.name for f in fields(DiffTransformerConfig)})
"""Keys that mean the same in both configurations."""
_NOT_COPIED = ("architectures", "transformers_version")


def config_from_diffllama(config: DiffLlamaConfig) -> DiffTransformerConfig:
    """Ours of variant "diffllama" for a configuration of transformers'.

    Raises:
        ValueError: a setting that we lack; the sentence names the key.
    """
    keys = {name: getattr(config, name) for name in _SHARED if name not in _NOT_COPIED}
    return DiffTransformerConfig(variant="diffllama", **_own_rope(keys))


def config_to_diffllama(config: DiffTransformerConfig) -> DiffLlamaConfig:
    """DiffLlama's configuration for ours of variant "diffllama".

    Raises:
        ValueError: for another variant; ``v1_to_diffllama`` converts V1.
    """
    if config.variant != "diffllama":
        raise ValueError(f"A model of variant {config.variant} is no DiffLlama: v1_to_diffllama converts variant v1.")
    keys = {name: getattr(config, name) for name in _SHARED if name not in _NOT_COPIED}
    return DiffLlamaConfig(architectures=["DiffLlamaForCausalLM"], **_own_rope(keys))


def _own_rope(keys: dict[str, Any]) -> dict[str, Any]:
    return keys | {"rope_parameters": dict(keys["rope_parameters"] or {})}


def official_shapes(config: DiffTransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a DiffLlama checkpoint, the tied head left out."""
    width, feed, d = config.hidden_size, config.intermediate_size, config.head_dim or 0
    queries, keys = config.num_attention_heads * d, (config.num_key_value_heads or 0) * d
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, width),
        "model.norm.weight": (width,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (feed, width),
        "mlp.up_proj.weight": (feed, width),
        "mlp.down_proj.weight": (width, feed),
    }
    rows = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width), "o_proj": (width, queries)}
    for name, shape in rows.items():
        layer[f"self_attn.{name}.weight"] = shape
        if config.attention_bias:
            layer[f"self_attn.{name}.bias"] = shape[:1]
    layer |= {f"self_attn.{name}": (d,) for name in LAMBDAS}
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def read_official(folder: Path) -> "tuple[DiffTransformerConfig, dict[str, torch.Tensor]]":
    """Our configuration, and the tensors of a DiffLlama folder with a configuration of the old or the new style.

    Raises:
        CheckpointError: a file is absent, damaged or unsafe, or the folder holds another model.
        ValueError: the configuration has a setting that we lack.
    """
    keys = read_json(folder / "config.json")
    if keys.get("model_type") != DiffLlamaConfig.model_type:
        raise CheckpointError(
            f"{folder / 'config.json'} has model_type {keys.get('model_type')!r}, where DiffLlama has 'diffllama'."
        )
    config = config_from_diffllama(DiffLlamaConfig(**keys))
    tensors = read_tensors(folder)
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    return config, tensors


def from_official(config: DiffTransformerConfig, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The same tensors: names and rows are ours."""
    return dict(tensors)


def to_official(config: DiffTransformerConfig, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The same tensors, without the name of a tied head."""
    return {name: tensor for name, tensor in tensors.items() if name in official_shapes(config)}


def v1_to_diffllama(
    config: DiffTransformerConfig, tensors: "dict[str, torch.Tensor]"
) -> "tuple[DiffTransformerConfig, dict[str, torch.Tensor]]":
    """A V1 model (our names) as one of variant "diffllama" that computes the same, up to rounding.

    The weight of the head norm is multiplied into the output matrix's columns, so the way back is not unique and not
    offered.

    Raises:
        ValueError: for another variant, or where V1's two epsilons differ, as DiffLlama has but one.
    """
    if config.variant != "v1":
        raise ValueError(f"Only variant v1 can be written as DiffLlama; this model is {config.variant}.")
    if config.rms_norm_eps != config.subln_eps:
        raise ValueError(
            f"DiffLlama has one epsilon for all norms, so rms_norm_eps {config.rms_norm_eps} must equal subln_eps "
            f"(usually {SUBLN_EPS}), which is {config.subln_eps}."
        )
    kept = {name: getattr(config, name) for name in _SHARED if name not in _NOT_COPIED}
    new = DiffTransformerConfig(variant="diffllama", **_own_rope(kept))
    kept_names = [name for name in tensors if ".subln." not in name]
    return new, {name: _regrouped(config, name, tensors) for name in kept_names}


def _regrouped(config: DiffTransformerConfig, name: str, tensors: "dict[str, torch.Tensor]") -> "torch.Tensor":
    tensor, d = tensors[name], config.head_dim or 0
    if name.endswith((".q_proj.weight", ".k_proj.weight", ".v_proj.weight")):
        rows = tensor.unflatten(0, (-1, 2, d)).transpose(0, 1)  # [map, head, d, E]: first maps, then second ones
        if not name.endswith(".v_proj.weight"):
            # The rotation turns (i, i + d/2) where V1's turned (2i, 2i+1).
            rows = rows.unflatten(2, (-1, 2)).transpose(2, 3).flatten(2, 3)
        return rows.flatten(0, 2).contiguous()
    if name.endswith(".o_proj.weight"):
        weight_W = tensors[name.replace("o_proj", "subln")]
        return tensor * weight_W.repeat(config.heads)
    return tensor
