"""What a model weighs and what a sequence costs in cache: numbers that follow from a configuration alone.

These are the architecture's own numbers, without what paging rounds up; ``nlrl_backbones.vllm_cache_bytes`` asks
vLLM for the blocks it really hands out.
"""

import math
from dataclasses import dataclass
from typing import Any

from nlrl_backbones.convert import family_module

_STATE_BYTES = 4
"""A scan's state stays in float32 whatever the model's type: rounding it at every step drifts."""


@dataclass(frozen=True)
class CacheSize:
    """Bytes that one sequence keeps.

    Attributes:
        per_token: for each token, while it is in the window of every layer.
        per_token_beyond: for each token older than the window; equal to ``per_token`` where there is no window.
        window: tokens that the shortest window holds; None where every layer sees all.
        per_sequence: whatever its length: states of scans and convolutions.
    """

    per_token: int
    per_token_beyond: int
    window: int | None
    per_sequence: int

    def at(self, length: int) -> int:
        """Bytes for a sequence of ``length`` tokens."""
        near = length if self.window is None else min(length, self.window)
        return self.per_sequence + near * self.per_token + (length - near) * self.per_token_beyond


def cache_size(config: Any, number_bytes: int = 2) -> CacheSize:
    """The cache of a model of this configuration, keys and values of ``number_bytes`` bytes a number.

    Raises:
        ValueError: a model type that is no backbone of ours.
    """
    match config.model_type:
        case "hymba":
            return _hymba(config, number_bytes)
        case "bimamba" | "mamba2":
            return CacheSize(0, 0, None, _mamba2_state(config, number_bytes))
        case "diff_transformer":
            numbers = 2 * config.num_hidden_layers * config.cached_heads * config.cached_width
        case "diffllama" | "llama":
            width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width
        case "ngpt":
            numbers = 2 * config.num_hidden_layers * config.hidden_size
        case other:
            raise ValueError(f"The cache of model type '{other}' is not known: it is no backbone of nlrl.")
    return CacheSize(numbers * number_bytes, numbers * number_bytes, None, 0)


def parameter_count(config: Any) -> int:
    """Numbers in the model, a tied head counted once; of a packed model the weights, not the bytes they lie in.

    Raises:
        ValueError: a model type that is no backbone of ours, or is mamba2.
    """
    kind = config.model_type
    if kind == "llama":
        return _llama(config)
    families = {"hymba": "hymba", "bimamba": "bimamba", "diff_transformer": "diff", "ngpt": "ngpt"}
    if kind not in families:
        raise ValueError(f"The size of model type '{kind}' is not known from its configuration.")
    return sum(math.prod(shape) for shape in family_module(families[kind]).official_shapes(config).values())


def _llama(config: Any) -> int:
    width, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    head = getattr(config, "head_dim", None) or width // heads
    layer = 2 * width * head * (heads + kv_heads) + 3 * width * config.intermediate_size + 2 * width
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * width
    return embeddings + config.num_hidden_layers * layer + width


def _hymba(config: Any, number_bytes: int) -> CacheSize:
    """Only layers with keys and values of their own keep any; meta tokens are the model's, not a sequence's."""
    layers = range(config.num_hidden_layers)
    own = [layer for layer in layers if not config.is_consumer(layer)]
    everywhere = [layer for layer in own if config.is_global(layer)]
    token = config.num_key_value_heads * (config.key_head_dim + config.value_head_dim) * number_bytes
    channels = config.inner_size
    state = channels * ((config.mamba_d_conv - 1) * number_bytes + config.mamba_d_state * _STATE_BYTES)
    window = None if len(everywhere) == len(own) else config.attn_window + 1
    return CacheSize(len(own) * token, len(everywhere) * token, window, len(layers) * state)


def _mamba2_state(config: Any, number_bytes: int) -> int:
    inner = config.num_heads * config.head_dim
    convolved = inner + 2 * config.n_groups * config.state_size
    scan = inner * config.state_size * _STATE_BYTES
    return config.num_hidden_layers * (convolved * (config.conv_kernel - 1) * number_bytes + scan)
