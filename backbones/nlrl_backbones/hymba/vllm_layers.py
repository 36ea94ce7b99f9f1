"""Norm and activation as vLLM's own, with the compiled loops of ``vllm_cpu`` when a CPU runs float32 eagerly."""

import numpy as np
import torch
from torch import nn
from vllm.config import CompilationMode, VllmConfig, get_current_vllm_config
from vllm.model_executor.layers import activation, layernorm
from vllm.platforms import current_platform


def cpu_loops() -> bool:
    """Whether attention and scan run in the compiled loops of ``vllm_cpu`` instead of ``nlrl_kernels``."""
    return current_platform.is_cpu()


def eager_loops(vllm_config: VllmConfig) -> bool:
    """Whether layers outside vLLM's opaque operations may call compiled loops: torch.compile cannot trace them."""
    return (
        cpu_loops()
        and vllm_config.model_config.dtype == torch.float32
        and vllm_config.compilation_config.mode == CompilationMode.NONE
    )


def without_adapter(linear: nn.Module) -> nn.Module:
    """The projection that vLLM's LoRA layer wraps, or the given one: what the meta tokens pass through."""
    return getattr(linear, "base_layer", linear)


class RMSNorm(layernorm.RMSNorm):
    """vLLM's norm; on a CPU one pass instead of five."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps=eps)
        self._loops = eager_loops(get_current_vllm_config())

    def forward_cpu(
        self, x: torch.Tensor, residual: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not self._loops or residual is not None:
            return self.forward_native(x, residual)
        from .vllm_cpu import rms_norm

        out = torch.empty(x.shape)
        rms_norm(x.numpy(), self.weight.numpy(), np.float32(self.variance_epsilon), out.numpy())
        return out


class SiluAndMul(activation.SiluAndMul):
    """vLLM's gated activation; on a CPU one pass instead of three."""

    def __init__(self) -> None:
        super().__init__()
        self._loops = eager_loops(get_current_vllm_config())

    def forward_cpu(self, x: torch.Tensor) -> torch.Tensor:
        if not self._loops:
            return self.forward_native(x)
        from .vllm_cpu import silu_and_mul

        out = torch.empty(*x.shape[:-1], x.shape[-1] // 2)
        silu_and_mul(x.numpy(), out.numpy())
        return out
