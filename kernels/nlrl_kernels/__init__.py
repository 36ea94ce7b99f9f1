"""Kernels of the backbones: each operator in Triton and, as its definition, in plain torch."""

from nlrl_kernels.dispatch import implementation_for, use_implementation
from nlrl_kernels.ops import (
    binary_linear,
    diff_attention_paged,
    diff_attention_varlen,
    latent_linear,
    normalize_vectors_,
    normed_binary_linear,
    pinned_window_attention,
    pinned_window_attention_varlen,
    qk_step,
    residual_step,
    scaled_swiglu,
)
from nlrl_kernels.ops_scan import (
    causal_conv1d_update,
    causal_conv1d_varlen,
    mean_of_norms,
    selection_norms,
    selective_scan,
    selective_scan_varlen,
    selective_state_update,
)

__all__ = [
    "binary_linear",
    "causal_conv1d_update",
    "causal_conv1d_varlen",
    "diff_attention_paged",
    "diff_attention_varlen",
    "implementation_for",
    "latent_linear",
    "mean_of_norms",
    "normalize_vectors_",
    "normed_binary_linear",
    "pinned_window_attention",
    "pinned_window_attention_varlen",
    "qk_step",
    "residual_step",
    "scaled_swiglu",
    "selection_norms",
    "selective_scan",
    "selective_scan_varlen",
    "selective_state_update",
    "use_implementation",
]
