"""Bi-Mamba's configuration: the official JSON read unchanged, and what transformers' and vLLM's Mamba-2 read.

Source: Tang et al. 2024 (arXiv 2411.11843) and the ``mamba_config/*.json`` of its code, whose keys are those of
``mamba_ssm``. Defaults are the 780M model's. Importable with transformers alone: no torch model, no vLLM.
"""

from dataclasses import field
from typing import Any, ClassVar

from transformers import PretrainedConfig

from nlrl_backbones.common.configuration import refuse_unknown_keys

SIZES: dict[str, dict[str, Any]] = {
    "780M": {"d_model": 1536, "n_layer": 48},
    "1.3B": {"d_model": 2048, "n_layer": 48},
    "2.7B": {"d_model": 2560, "n_layer": 64},
}
"""The published sizes; the vocabulary is LLaMA's 32000 in all of them, and everything else the default."""
WEIGHT_FORMATS = ("latent", "packed")

_SSM_DEFAULTS: dict[str, Any] = {
    "layer": "Mamba2", "d_state": 128, "d_conv": 4, "expand": 2, "headdim": 64, "ngroups": 1, "chunk_size": 256,
    "A_init_range": [1, 16], "dt_min": 0.001, "dt_max": 0.1, "dt_init_floor": 1e-4,
}  # fmt: skip
"""Keys of ``ssm_cfg`` that may be set, and what they are when they are not."""
_SSM_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "layer": (("Mamba2",), "only Mamba-2 mixers are binarised"),
    "ngroups": ((1,), "the official code disagrees with itself about the gated norm of several groups"),
    "norm_before_gate": ((False,), "the gate is applied before the norm"),
    "rmsnorm": ((True,), "the gated norm is always there"),
    "bias": ((False,), "the projections have no bias"),
    "conv_bias": ((True,), "the convolution always has a bias"),
    "D_has_hdim": ((False,), "D is one number a head"),
    "d_ssm": ((None,), "the scan runs over all inner channels"),
    "conv_init": ((None,), "the convolution starts as torch's"),
    "dt_limit": (((0.0, float("inf")), [0.0, float("inf")]), "step sizes are not clamped"),
    "use_mem_eff_path": ((True, False), "a switch of the official kernels"),
}
_FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "d_intermediate": ((0,), "a layer has no feed-forward part"),
    "attn_layer_idx": (([], None), "no layer has attention"),
    "attn_cfg": (({}, None), "no layer has attention"),
    "rms_norm": ((True,), "norms are RMS norms"),
    "residual_in_fp32": ((True,), "the residual is always carried in float32"),
    "fused_add_norm": ((True, False), "a switch of the official kernels"),
}


class BiMambaConfig(PretrainedConfig):
    """Sizes of a Bi-Mamba model; the keys are those of the official JSON, ``ssm_cfg`` among them as it stands.

    Two keys are ours. ``weight_format`` says whether the projections are "latent" (the real numbers that training
    moves, whose signs count) or "packed" (the signs, one bit each). ``packed_zeros`` gives for a packed projection the
    number of its exact zeros, where it has any.

    ``vocab_size`` is rounded up to a multiple of ``pad_vocab_size_multiple``, as the official model does: embedding,
    head and logits have that many rows.

    Raises:
        ValueError: one sentence, for a key that is not Bi-Mamba's or a setting that this implementation lacks.
    """

    model_type: ClassVar[str] = "bimamba"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "tie_word_embeddings": "tie_embeddings",
    }

    d_model: int = 1536
    d_intermediate: int = 0
    n_layer: int = 48
    vocab_size: int = 32000
    ssm_cfg: dict[str, Any] = field(default_factory=lambda: {"layer": "Mamba2"})
    attn_layer_idx: list[int] | None = field(default_factory=list)
    attn_cfg: dict[str, Any] | None = field(default_factory=dict)
    rms_norm: bool = True
    residual_in_fp32: bool = True
    fused_add_norm: bool = True
    pad_vocab_size_multiple: int = 16
    tie_embeddings: bool = True
    weight_format: str = "latent"
    packed_zeros: dict[str, int] = field(default_factory=dict)
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **other_keys: Any) -> None:
        """Refuse unknown keys and settings, then round the vocabulary up."""
        refuse_unknown_keys("Bi-Mamba", other_keys, BiMambaConfig, also=("layer_types",))
        for key in ("model_type", "layer_types"):
            other_keys.pop(key, None)
        super().__post_init__(**other_keys)
        self._check()
        self.vocab_size += -self.vocab_size % self.pad_vocab_size_multiple

    # Names of transformers' and vLLM's Mamba-2

    @property
    def expand(self) -> int:
        """Inner width over model width."""
        return self._ssm("expand")

    @property
    def intermediate_size(self) -> int:
        """Inner width: channels of the scan."""
        return self.expand * self.d_model

    @property
    def head_dim(self) -> int:
        """Channels of a head, which share one step size and one decay."""
        return self._ssm("headdim")

    @property
    def num_heads(self) -> int:
        """Heads of the scan."""
        return self.intermediate_size // self.head_dim

    @property
    def state_size(self) -> int:
        """Numbers of state kept for each channel."""
        return self._ssm("d_state")

    @property
    def conv_kernel(self) -> int:
        """Width of the causal convolution."""
        return self._ssm("d_conv")

    @property
    def n_groups(self) -> int:
        """Groups of heads with a B and C of their own."""
        return self._ssm("ngroups")

    @property
    def chunk_size(self) -> int:
        """Tokens that the scan takes at once: speed and memory, not results."""
        return self._ssm("chunk_size")

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.intermediate_size + 2 * self.n_groups * self.state_size

    @property
    def projection_size(self) -> int:
        """Rows of ``in_proj``: z, x, B, C and dt, in this order."""
        return self.intermediate_size + self.conv_size + self.num_heads

    @property
    def hidden_act(self) -> str:
        """Activation after the convolution and of the gate."""
        return "silu"

    @property
    def use_bias(self) -> bool:
        """Whether the projections have a bias."""
        return False

    @property
    def use_conv_bias(self) -> bool:
        """Whether the convolution has a bias."""
        return True

    @property
    def layer_types(self) -> list[str]:
        """Kind of each layer's cache: a convolution state and a recurrent one."""
        return ["linear_attention"] * self.n_layer

    # Initialisation

    @property
    def decay_range(self) -> tuple[float, float]:
        """Range of -A at the start, uniform."""
        low, high = self._ssm("A_init_range")
        return float(low), float(high)

    @property
    def step_range(self) -> tuple[float, float, float]:
        """Smallest and largest step size at the start, log-uniform between, and the floor below which none is."""
        return self._ssm("dt_min"), self._ssm("dt_max"), self._ssm("dt_init_floor")

    def _ssm(self, key: str) -> Any:
        return self.ssm_cfg.get(key, _SSM_DEFAULTS[key])

    # Checks

    def _check(self) -> None:
        for name, (allowed, reason) in _FIXED.items():
            _check_setting(name, getattr(self, name), allowed, reason)
        if "layer" not in self.ssm_cfg:
            raise ValueError(
                'Bi-Mamba: ssm_cfg must say "layer": "Mamba2" (without it the official code means Mamba-1).'
            )
        unknown = sorted(self.ssm_cfg.keys() - _SSM_DEFAULTS.keys() - _SSM_FIXED.keys())
        if unknown:
            raise ValueError(
                f"Bi-Mamba: unknown keys {unknown} in ssm_cfg; the known ones are {sorted(_SSM_DEFAULTS | _SSM_FIXED)}."
            )
        for name, value in self.ssm_cfg.items():
            if name in _SSM_FIXED:
                _check_setting(f"ssm_cfg.{name}", value, *_SSM_FIXED[name])
        self._check_sizes()
        if self.weight_format not in WEIGHT_FORMATS:
            raise ValueError(f"Bi-Mamba: weight_format is {self.weight_format!r}: choose latent or packed.")
        if self.packed_zeros and self.weight_format != "packed":
            raise ValueError("Bi-Mamba: packed_zeros belongs to weight_format packed; latent weights hold their zeros.")

    def _check_sizes(self) -> None:
        sizes = {name: getattr(self, name) for name in ("d_model", "n_layer", "vocab_size", "pad_vocab_size_multiple")}
        sizes |= {f"ssm_cfg.{key}": self._ssm(key) for key in ("d_state", "expand", "headdim", "chunk_size")}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"Bi-Mamba: {name} must be a whole number of at least 1, got {size!r}.")
        if not 2 <= self.conv_kernel <= 4:
            raise ValueError(f"Bi-Mamba: ssm_cfg.d_conv must be 2, 3 or 4, got {self.conv_kernel}.")
        if self.intermediate_size % self.head_dim:
            raise ValueError(
                f"Bi-Mamba: expand * d_model = {self.intermediate_size} must be a multiple of ssm_cfg.headdim "
                f"{self.head_dim}."
            )


def _check_setting(name: str, value: Any, allowed: tuple[Any, ...], reason: str) -> None:
    if value not in allowed:
        raise ValueError(f"Bi-Mamba: {name}={value!r} is not supported: {reason}.")
