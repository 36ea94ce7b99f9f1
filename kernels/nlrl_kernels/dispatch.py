"""Triton or plain torch, decided here and nowhere else.

The rule: Triton for tensors on a CUDA device when ``triton`` can be imported, else the torch reference. Tests (and
anyone who doubts a kernel) override it with ``use_implementation``.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch

Implementation = Literal["triton", "reference"]

_FOLDERS = {
    "selective_scan": "mamba_scan",
    "selective_scan_varlen": "mamba_scan",
    "selective_state_update": "mamba_scan",
    "mean_of_norms": "hymba_norms",
    "selection_norms": "hymba_norms",
    "causal_conv1d_varlen": "causal_conv",
    "causal_conv1d_update": "causal_conv",
    "pinned_window_attention": "window_attention",
    "pinned_window_attention_varlen": "window_attention",
    "binary_linear": "binary",
    "normed_binary_linear": "binary",
    "latent_linear": "binary",
    "diff_attention_varlen": "diff_attention",
    "diff_attention_paged": "diff_attention",
    "residual_step": "hypersphere",
    "qk_step": "hypersphere",
    "scaled_swiglu": "hypersphere",
    "normalize_vectors_": "hypersphere",
}
"""Operator -> folder; each folder holds ``reference.py`` and ``triton_impl.py`` with functions of the same name."""

_override: ContextVar[Implementation | None] = ContextVar("nlrl_kernels_override", default=None)


@contextmanager
def use_implementation(name: Implementation) -> Iterator[None]:
    """Run every operator inside the block with one implementation, whatever the device.

    Raises:
        ValueError: for a name that is neither "triton" nor "reference".
    """
    if name not in ("triton", "reference"):
        raise ValueError(f"There is no implementation {name!r}: choose 'triton' or 'reference'.")
    token = _override.set(name)
    try:
        yield
    finally:
        _override.reset(token)


def implementation_for(tensor: torch.Tensor) -> Implementation:
    """Which implementation an operator on this tensor runs.

    torch.compile can follow this, but not ``use_implementation``: what it compiles goes by the rule.
    """
    chosen = None if torch.compiler.is_dynamo_compiling() else _override.get()
    if chosen is not None:
        return chosen
    return "triton" if tensor.is_cuda and _has_triton else "reference"


def select(operator: str, tensor: torch.Tensor) -> Callable[..., Any]:
    """The function that computes ``operator`` on this tensor; its module is imported on first use."""
    file = "triton_impl" if implementation_for(tensor) == "triton" else "reference"
    return getattr(importlib.import_module(f"nlrl_kernels.{_FOLDERS[operator]}.{file}"), operator)


_has_triton = importlib.util.find_spec("triton") is not None
