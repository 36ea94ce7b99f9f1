"""Hymba's configuration: the official ``config.json`` read unchanged, and what follows from it.

Source: the configuration published with nvidia/Hymba-1.5B-Base (Dong et al. 2024, arXiv 2411.13676). The defaults
below are that model's. Importable with transformers alone: no torch model, no vLLM.
"""

from dataclasses import field
from typing import Any, ClassVar

from transformers import PretrainedConfig

from nlrl_backbones.common.configuration import refuse_unknown_keys

# Official keys that carry no information: derived again here, or switches of code that is not ours.
_DERIVED_OFFICIAL_KEYS = ("auto_map", "conv_dim", "layer_type", "v_head_dim")
# The one attention class of the official file that knows the meta tokens; it is no name transformers has.
_OFFICIAL_ATTENTION = "flex"

# Ours: written only where they differ from what an official file implies.
_OWN_DEFAULTS = {"decode_window": "full", "adapt_meta_tokens": False}

_REQUIRED: dict[str, tuple[tuple[Any, ...], str]] = {
    "kq_norm": (("none", None), "normalised queries and keys are not implemented"),
    "num_experts": ((1,), "only one feed-forward expert is implemented"),
    "num_mamba": ((1,), "only one scan per layer is implemented"),
    "mamba_inner_layernorms": ((True,), "the norms on dt, B and C are always applied"),
    "mamba_proj_bias": ((False,), "the projections have no bias"),
    "mamba_conv_bias": ((True,), "the convolution always has a bias"),
    "memory_tokens_interspersed_every": ((0,), "meta tokens stand only at the start"),
    "kv_reuse_every_i_layer": ((-1,), "list the layers that share keys and values in kv_reuse_group"),
    "rope": ((True,), "positions are always rotary"),
    "rope_type": (("ntk", "default", None), "the rotary base is fixed: ntk or default"),
    "hidden_act": (("silu",), "the scan gate is SiLU"),
    "mlp_hidden_act": (("silu",), "the feed-forward gate is SiLU"),
    "attention_dropout": ((0.0,), "attention has no dropout"),
    "decode_window": (("full", "official"), "decoding sees the window of a full pass, or one position fewer"),
}


def _default_kv_groups() -> list[list[int]]:
    """Groups of Hymba-1.5B: pairs, and one triple just after the middle global layer."""
    return [[i, i + 1] for i in range(1, 15, 2)] + [[16, 17, 18]] + [[i, i + 1] for i in range(19, 31, 2)]


class HymbaConfig(PretrainedConfig):
    """Sizes and layer roles of a Hymba model; the keys are those of the official ``config.json``.

    One key is stored under another name: the file's ``sliding_window`` is the attribute ``attn_window``, because vLLM
    takes an attribute ``sliding_window`` for the window of every layer. Saving writes ``sliding_window`` again.

    Two keys are ours: ``decode_window`` ("full", or "official" for the window of the official cached decoding, one
    position narrower) and ``adapt_meta_tokens`` (whether an adapter such as LoRA acts on the meta tokens too).

    Raises:
        ValueError: one sentence, for a key that is not Hymba's or a setting that this implementation lacks.
    """

    model_type: ClassVar[str] = "hymba"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 32001
    hidden_size: int = 1600
    intermediate_size: int = 5504
    num_hidden_layers: int = 32
    num_attention_heads: int = 25
    num_key_value_heads: int = 5
    attn_hidden_size: int = -1
    kq_head_dim: int = -1
    kq_norm: str | None = "none"
    attention_dropout: float = 0.0
    attn_window: int | None = 1024
    global_attn_idx: list[int] = field(default_factory=lambda: [0, 15, 31])
    kv_reuse_group: list[list[int]] | None = field(default_factory=_default_kv_groups)
    kv_reuse_every_i_layer: int = -1
    kv_weight_reuse: bool = False
    attn_implementation_new: str = _OFFICIAL_ATTENTION
    num_memory_tokens: int = 128
    memory_tokens_interspersed_every: int = 0
    num_mamba: int = 1
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int = 100
    mamba_conv_bias: bool = True
    mamba_proj_bias: bool = False
    mamba_inner_layernorms: bool = True
    use_mamba_kernels: bool = True
    hidden_act: str = "silu"
    mlp_hidden_act: str = "silu"
    num_experts: int = 1
    num_experts_per_tok: int = 1
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.001
    calc_logits_for_entire_prompt: bool = False
    rms_norm_eps: float = 1e-6
    rope: bool = True
    rope_type: str | None = "ntk"
    rope_theta: float = 10000.0
    max_position_embeddings: int = 8192
    orig_max_position_embeddings: int = 2048
    seq_length: int = 8192
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    decode_window: str = "full"
    adapt_meta_tokens: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **other_keys: Any) -> None:
        """Take over the keys that are not fields, refuse unknown ones, then check the settings."""
        if "sliding_window" in other_keys:
            self.attn_window = other_keys.pop("sliding_window")
        if other_keys.get("attn_implementation") == _OFFICIAL_ATTENTION:
            del other_keys["attn_implementation"]
        self.global_attn_idx = list(self.global_attn_idx or [])
        layer_types = other_keys.get("layer_type") or []
        for key in _DERIVED_OFFICIAL_KEYS:
            other_keys.pop(key, None)
        refuse_unknown_keys("Hymba", other_keys, HymbaConfig, also=("rope_parameters", "rope_scaling"))
        other_keys.pop("model_type", None)
        super().__post_init__(**other_keys)
        if any(kind != "h" for kind in layer_types):
            raise ValueError(f'Hymba: layer_type must be "h" in every layer, got {layer_types}.')
        self._check()

    # Widths

    @property
    def key_head_dim(self) -> int:
        """Width of a query or key head, Dk."""
        return self.hidden_size // self.num_attention_heads

    @property
    def value_head_dim(self) -> int:
        """Width of a value head, Dv = expand * hidden / heads: the attention output is as wide as the scan."""
        return self.inner_size // self.num_attention_heads

    @property
    def inner_size(self) -> int:
        """Channels of the scan, and of the attention output: expand * hidden."""
        return self.mamba_expand * self.hidden_size

    @property
    def head_dim(self) -> int:
        """Mean of the key and value widths: what a cache sized for two equal widths has to assume.

        Rounded up to an even number, because vLLM takes it for the width that rotary positions turn, too.
        """
        return 2 * -(-(self.key_head_dim + self.value_head_dim) // 4)

    @property
    def num_meta(self) -> int:
        """Number M of learned meta tokens in front of every sequence, at positions 0..M-1."""
        return self.num_memory_tokens

    # Layer roles

    def is_global(self, layer: int) -> bool:
        """Whether the layer attends to all earlier positions."""
        return self.attn_window is None or layer in self.global_attn_idx

    def window(self, layer: int) -> int | None:
        """W such that a query sees keys with ``query - key <= W`` (W+1 real tokens); None where all are seen."""
        return None if self.is_global(layer) else self.attn_window

    def kv_producer(self, layer: int) -> int | None:
        """The earlier layer whose keys and values this layer reads, or None where it has its own."""
        for group in self.kv_reuse_group or []:
            if layer in group[1:]:
                return group[0]
        return None

    def is_consumer(self, layer: int) -> bool:
        """Whether the layer reads another layer's keys and values, and so has no key and value rows."""
        return self.kv_producer(layer) is not None

    @property
    def rope_base(self) -> float:
        """Base of the rotary frequencies. "ntk" raises it once, for every length: the 2 is the official constant."""
        if self.rope_type != "ntk":
            return float(self.rope_theta)
        width = self.key_head_dim
        stretch = 2 * self.max_position_embeddings / self.orig_max_position_embeddings - 1
        return float(self.rope_theta * stretch ** (width / (width - 2)))

    # Saving

    def to_dict(self) -> dict[str, Any]:
        """The official keys: ``attn_window`` goes out as ``sliding_window``; ours only where they say something."""
        keys = {name: value for name, value in super().to_dict().items() if (name, value) not in _OWN_DEFAULTS.items()}
        keys["sliding_window"] = keys.pop("attn_window")
        keys["attn_implementation"] = _OFFICIAL_ATTENTION
        return keys

    # Checks

    def _check(self) -> None:
        for name, (allowed, reason) in _REQUIRED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"Hymba: {name}={getattr(self, name)!r} is not supported: {reason}.")
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"Hymba: {name} must be at least 1, got {getattr(self, name)}.")
        self._check_widths()
        self._check_layers()

    def _check_widths(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads or self.key_head_dim % 2:
            raise ValueError(f"Hymba: hidden_size {self.hidden_size} over {heads} heads must give an even whole width.")
        if heads % kv_heads:
            raise ValueError(f"Hymba: {heads} query heads cannot be split evenly over {kv_heads} KV heads.")
        if self.attn_hidden_size not in (-1, self.hidden_size) or self.kq_head_dim not in (-1, self.key_head_dim):
            raise ValueError("Hymba: attn_hidden_size and kq_head_dim must be -1 (derived from hidden_size).")
        if self.rope_type == "ntk" and self.key_head_dim == 2:
            raise ValueError(
                'Hymba: heads of width 2 have no "ntk" rotary base: use wider heads or rope_type "default".'
            )
        if self.mamba_d_conv < 2:
            raise ValueError(f"Hymba: mamba_d_conv must be at least 2, got {self.mamba_d_conv}.")
        if self.num_memory_tokens < 0:
            raise ValueError(f"Hymba: num_memory_tokens must be 0 or more, got {self.num_memory_tokens}.")
        if self.attn_window is not None and self.attn_window < 1:
            raise ValueError(f"Hymba: sliding_window must be at least 1 or null, got {self.attn_window}.")

    def _check_layers(self) -> None:
        count = self.num_hidden_layers
        groups = self.kv_reuse_group or []
        shared = [layer for group in groups for layer in group]
        for layer in [*self.global_attn_idx, *shared]:
            if not 0 <= layer < count:
                raise ValueError(
                    f"Hymba: layer {layer} in global_attn_idx or kv_reuse_group does not exist: "
                    f"there are {count} layers (0 to {count - 1})."
                )
        if len(set(shared)) != len(shared) or any(list(group) != sorted(group) for group in groups):
            raise ValueError(f"Hymba: each layer may be in one kv_reuse_group only, in rising order; got {groups}.")
        if any(len({self.is_global(layer) for layer in group}) > 1 for group in groups):
            raise ValueError(
                f"Hymba: the layers of a kv_reuse_group must be all global or all windowed; got {groups} "
                f"with global layers {self.global_attn_idx}."
            )
