"""What is served: our shapes, and the controls that each is compared with, as configurations without weights."""

import json
from pathlib import Path
from typing import Any

from nlrl_backbones.shapes import SHAPES

_POSITIONS = 16384
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": _POSITIONS}
_MAMBA = {
    "model_type": "mamba2",
    "architectures": ["Mamba2ForCausalLM"],
    "n_groups": 1,
    "vocab_size": 50288,
    "tie_word_embeddings": True,
}

CONTROLS: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _LLAMA
    | {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    # Dao and Gu 2024 (arXiv 2405.21060), the published sizes.
    "mamba2-1.3b": _MAMBA | {"hidden_size": 2048, "num_hidden_layers": 48, "num_heads": 64},
    "mamba2-2.7b": _MAMBA | {"hidden_size": 2560, "num_hidden_layers": 64, "num_heads": 80},
    # The same matrices as ngpt-1b.
    "llama-as-ngpt-1b": _LLAMA
    | {
        "vocab_size": 32000,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 36,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "head_dim": 64,
        "tie_word_embeddings": False,
    },
    # The same matrices as diff-1.3b: 8 differential heads cache what 8 heads of 128 do.
    "llama-as-diff-1.3b": _LLAMA
    | {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}

ORDER = (
    "hymba-1.5b", "llama-3.2-3b", "bimamba-2.7b", "mamba2-2.7b", "ngpt-1b", "llama-as-ngpt-1b", "diff-1.3b",
    "llama-as-diff-1.3b", "llama-3.2-1b", "mamba2-1.3b",
)  # fmt: skip
"""Pairs that a goal compares, the most telling first."""

_TINY: dict[str, dict[str, Any]] = {
    "hymba": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "global_attn_idx": [1],
        "kv_reuse_group": None,
        "sliding_window": 40,
        "vocab_size": 128,
    },
    "diff_transformer": {"hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    "bimamba": {"d_model": 64, "n_layer": 2, "vocab_size": 128, "ssm_cfg": {"layer": "Mamba2", "headdim": 32}},
    "ngpt": {"n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 128},
    "llama": {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
    "mamba2": {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "vocab_size": 128},
}


def write_model(name: str, folder: Path, *, tiny: bool) -> Path:
    """Write ``config.json`` of a model of ``ORDER``, or of a tiny one of its kind; returns the folder.

    Raises:
        ValueError: for a name that is not in ``ORDER``.
    """
    if name not in ORDER:
        raise ValueError(f"There is no model {name!r} to serve: choose among {', '.join(ORDER)}.")
    keys = {**SHAPES, **CONTROLS}[name]
    changed = _TINY[keys["model_type"]] if tiny else {}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(keys | changed | {"dtype": "float32" if tiny else "bfloat16"}, indent=1)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder
