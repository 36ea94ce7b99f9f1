"""Attention as others ship it, for comparison; none is needed to run the benchmark."""

from collections.abc import Callable
from typing import Any

import torch

from nlrl_kernels.bench.case import UnavailableError


def vllm_flash_attention() -> tuple[Callable[..., Any], int]:
    """The ``flash_attn_varlen_func`` of vLLM, and the version that it runs here: 3 on Hopper, else 2.

    Raises:
        UnavailableError: without vLLM's build for CUDA.
    """
    try:
        from vllm.vllm_flash_attn import flash_attn_varlen_func
        from vllm.vllm_flash_attn.flash_attn_interface import is_fa_version_supported
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(f"vLLM's FlashAttention cannot be imported here ({type(error).__name__})") from error
    for version in (3, 2):
        if is_fa_version_supported(version):
            return flash_attn_varlen_func, version
    raise UnavailableError("vLLM's FlashAttention has no build for this device")


def packed_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, longest: int, scale: float
) -> torch.Tensor:
    """Causal attention of packed rows, queries and keys alike, by vLLM's FlashAttention."""
    function, version = vllm_flash_attention()
    return function(
        q, k, v, longest, starts, longest, cu_seqlens_k=starts, softmax_scale=scale, causal=True, fa_version=version
    )


def dense_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Causal attention of one row [T, H, D] by torch."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return out[0].transpose(0, 1)
