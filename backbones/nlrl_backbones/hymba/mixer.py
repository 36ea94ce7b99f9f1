"""Hymba's mixer: attention heads and Mamba channels side by side on the same input.

Source: Dong et al. 2024, arXiv 2411.13676, section 2; parameter names and the order of rows are the official file's.

Axes: B batch, T tokens of this call, S cached and new tokens, E model width, H query heads, G key/value heads,
D key width, V value width, C scan channels (= H V), N scan states, K convolution width - 1.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nlrl_backbones.common.convolution import shifted_convolution
from nlrl_backbones.hymba.cache import LayerCache, Rows
from nlrl_backbones.hymba.config import HymbaConfig
from nlrl_backbones.hymba.weights import in_proj_rows
from nlrl_kernels import (
    implementation_for,
    mean_of_norms,
    pinned_window_attention_varlen,
    selection_norms,
    selective_scan,
)

KeysValues = tuple[torch.Tensor, torch.Tensor]

# torch.compile steps over it: the reference's loop would be unrolled token by token.
_opaque_scan: Any = torch.compiler.disable(selective_scan)


class RMSNorm(nn.RMSNorm):
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last axis."""

    def __init__(self, width: int, config: HymbaConfig) -> None:
        super().__init__(width, eps=config.rms_norm_eps)


class HymbaMixer(nn.Module):
    """Attention heads and scan channels on the same input: one projection in, one out, their normed mean between.

    The rows of ``in_proj`` are query, key, value, scan input, scan gate; a layer that reads another layer's keys and
    values has no key and value rows. Parameter names with an index follow the official file.
    """

    def __init__(self, config: HymbaConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.window = config.window(layer)
        self.is_consumer = config.is_consumer(layer)
        inner, rank, states = config.inner_size, config.mamba_dt_rank, config.mamba_d_state
        rows = dict(in_proj_rows(config, layer))
        self.split = [rows.get(part, 0) for part in ("query", "key", "value", "scan_input", "gate")]
        self.in_proj = nn.Linear(config.hidden_size, sum(self.split), bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.mamba_d_conv, groups=inner)
        self.x_proj = nn.ModuleList([nn.Linear(inner, rank + 2 * states, bias=False)])
        self.dt_proj = nn.ModuleList([nn.Linear(rank, inner)])
        self.A_log = nn.ParameterList([nn.Parameter(torch.empty(inner, states))])
        self.D = nn.ParameterList([nn.Parameter(torch.empty(inner))])
        self.dt_layernorm = RMSNorm(rank, config)
        self.B_layernorm = RMSNorm(states, config)
        self.C_layernorm = RMSNorm(states, config)
        self.pre_avg_layernorm1 = RMSNorm(inner, config)  # attention branch
        self.pre_avg_layernorm2 = RMSNorm(inner, config)  # scan branch
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(
        self,
        x_BTE: torch.Tensor,
        shared: KeysValues | None,
        rows: Rows,
        rotary: KeysValues,
        cache: LayerCache | None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """[B, T, E] to [B, T, E], and the keys and values attended to, cached ones included, for the sharers."""
        projected = project(self.in_proj, x_BTE, rows.spared)
        query, key, value, scan_input_BTC, gate_BTC = projected.split(self.split, dim=-1)
        q_BHTD = _rotate(self._heads(query, self.config.key_head_dim), *rotary)
        if self.is_consumer:
            assert shared is not None
            keys_values = shared
        else:
            k_BHTD = _rotate(self._heads(key, self.config.key_head_dim), *rotary)
            v_BHTV = self._heads(value, self.config.value_head_dim)
            keys_values = (k_BHTD, v_BHTV) if cache is None else cache.append(k_BHTD, v_BHTV)
        attention_BTC = self._attend(q_BHTD, *keys_values, rows)
        scan_BTC = self._scan(scan_input_BTC, gate_BTC, rows, cache)
        weights = (self.pre_avg_layernorm1.weight, self.pre_avg_layernorm2.weight)
        mean_BTC = mean_of_norms(attention_BTC, scan_BTC, *weights, self.config.rms_norm_eps)
        return project(self.out_proj, mean_BTC, rows.spared), keys_values

    def _heads(self, x_BTC: torch.Tensor, width: int) -> torch.Tensor:
        return x_BTC.unflatten(-1, (-1, width)).transpose(1, 2)

    def _attend(self, q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSV: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Attention of the new tokens over all, [B, T, C]: by a kernel where there is one for this device."""
        if rows.packed and implementation_for(q_BHTD) == "triton":
            return self._attend_packed(q_BHTD, k_BGSD, v_BGSV, rows)
        repeats = q_BHTD.shape[1] // k_BGSD.shape[1]  # each key/value head serves a block of query heads
        k_BHSD, v_BHSV = (x.repeat_interleave(repeats, dim=1) for x in (k_BGSD, v_BGSV))
        out_BHTV = F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSV, attn_mask=rows.visible(self.window), scale=self.config.key_head_dim**-0.5
        )
        return out_BHTV.transpose(1, 2).flatten(2)

    def _attend_packed(
        self, q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSV: torch.Tensor, rows: Rows
    ) -> torch.Tensor:
        (batch, _, length, _), slots = q_BHTD.shape, k_BGSD.shape[2]
        q_IHD, k_IGD, v_IGV = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTD, k_BGSD, v_BGSV))
        out_IHV = pinned_window_attention_varlen(
            q_IHD,
            k_IGD,
            v_IGV,
            starts_R1=rows.starts(batch, length),
            key_starts_R1=rows.starts(batch, slots),
            max_query_len=length,
            window=None if self.window is None else self.window - rows.narrowed,
            pinned=self.config.num_meta,
            scale=self.config.key_head_dim**-0.5,
        )
        return out_IHV.unflatten(0, (batch, length)).flatten(2)

    def _scan(self, x_BTC: torch.Tensor, gate_BTC: torch.Tensor, rows: Rows, cache: LayerCache | None) -> torch.Tensor:
        u_BTC = self._convolve(x_BTC, rows, cache)
        dt_weight, B_weight, C_weight = self.dt_layernorm.weight, self.B_layernorm.weight, self.C_layernorm.weight
        selected_BTP = project(self.x_proj[0], u_BTC, rows.spared)
        dt_BTR, B_BTN, C_BTN = selection_norms(selected_BTP, dt_weight, B_weight, C_weight, self.config.rms_norm_eps)
        delta_BTC = project(self.dt_proj[0], dt_BTR, rows.spared)
        if rows.padded:  # a step of size 0, the softplus of minus infinity, leaves the state as it is
            delta_BTC = delta_BTC.masked_fill(~rows.real_BT[..., None], float("-inf"))
        A_CN = -torch.exp(self.A_log[0].to(torch.promote_types(x_BTC.dtype, torch.float32)))
        start = None if cache is None else cache.scan_BCN
        y_BTC, final_BCN = _opaque_scan(u_BTC, delta_BTC, A_CN, B_BTN, C_BTN, self.D[0], gate_BTC, start, softplus=True)
        if cache is not None:
            cache.scan_BCN = final_BCN
        return y_BTC

    def _convolve(self, x_BTC: torch.Tensor, rows: Rows, cache: LayerCache | None) -> torch.Tensor:
        """SiLU of the causal depthwise convolution over what is cached and the new tokens."""
        past = self.config.mamba_d_conv - 1
        if cache is None or cache.conv_BKC is None:
            raw_BTC = F.pad(x_BTC, (0, 0, past, 0))
        else:
            raw_BTC = torch.cat([cache.conv_BKC, x_BTC], dim=1)
        if cache is not None:
            cache.conv_BKC = rows.last_real(raw_BTC, past)
        assert self.conv1d.bias is not None
        return shifted_convolution(raw_BTC, self.conv1d.weight[:, 0], self.conv1d.bias)


def project(linear: nn.Module, x_BTE: torch.Tensor, spared: int) -> torch.Tensor:
    """A projection of which an adapter, if one wraps it, leaves the first ``spared`` tokens alone.

    What the meta tokens leave behind then depends on the base weights only, as it must where it is computed once and
    serves requests with any adapter. An adapter is a module with the wrapped one as ``base_layer``, as peft's are.
    """
    base = getattr(linear, "base_layer", None)
    if base is None or not spared:
        return linear(x_BTE)
    return torch.cat([base(x_BTE[:, :spared]), linear(x_BTE[:, spared:])], dim=1)


def rotary_table(positions_BT: torch.Tensor, config: HymbaConfig, dtype: torch.dtype) -> KeysValues:
    """Cosines and sines [B, 1, T, D] of the half-split rotation (Su et al. 2021, arXiv 2104.09864)."""
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, config.key_head_dim, 2, dtype=wide, device=positions_BT.device) / config.key_head_dim
    angles = positions_BT[:, None, :, None].to(wide) * config.rope_base**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x_BHTD: torch.Tensor, cos_B1TD: torch.Tensor, sin_B1TD: torch.Tensor) -> torch.Tensor:
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_B1TD + torch.cat([-second, first], dim=-1) * sin_B1TD
