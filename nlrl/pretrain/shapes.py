"""Shapes of the models in the box: the same number of parameters for every backbone, within three percent.

The vocabulary and the special tokens' ids come from the tokenizer. Every head but nGPT's is tied to the embedding.
"""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "hymba": {
        "model_type": "hymba",
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_memory_tokens": 16,
        "sliding_window": 64,
        "global_attn_idx": [0, 3, 5],
        "kv_reuse_group": [[1, 2]],
        "mamba_d_state": 16,
        "mamba_dt_rank": 8,
        "mamba_expand": 2,
        "mamba_d_conv": 4,
        "max_position_embeddings": 4096,
        "orig_max_position_embeddings": 2048,
        "rope_type": "ntk",
    },
    # The transformer below, its heads halved in width and paired: the same rows of queries, keys and values.
    "diff": {
        "model_type": "diff_transformer",
        "variant": "v1",
        "hidden_size": 128,
        "intermediate_size": 416,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    # As the published file has it: an untied head, a feed-forward part of 4 widths, one key head a query head.
    "ngpt": {
        "model_type": "ngpt",
        "n_embd": 128,
        "n_layer": 6,
        "n_head": 4,
        "block_size": 4096,
    },
    # A layer has one mixer and no feed-forward part.
    "bimamba": {
        "model_type": "bimamba",
        "d_model": 160,
        "n_layer": 9,
        "ssm_cfg": {"layer": "Mamba2", "d_state": 64, "headdim": 32, "chunk_size": 64, "expand": 2},
        "tie_embeddings": True,
    },
    "transformer": {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 416,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}
"""Keys of each backbone's configuration, by the backbone's id."""
