"""nGPT's configuration: the ``model_args`` that the published training script saves, read unchanged.

Source: NVIDIA/ngpt, ``model.py`` and ``train.py`` (Loshchilov et al. 2024, arXiv 2410.01131). With ``use_nGPT=0`` the
same file describes the GPT that the paper compares with. The defaults are those of ``train.py``. Importable with
transformers alone: no torch model, no vLLM.
"""

from typing import Any, ClassVar

from transformers import PretrainedConfig

from nlrl_backbones.common.configuration import refuse_unknown_keys

POSITIONS = ("official", "rotary")
BASELINE_SCALE = 0.02
"""``base_scale`` of the baseline: the standard deviation of its initialisation."""
MLP_RATIO = 4
"""Inner width of the feed-forward part over the model's; fixed in the published file."""

_REQUIRED: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_nGPT": ((0, 1), "1 is nGPT, 0 its GPT baseline"),
    "bias": ((False, 0), "the projections have no bias"),
    "dropout": ((0.0,), "the published code builds a dropout layer and never applies it"),
    "tie_word_embeddings": ((False,), "the head is a matrix of its own"),
    "position": (POSITIONS, "the position step is 'official' (the published file's) or 'rotary' (the textbook's)"),
}


class NGPTConfig(PretrainedConfig):
    """Sizes of an nGPT model or of its GPT baseline; the keys are those of the published ``model_args``.

    transformers' and vLLM's names (``hidden_size``, ``num_hidden_layers``, ``max_position_embeddings``, ...) are
    aliases. Two things are ours: ``position``, which the published file does not have, and ``base_scale``, which may be
    left out or 0 and is then 1/sqrt(n_embd), or 0.02 for the baseline.

    Raises:
        ValueError: one sentence, for a key that is not nGPT's or a setting that this implementation lacks.
    """

    model_type: ClassVar[str] = "ngpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_head",
        "max_position_embeddings": "block_size",
        "n_positions": "block_size",
    }

    use_nGPT: int = 1
    n_layer: int = 12
    n_head: int = 16
    n_embd: int = 1024
    block_size: int = 1024
    base_scale: float = 0.0
    bias: bool = False
    vocab_size: int = 50304
    dropout: float = 0.0
    position: str = "official"
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **other_keys: Any) -> None:
        """Refuse unknown keys, fill in the scale, then check the settings."""
        refuse_unknown_keys("nGPT", other_keys, NGPTConfig, also=NGPTConfig.attribute_map)
        other_keys.pop("model_type", None)
        super().__post_init__(**other_keys)
        self._check()
        self.use_nGPT = int(self.use_nGPT)
        if self.base_scale == 0:
            self.base_scale = self.n_embd**-0.5 if self.use_nGPT else BASELINE_SCALE

    @property
    def head_dim(self) -> int:
        """Width of a head, D."""
        return self.n_embd // self.n_head

    @property
    def intermediate_size(self) -> int:
        """Inner width of the feed-forward part, F; ``c_fc`` has 2 F rows."""
        return MLP_RATIO * self.n_embd

    @property
    def softmax_scale(self) -> float:
        """Factor on the attention scores: sqrt(D) after unit queries and keys, 1/sqrt(D) in the baseline."""
        return self.head_dim**0.5 if self.use_nGPT else self.head_dim**-0.5

    def _check(self) -> None:
        for name, (allowed, reason) in _REQUIRED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"nGPT: {name}={getattr(self, name)!r} is not supported: {reason}.")
        for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"nGPT: {name} must be at least 1, got {getattr(self, name)}.")
        if self.base_scale < 0:
            raise ValueError(f"nGPT: base_scale must be above 0, got {self.base_scale}.")
        if self.n_embd % self.n_head or self.head_dim % 2:
            raise ValueError(f"nGPT: n_embd {self.n_embd} over {self.n_head} heads must give an even whole width.")
