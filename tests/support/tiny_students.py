"""Small random models of every family with a tokenizer and a chat template, to be trained and served in seconds."""

from pathlib import Path
from typing import Any

from random_models import build
from tiny_tokenizer import save_tokenizer

VOCABULARY = 320
FAMILIES: dict[str, dict[str, Any]] = {
    "hymba": {
        "model_type": "hymba", "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
        "hidden_size": 64, "intermediate_size": 48, "sliding_window": 16, "global_attn_idx": [0, 2],
        "kv_reuse_group": None, "num_memory_tokens": 4, "mamba_d_state": 8, "mamba_dt_rank": 4, "mamba_d_conv": 4,
        "max_position_embeddings": 512, "orig_max_position_embeddings": 512, "rope_type": "ntk",
    },
    "diff": {
        "model_type": "diff_transformer", "variant": "v1", "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 48, "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
    "ngpt": {"model_type": "ngpt", "n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 512},
    "bimamba": {
        "model_type": "bimamba", "d_model": 32, "n_layer": 2, "tie_embeddings": True,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16, "chunk_size": 16, "expand": 2},
    },
    "transformer": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def make_student(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a model of `family` and its tokenizer to `folder`, in float32."""
    build(FAMILIES[family], seed, folder, VOCABULARY)
    save_tokenizer(folder, VOCABULARY)
    return folder


def in_bfloat16(folder: Path, kept: tuple[str, ...] = ()) -> Path:
    """Round the weights in `folder`, but not those whose names hold a word of `kept`."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    rounded = {n: t if any(word in n for word in kept) else t.to(torch.bfloat16) for n, t in tensors.items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return folder
