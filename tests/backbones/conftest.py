"""Random Hymba checkpoints for tests that serve a model: official names and shapes, and a small real tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizer import save_tokenizer

SMALL = {
    "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 384, "sliding_window": 64, "global_attn_idx": [0, 3, 5],
    "kv_reuse_group": [[1, 2]], "num_memory_tokens": 16, "mamba_d_state": 16, "mamba_dt_rank": 8,
    "max_position_embeddings": 1024, "orig_max_position_embeddings": 1024, "rope_type": "default",
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def random_weights(config: Any, seed: int = 0) -> dict[str, Any]:
    """Random float32 tensors under the official names, scaled so that outputs neither vanish nor saturate."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float) -> "torch.Tensor":
        return torch.randn(*shape, generator=generator) * scale

    def matrix(rows: int, columns: int) -> "torch.Tensor":
        return normal(rows, columns, scale=columns**-0.5)

    width, inner, states, rank = config.hidden_size, config.inner_size, config.mamba_d_state, config.mamba_dt_rank
    tensors = {
        "model.embed_tokens.weight": normal(config.vocab_size, width, scale=0.3),
        "model.memory_tokens": normal(config.num_meta, width, scale=1.0),
        "model.final_layernorm.weight": torch.ones(width),
    }
    for layer in range(config.num_hidden_layers):
        queries = config.num_attention_heads * config.key_head_dim
        shared = config.num_key_value_heads * (config.key_head_dim + config.value_head_dim)
        rows = queries + 2 * inner + (0 if config.is_consumer(layer) else shared)
        root = f"model.layers.{layer}."
        mixer = root + "mamba."
        tensors |= {
            root + "input_layernorm.weight": 1 + normal(width, scale=0.1),
            root + "pre_moe_layernorm.weight": 1 + normal(width, scale=0.1),
            root + "moe.experts.0.gate_proj.weight": matrix(config.intermediate_size, width),
            root + "moe.experts.0.up_proj.weight": matrix(config.intermediate_size, width),
            root + "moe.experts.0.down_proj.weight": matrix(width, config.intermediate_size),
            mixer + "in_proj.weight": matrix(rows, width),
            mixer + "out_proj.weight": matrix(width, inner),
            mixer + "conv1d.weight": normal(inner, 1, config.mamba_d_conv, scale=0.5),
            mixer + "conv1d.bias": normal(inner, scale=0.1),
            mixer + "x_proj.0.weight": matrix(rank + 2 * states, inner),
            mixer + "dt_proj.0.weight": matrix(inner, rank),
            mixer + "dt_proj.0.bias": normal(inner, scale=0.5) - 1,
            mixer + "A_log.0": torch.log(torch.arange(1, states + 1).float()).repeat(inner, 1),
            mixer + "D.0": 1 + normal(inner, scale=0.1),
            mixer + "dt_layernorm.weight": torch.ones(rank),
            mixer + "B_layernorm.weight": torch.ones(states),
            mixer + "C_layernorm.weight": torch.ones(states),
            mixer + "pre_avg_layernorm1.weight": 1 + normal(inner, scale=0.1),
            mixer + "pre_avg_layernorm2.weight": 1 + normal(inner, scale=0.1),
        }
    return tensors


def write_random_hymba(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write a random checkpoint of the small shape, with the given settings changed; returns the folder."""
    from safetensors.torch import save_file

    from nlrl_backbones.hymba.config import HymbaConfig

    config = HymbaConfig(**(SMALL | settings), architectures=["HymbaForCausalLM"], dtype="float32")
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(random_weights(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(folder, config.vocab_size)
    return folder


@pytest.fixture(scope="session")
def random_hymba(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Maker of random checkpoints: ``random_hymba(seed=0, **settings)`` gives a folder."""

    def make(seed: int = 0, **settings: Any) -> Path:
        return write_random_hymba(tmp_path_factory.mktemp("hymba"), seed, **settings)

    return make
