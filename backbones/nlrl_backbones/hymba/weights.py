"""Names of Hymba's tensors in official checkpoints, and their shapes: data, not code that moves tensors.

Our transformers model uses the official names as they are, so reading and writing an official checkpoint needs no
renaming. Where a view of the model does rename (vLLM stacks and drops indices), it starts from this table.
"""

from nlrl_backbones.hymba.config import HymbaConfig

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


def check_names(shapes: dict[str, tuple[int, ...]], config: HymbaConfig) -> None:
    """Whether these are the tensors of an official checkpoint of this configuration.

    Raises:
        ValueError: one sentence that names the first missing, unknown or misshapen tensors.
    """
    wanted = official_shapes(config)
    given = {name: tuple(shape) for name, shape in shapes.items() if name in wanted or name != TIED_HEAD}
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    wrong = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    if missing or unknown:
        raise ValueError(f"Not a Hymba checkpoint of this config.json: missing {missing[:3]}, unknown {unknown[:3]}.")
    if wrong:
        name = wrong[0]
        raise ValueError(f"Hymba: {name} has shape {given[name]}, but config.json asks for {wanted[name]}.")
