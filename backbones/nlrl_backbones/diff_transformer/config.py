"""One configuration for three layouts of differential attention, and what follows from it.

- ``v1``: Ye et al. 2024, arXiv 2410.05258, in the layout of Microsoft's ``multihead_flashdiff_1.py``;
- ``v2``: Microsoft's Differential Transformer V2 (code and blog of January 2026);
- ``diffllama``: the layout of transformers' DiffLlama.

Microsoft published no configuration file, so two styles of keys are read: theirs (``num_layers``, ``num_heads``,
``num_kv_heads``, ``max_seq_len``, ``norm_eps``, where heads are differential heads) and that of transformers
(``num_hidden_layers``, ``num_attention_heads``, ..., where heads are maps, each ``head_dim`` wide). The second is what
is stored: it counts rows of the projections alike in all variants, and is what vLLM reads. Importable with
transformers alone: no torch model, no vLLM.
"""

from typing import Any, ClassVar

from transformers import PretrainedConfig

from nlrl_backbones.common.configuration import refuse_unknown_keys

VARIANTS = ("v1", "v2", "diffllama")
ARCHITECTURE = "DiffTransformerForCausalLM"
SUBLN_EPS = 1e-5
"""Epsilon of V1's head norm, whatever that of the other norms."""
ROPE_TYPES = ("default", "linear", "llama3")
"""Those that transformers and vLLM compute alike."""

_RENAMED = {"num_layers": "num_hidden_layers", "max_seq_len": "max_position_embeddings", "norm_eps": "rms_norm_eps"}
# Keys that fix what this implementation derives: accepted where they say what the variant does anyway.
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "v1": {
        "rope_interleaved": (True,),
        "reference_module": ("flash1", "flash2"),
        "lambda_init": ("0.8-0.6*exp(-0.3*layer_index),layer_indexfrom0",),
    },
    "v2": {"rope_interleaved": (True,), "reference_module": ("v2",)},
    "diffllama": {"rope_interleaved": (False,)},
}


class DiffTransformerConfig(PretrainedConfig):
    """Sizes of a Differential Transformer. Defaults: the paper's 3B model (V1).

    Attributes that need a word:

    - variant: "v1", "v2" or "diffllama".
    - num_attention_heads: query maps, 2H: two for each of the H differential heads.
    - num_key_value_heads: key maps of width ``head_dim``: two for each cached head in v1 and diffllama, one in v2.
    - head_dim: width d of one map; None: hidden_size / num_attention_heads.
    - subln_eps: epsilon of the head norm, v1 alone.
    - lambda_std_dev: spread of lambda's vectors at initialisation.

    Raises:
        ValueError: one sentence that names the key which no variant, or not this one, can have.
    """

    model_type: ClassVar[str] = "diff_transformer"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    variant: str = "v1"
    vocab_size: int = 100288
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 28
    num_attention_heads: int = 24
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    rope_parameters: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-5
    subln_eps: float | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    lambda_std_dev: float = 0.1
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **other_keys: Any) -> None:
        """Take over the other style of keys, refuse unknown ones, then check the settings."""
        if self.variant not in VARIANTS:
            raise ValueError(
                f"Differential Transformer: variant={self.variant!r} is not known: choose one of {', '.join(VARIANTS)}."
            )
        for theirs, ours in _RENAMED.items():
            if theirs in other_keys:
                setattr(self, ours, other_keys.pop(theirs))
        self._take_head_counts(other_keys)
        self._take_fixed_keys(other_keys)
        refuse_unknown_keys(
            "Differential Transformer", other_keys, DiffTransformerConfig, also=("rope_scaling", "rope_theta"),
            named={*_RENAMED, "num_heads", "num_kv_heads", "rope_theta", "rope_scaling", *_FIXED[self.variant]},
        )  # fmt: skip
        other_keys.pop("model_type", None)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads // (2 if self.variant == "v2" else 1)
        if self.head_dim is None and self.num_attention_heads > 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.variant == "v1" and self.subln_eps is None:
            self.subln_eps = SUBLN_EPS
        super().__post_init__(**other_keys)
        self.architectures = self.architectures or [ARCHITECTURE]
        self._check()

    def _take_head_counts(self, keys: dict[str, Any]) -> None:
        """Microsoft counts differential heads, and key/value heads as they are cached."""
        if "num_heads" not in keys and "num_kv_heads" not in keys:
            return
        if self.variant == "diffllama":
            raise ValueError(
                "Differential Transformer: num_heads and num_kv_heads are keys of v1 and v2; "
                "variant diffllama has num_attention_heads and num_key_value_heads."
            )
        if "num_heads" in keys:
            self.num_attention_heads = 2 * keys.pop("num_heads")
        if "num_kv_heads" in keys:
            self.num_key_value_heads = self.key_maps * keys.pop("num_kv_heads")

    def _take_fixed_keys(self, keys: dict[str, Any]) -> None:
        for name in {name for fixed in _FIXED.values() for name in fixed} & keys.keys():
            value = keys.pop(name)
            allowed = _FIXED[self.variant].get(name)
            if allowed is None:
                raise ValueError(f"Differential Transformer: {name} has no meaning in variant {self.variant}: drop it.")
            compact = value.replace(" ", "") if isinstance(value, str) else value
            if compact not in allowed:
                raise ValueError(
                    f"Differential Transformer: {name}={value!r} is not what variant {self.variant} does; "
                    f"it stands for {' or '.join(map(repr, allowed))}."
                )

    # What follows from the keys

    @property
    def key_maps(self) -> int:
        """Keys that a cached head holds: one for each map in v1 and diffllama, one for both in v2."""
        return 1 if self.variant == "v2" else 2

    @property
    def heads(self) -> int:
        """H, the differential heads."""
        return self.num_attention_heads // 2

    @property
    def cached_heads(self) -> int:
        """G, the key/value heads that share one cache entry; each serves H / G differential heads."""
        return (self.num_key_value_heads or 0) // self.key_maps

    @property
    def cached_width(self) -> int:
        """Width of a cached key, of a value and of a head's output: 2d, in v2 d."""
        return self.key_maps * (self.head_dim or 0)

    @property
    def scale(self) -> float:
        """Factor on the scores, from the width of one map."""
        return (self.head_dim or 1) ** -0.5

    @property
    def rope_interleaved(self) -> bool:
        """Whether the rotation turns the pairs (2i, 2i+1) rather than (i, i + d/2)."""
        return self.variant != "diffllama"

    @property
    def head_norm_eps(self) -> float | None:
        """Epsilon of the norm over each head's output; None in v2, which has no such norm."""
        return {"v1": self.subln_eps, "v2": None, "diffllama": self.rms_norm_eps}[self.variant]

    # Checks

    def _check(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"):
            if (getattr(self, name) or 0) < 1:
                raise ValueError(f"Differential Transformer: {name} must be at least 1, got {getattr(self, name)}.")
        self._check_heads()
        rope = self.rope_parameters or {}
        if rope.get("rope_type") not in ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(
                f"Differential Transformer: rope_parameters={rope} are not supported: "
                f"rope_type must be one of {', '.join(ROPE_TYPES)}, over the whole head_dim."
            )
        for name, allowed, reason in (
            ("hidden_act", ("silu",), "the feed-forward gate is SiLU"),
            ("attention_dropout", (0.0, 0), "no paper says what it means for a difference of maps"),
            ("attention_bias", (False, True) if self.variant == "diffllama" else (False,), "v1 and v2 have no biases"),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"Differential Transformer: {name}={getattr(self, name)!r} is not supported: {reason}."
                )
        if self.variant != "v1" and self.subln_eps is not None:
            raise ValueError(f"Differential Transformer: subln_eps is a key of v1, not of {self.variant}: drop it.")

    def _check_heads(self) -> None:
        maps, key_maps = self.num_attention_heads, self.num_key_value_heads or 0
        if maps % 2:
            raise ValueError(
                f"Differential Transformer: num_attention_heads={maps} must be even: each head has two maps."
            )
        if key_maps % self.key_maps:
            raise ValueError(
                f"Differential Transformer: num_key_value_heads={key_maps} must be even in variant {self.variant}: "
                "each cached head has a key for either map."
            )
        if self.heads % self.cached_heads:
            raise ValueError(
                f"Differential Transformer: num_key_value_heads={key_maps} makes {self.cached_heads} cached heads, "
                f"over which {self.heads} differential heads cannot be split evenly."
            )
        if (self.head_dim or 0) % 2:
            raise ValueError(f"Differential Transformer: head_dim={self.head_dim} must be even, for the rotation.")
        if self.variant == "v1" and maps * (self.head_dim or 0) != self.hidden_size:
            raise ValueError(
                f"Differential Transformer: in v1 hidden_size is two maps times heads times head_dim, "
                f"but {maps} * {self.head_dim} is not {self.hidden_size}."
            )
