"""Names and shapes in checkpoints of Microsoft's Differential Transformer, V1 and V2, and in ours.

Microsoft published the attention modules alone; the names around them are those of unilm's plain Transformer (folder
YOCO), under which the reference numbers of this project were made. Ours are Llama's, for all variants. Nothing but
names differs, so the way there and back changes no bit.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from nlrl_backbones.common.checkpoint import CheckpointError, read_json, read_tensors
from nlrl_backbones.diff_transformer.config import DiffTransformerConfig

if TYPE_CHECKING:
    import torch

FAMILY = "diff"
SIGNATURE = (r"^layers\.0\.attention\.(lambda_q1|lambda_proj\.weight)$", r"^layers\.0\.feed_forward\.w1\.weight$")

RENAMED: dict[str, str] = {
    r"^tok_embeddings\.": r"model.embed_tokens.",
    r"^norm\.": r"model.norm.",
    r"^output\.": r"lm_head.",
    r"^layers\.(\d+)\.attention_norm\.": r"model.layers.\1.input_layernorm.",
    r"^layers\.(\d+)\.ffn_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^layers\.(\d+)\.attention\.out_proj\.": r"model.layers.\1.self_attn.o_proj.",
    r"^layers\.(\d+)\.attention\.": r"model.layers.\1.self_attn.",
    r"^layers\.(\d+)\.feed_forward\.w1\.": r"model.layers.\1.mlp.gate_proj.",
    r"^layers\.(\d+)\.feed_forward\.w2\.": r"model.layers.\1.mlp.down_proj.",
    r"^layers\.(\d+)\.feed_forward\.w3\.": r"model.layers.\1.mlp.up_proj.",
}
"""Official name to ours, as patterns of which at most one applies; no name of ours matches any."""

LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def our_name(name: str) -> str:
    """Our name of an official tensor; a name of ours stays."""
    for pattern, replacement in RENAMED.items():
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def official_shapes(config: DiffTransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of an official checkpoint, the tied head left out.

    Raises:
        CheckpointError: for variant diffllama, whose layout ``weights_diffllama`` knows.
    """
    if config.variant == "diffllama":
        raise CheckpointError("variant diffllama is no layout of Microsoft's: use `nlrl convert diffllama`.")
    width, feed = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (config.vocab_size, width),
        "norm.weight": (width,),
    }
    if not config.tie_word_embeddings:
        shapes["output.weight"] = (config.vocab_size, width)
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (width,),
        "ffn_norm.weight": (width,),
        "feed_forward.w1.weight": (feed, width),
        "feed_forward.w2.weight": (width, feed),
        "feed_forward.w3.weight": (feed, width),
    } | {f"attention.{name}": shape for name, shape in attention_shapes(config).items()}
    for i in range(config.num_hidden_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def attention_shapes(config: DiffTransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name within Microsoft's attention module and shape of each of its tensors."""
    width, d = config.hidden_size, config.head_dim or 0
    keys = (config.num_key_value_heads or 0) * d
    out = "out_proj.weight" if config.variant == "v1" else "o_proj.weight"
    shapes: dict[str, tuple[int, ...]] = {
        "q_proj.weight": (config.num_attention_heads * d, width),
        "k_proj.weight": (keys, width),
        "v_proj.weight": (keys, width),
        out: (width, config.heads * config.cached_width),
    }
    if config.variant == "v2":
        return shapes | {"lambda_proj.weight": (config.heads, width)}
    return shapes | dict.fromkeys(LAMBDAS, (d,)) | {"subln.weight": (config.cached_width,)}


def read_official(folder: Path) -> "tuple[DiffTransformerConfig, dict[str, torch.Tensor]]":
    """Configuration and tensors, under official names, of a folder with ``config.json`` and weights.

    Raises:
        CheckpointError: a file is absent, damaged or unsafe.
        ValueError: the configuration is of no variant.
    """
    keys = read_json(folder / "config.json")
    if keys.get("model_type") != DiffTransformerConfig.model_type:
        raise CheckpointError(
            f"{folder / 'config.json'} has model_type {keys.get('model_type')!r}; "
            f"a Differential Transformer has {DiffTransformerConfig.model_type!r}, with a key variant: v1 or v2."
        )
    if "variant" not in keys:
        raise CheckpointError(f"{folder / 'config.json'} lacks the key variant: write v1 or v2 there.")
    config = DiffTransformerConfig(**keys)
    tensors = read_tensors(folder)
    if config.tie_word_embeddings:
        tensors.pop("output.weight", None)
    return config, tensors


def from_official(config: DiffTransformerConfig, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Official names to ours."""
    return {our_name(name): tensor for name, tensor in tensors.items()}


def to_official(config: DiffTransformerConfig, tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Our names to official ones; a tied head's own name is dropped, as official files have none."""
    official = {our_name(name): name for name in official_shapes(config)}
    return {official[name]: tensor for name, tensor in tensors.items() if name in official}
