"""vLLM's own paged attention for heads of any width: widths that the running kernel lacks are padded with zeros.

A zero in a query or key adds nothing to their product, and a zero in a value comes out as a zero, so the padding is
exact; it costs cache memory alone. The stock backends page keys and values of one width, so unequal widths are padded
to the larger one.
"""

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.platforms import current_platform

_CPU_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head widths of vLLM's attention on a CPU (``v1/attention/backends/cpu_attn.py``); others fail at the first step."""
_CUDA_STEP = 32
"""FlashAttention and Triton attention take every multiple of this up to 256."""


def kernel_width(width: int) -> int:
    """The smallest head width of the running attention kernel that holds ``width``.

    Raises:
        ValueError: heads wider than any kernel.
    """
    widths = _CPU_WIDTHS if current_platform.is_cpu() else tuple(range(_CUDA_STEP, 257, _CUDA_STEP))
    fitting = [known for known in widths if known >= width]
    if not fitting:
        raise ValueError(
            f"Attention heads of width {width} exceed the widest kernel, {widths[-1]}: use narrower heads."
        )
    return fitting[0]


class PlainAttention(nn.Module):
    """Causal paged attention over all earlier tokens, by the backend that vLLM chooses.

    Args:
        num_heads: query heads on this device.
        head_dim: width of a query or key head.
        scale: factor on the scores, before any padding.
        num_kv_heads: key/value heads on this device; divides ``num_heads``.
        vllm_config: the engine's configuration.
        prefix: unique layer name that holds one integer, such as ``model.layers.3.attn``.
        head_dim_v: width of a value head; ``head_dim`` when None.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        scale: float,
        num_kv_heads: int,
        *,
        vllm_config: VllmConfig,
        prefix: str,
        head_dim_v: int | None = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.head_dim_v = head_dim, head_dim_v or head_dim
        self.width = kernel_width(max(self.head_dim, self.head_dim_v))
        # Some backends size their buffers by what vLLM read from config.json, which is the width before padding.
        vllm_config.model_config.model_arch_config.head_size = self.width
        self.attn = Attention(
            num_heads,
            self.width,
            scale,
            num_kv_heads=num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            prefix=prefix,
        )

    def forward(self, q_TC: torch.Tensor, k_TC: torch.Tensor, v_TC: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values of the step's tokens, heads side by side, to [T, num_heads * head_dim_v]."""
        out_TC = self.attn(
            self._pad(q_TC, self.head_dim), self._pad(k_TC, self.head_dim), self._pad(v_TC, self.head_dim_v)
        )
        if self.width == self.head_dim_v:
            return out_TC
        return out_TC.unflatten(-1, (-1, self.width))[..., : self.head_dim_v].flatten(-2)

    def _pad(self, x_TC: torch.Tensor, width: int) -> torch.Tensor:
        if width == self.width:
            return x_TC
        return F.pad(x_TC.unflatten(-1, (-1, width)), (0, self.width - width)).flatten(-2)
