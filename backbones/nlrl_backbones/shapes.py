"""Shapes of large models as data: what ``config.json`` says of each, for measurements with random weights.

``nlrl_backbones.vllm_cache_bytes`` and ``backbones/check_gpu.py --load`` write one of these to a folder and have vLLM
read it like any other model. All take 16,384 positions at least: a sequence of 8k tokens can be decoded further.
"""

import json
from pathlib import Path
from typing import Any

_POSITIONS = 16384

SHAPES: dict[str, dict[str, Any]] = {
    # The published configuration; every key that is not here has its default.
    "hymba-1.5b": {
        "model_type": "hymba",
        "architectures": ["HymbaForCausalLM"],
        "max_position_embeddings": _POSITIONS,
    },
    # Ye et al. 2024 (arXiv 2410.05258) train 1.4B parameters too, without a table of sizes: heads as wide as theirs.
    "diff-1.3b": {
        "model_type": "diff_transformer",
        "architectures": ["DiffTransformerForCausalLM"],
        "variant": "v1",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": _POSITIONS,
    },
    # Tang et al. 2024 (arXiv 2411.11843), as it is served: projections of one bit a weight.
    "bimamba-2.7b": {
        "model_type": "bimamba",
        "architectures": ["BiMambaForCausalLM"],
        "d_model": 2560,
        "n_layer": 64,
        "weight_format": "packed",
    },
    # Loshchilov et al. 2024 (arXiv 2410.01131), table 2.
    "ngpt-1b": {
        "model_type": "ngpt",
        "architectures": ["NGPTForCausalLM"],
        "vocab_size": 32000,
        "n_layer": 36,
        "n_head": 20,
        "n_embd": 1280,
        "block_size": _POSITIONS,
    },
    # What Hymba's paper compares its cache with.
    "llama-3.2-3b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": _POSITIONS,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
}


def write_shape(shape: str, folder: Path) -> Path:
    """Write ``config.json`` of a shape, and no weights; returns the folder.

    Raises:
        ValueError: for a name that is not in ``SHAPES``.
    """
    if shape not in SHAPES:
        raise ValueError(f"There is no shape {shape!r}: choose one of {', '.join(SHAPES)}.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape] | {"dtype": "bfloat16"}, indent=1))
    return folder
