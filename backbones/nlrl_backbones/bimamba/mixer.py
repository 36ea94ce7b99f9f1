"""Mamba-2's mixer with binarised projections. Scan, cache and cached convolution are transformers' own (``mamba2``).

Only what joins them is here, for three reasons. Their mixer hands ``out_proj.weight`` to a fused kernel when
``mamba_ssm`` is installed, which would multiply with latent weights (the official ``generate.py`` has that trap too).
Under autocast it would form the scan's products in 16 bits. And it has no float64.

Axes: B batch, T tokens, E model width, C channels of the convolution, H heads, P channels of a head, N state.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import Cache
from transformers.models.mamba2.modeling_mamba2 import (
    causal_conv1d_fn,
    mamba2_chunk_scan,
    mamba2_selective_state_update,
)

from nlrl_backbones.bimamba.config import BiMambaConfig
from nlrl_backbones.bimamba.linear import LatentLinear, PackedLinear
from nlrl_backbones.common.convolution import shifted_convolution


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32, or in float64 if it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over all of the last axis, in float32 or wider."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm in the dtype of its weight."""
        y = wide(x)
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return y.to(self.weight.dtype) * self.weight


class BiMambaMixer(nn.Module):
    """(z, xBC, dt) = in_proj(u); out_proj(norm(scan(silu(conv(xBC)), dt) * silu(z)))."""

    def __init__(self, config: BiMambaConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.in_proj = self._projection("in_proj", config.d_model, config.projection_size)
        self.conv1d = nn.Conv1d(config.conv_size, config.conv_size, config.conv_kernel, groups=config.conv_size)
        self.dt_bias = nn.Parameter(torch.empty(config.num_heads))
        self.A_log = nn.Parameter(torch.empty(config.num_heads))
        self.D = nn.Parameter(torch.empty(config.num_heads))
        self.norm = RMSNorm(config.intermediate_size, config.layer_norm_epsilon)
        self.out_proj = self._projection("out_proj", config.intermediate_size, config.d_model)

    def _projection(self, name: str, inputs: int, outputs: int) -> nn.Module:
        if self.config.weight_format == "latent":
            return LatentLinear(inputs, outputs)
        zeros = self.config.packed_zeros.get(f"backbone.layers.{self.layer}.mixer.{name}", 0)
        return PackedLinear(inputs, outputs, zeros)

    def forward(
        self, x_BTE: torch.Tensor, cache: Cache | None = None, real_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, T, E] to [B, T, E], following on what the cache holds.

        ``real_BT`` is 0 at padding, which may only stand in front of a row: there it leaves state and convolution as
        they start, at zero.
        """
        config = self.config
        if real_BT is not None:
            x_BTE = x_BTE * real_BT[..., None]
        sizes = [config.intermediate_size, config.conv_size, config.num_heads]
        z, xBC, dt = self.in_proj(x_BTE).split(sizes, dim=-1)
        known = cache is not None and cache.has_previous_state(self.layer)
        xBC = self._convolve(xBC, cache)
        if real_BT is not None:
            xBC = xBC * real_BT[..., None]
        y = self._opaque_scan(xBC, z, dt, cache, known)
        return self.out_proj(self.norm(y))

    def _gated_scan(
        self, xBC: torch.Tensor, z: torch.Tensor, dt: torch.Tensor, cache: Cache | None, known: bool
    ) -> torch.Tensor:
        # Autocast would round the scan's float32 products to 16 bits.
        with torch.autocast(xBC.device.type, enabled=False), _KeepFloat64():
            return self._scan(wide(xBC), wide(dt), cache, known) * F.silu(wide(z))

    # The library's Triton launches and the mode above are not for torch.compile to follow.
    _opaque_scan: Any = torch.compiler.disable(_gated_scan)

    def _convolve(self, xBC_BTC: torch.Tensor, cache: Cache | None) -> torch.Tensor:
        tokens, past = xBC_BTC.shape[1], self.config.conv_kernel - 1
        if cache is None:  # in training
            assert self.conv1d.bias is not None
            return shifted_convolution(F.pad(xBC_BTC, (0, 0, past, 0)), self.conv1d.weight[:, 0], self.conv1d.bias)
        xBC_BCT = xBC_BTC.transpose(1, 2)
        xBC_BCT = cache.update_conv_state(xBC_BCT, self.layer, conv_kernel_size=self.config.conv_kernel)
        out = causal_conv1d_fn(xBC_BCT, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        return out[:, :, -tokens:].transpose(1, 2)

    def _scan(self, xBC_BTC: torch.Tensor, dt_BTH: torch.Tensor, cache: Cache | None, known: bool) -> torch.Tensor:
        """The state-space part with its skip: [B, T, H P]."""
        config = self.config
        batch, tokens = xBC_BTC.shape[:2]
        heads, width, states = config.num_heads, config.head_dim, config.n_groups * config.state_size
        x, B, C = xBC_BTC.split([config.intermediate_size, states, states], dim=-1)
        A, D, dt_bias = -torch.exp(wide(self.A_log)), wide(self.D), wide(self.dt_bias)
        layer: Any = cache.layers[self.layer] if cache is not None else None
        if known and tokens == 1:
            y = mamba2_selective_state_update(
                layer.recurrent_states[0],  # changed in place
                x.reshape(batch, heads, width),
                dt_BTH.transpose(1, 2).expand(-1, -1, width),
                A[:, None, None].expand(-1, width, config.state_size),
                B.reshape(batch, config.n_groups, -1),
                C.reshape(batch, config.n_groups, -1),
                D[:, None].expand(-1, width),
                dt_bias=dt_bias[:, None].expand(-1, width),
                dt_softplus=True,
            )
            return y.reshape(batch, 1, -1)
        y, final = mamba2_chunk_scan(
            x.reshape(batch, tokens, heads, width),
            dt_BTH,
            A,
            B.reshape(batch, tokens, config.n_groups, -1),
            C.reshape(batch, tokens, config.n_groups, -1),
            chunk_size=config.chunk_size,
            D=D,
            dt_bias=dt_bias,
            dt_softplus=True,
            initial_states=layer.recurrent_states[0] if known else None,
            return_final_states=True,
        )
        if cache is not None:
            cache.update_recurrent_state(final, layer_idx=self.layer)
        return y.reshape(batch, tokens, -1)


class _KeepFloat64(TorchFunctionMode):
    """Within it, ``x.float()`` leaves a float64 tensor alone: so the library's scan runs in float64 as well."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float and args[0].dtype == torch.float64:
            return args[0]
        return func(*args, **(kwargs or {}))
