"""Hymba's token mixer under vLLM: attention and a Mamba-1 scan side by side between two shared projections.

Source: Dong et al. 2024 (arXiv 2411.13676), section 2; parameter names are the official checkpoint's.

The meta tokens never enter vLLM's sequences. What they leave behind is constant and is held here: their keys and
values (for every later query), the last raw inputs of the convolution, and the scan's state; a request's first
token starts from those. ``compute_constants`` refreshes them in place, so captured CUDA graphs stay valid. It goes
by the base weights: LoRA acts on real tokens only, in training too (``mixer.project``).

Axis letters: T packed tokens, E model width, I scan channels (= width of the attention output), H key/value heads,
D key width, V value width, N state size, K convolution width, M meta tokens, R dt rank.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.mamba import mamba_mixer  # noqa: F401  registers torch.ops.vllm.mamba_mixer
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.model_loader.weight_utils import composed_weight_loader, sharded_weight_loader
from vllm.model_executor.utils import set_weight_attrs
from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE, _encode_layer_name
from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata
from vllm.v1.attention.backends.mamba1_attn import (
    Mamba1AttentionBackend,
    Mamba1AttentionMetadata,
    Mamba1AttentionMetadataBuilder,
)
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from nlrl_kernels import (
    causal_conv1d_update,
    causal_conv1d_varlen,
    mean_of_norms,
    selection_norms,
    selective_scan_varlen,
    selective_state_update,
)

from .config import HymbaConfig
from .vllm_attention import PinnedWindowBackend
from .vllm_layers import RMSNorm, cpu_loops, eager_loops, without_adapter


def scan_state_shapes(config: HymbaConfig, tp_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of a request's state in its page: the last raw convolution inputs [K - 1, I] and the scan's state.

    The scan's state is [N, I] for the loops on a CPU, which run along channels, and [I, N] for the kernels.
    """
    channels = config.inner_size // tp_size
    scan = (config.mamba_d_state, channels) if cpu_loops() else (channels, config.mamba_d_state)
    return (config.mamba_d_conv - 1, channels), scan


def scan_state_dtypes(vllm_config: VllmConfig) -> tuple[torch.dtype, torch.dtype]:
    """Dtypes of the two states. The scan's is float32 unless asked otherwise: rounding it at every step drifts."""
    asked = vllm_config.cache_config.mamba_ssm_cache_dtype
    scan = torch.float32 if asked == "auto" else STR_DTYPE_TO_TORCH_DTYPE[asked]
    if cpu_loops():
        return torch.float32, torch.float32
    return vllm_config.model_config.dtype, scan


def check_split(config: HymbaConfig, tp_size: int) -> None:
    """Whether the heads can be split over so many devices.

    Raises:
        ValueError: when they cannot.
    """
    if config.num_attention_heads % tp_size or config.num_key_value_heads % tp_size:
        raise ValueError(
            f"Hymba: {config.num_attention_heads} query and {config.num_key_value_heads} key/value heads cannot be "
            f"split over {tp_size} devices: choose a tensor_parallel_size that divides both."
        )


@dataclass
class ScanMetadata(Mamba1AttentionMetadata):
    """vLLM's Mamba-1 metadata and more.

    Attributes:
        longest: no row has more tokens in this step.
        starts, fresh: on a CPU, boundaries of all rows (decodes first), and which begin.
    """

    longest: int | None = None
    starts: np.ndarray | None = None
    fresh: np.ndarray | None = None


class _ScanMetadataBuilder(Mamba1AttentionMetadataBuilder):
    metadata_cls = ScanMetadata
    needs_causal_conv1d_metadata = False

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
        **kwargs: Any,
    ) -> ScanMetadata:
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build, **kwargs)
        assert isinstance(metadata, ScanMetadata)
        metadata.longest = common_attn_metadata.max_query_len
        if cpu_loops():
            starts = common_attn_metadata.query_start_loc.numpy()
            metadata.starts = starts
            metadata.fresh = common_attn_metadata.seq_lens.numpy() == np.diff(starts)
        return metadata


class _ScanBackend(Mamba1AttentionBackend):
    @staticmethod
    def get_builder_cls() -> type[Mamba1AttentionMetadataBuilder]:
        return _ScanMetadataBuilder


class _Depthwise(nn.Module):
    """Weights of the causal convolution, sharded by channel: weight [I, 1, K], bias [I]."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel))
        self.bias = nn.Parameter(torch.empty(channels))
        for parameter in (self.weight, self.bias):
            set_weight_attrs(parameter, {"weight_loader": sharded_weight_loader(0)})


class _ShardedRMSNorm(nn.Module):
    """RMS norm over an axis that tensor parallelism splits: the mean square is over all ranks."""

    def __init__(self, width: int, tp_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width // tp_size))
        set_weight_attrs(self.weight, {"weight_loader": sharded_weight_loader(0)})
        self.width, self.tp_size, self.eps = width, tp_size, eps

    def forward(self, x_TI: torch.Tensor) -> torch.Tensor:
        if self.tp_size == 1:
            return F.rms_norm(x_TI, (self.width,), self.weight, self.eps)
        wide = x_TI.float()
        total = tensor_model_parallel_all_reduce(wide.square().sum(dim=-1, keepdim=True))
        return (wide * torch.rsqrt(total / self.width + self.eps)).to(x_TI.dtype) * self.weight


class HymbaMixer(nn.Module, MambaBase):
    """Attention and scan over the same tokens; as a vLLM layer it stands for the scan and owns the scan's states.

    Args:
        layer: index of the layer in the model.
        prefix: the module's name, which ends in ``layers.<layer>.mamba``.

    Raises:
        ValueError: when tensor parallelism does not divide the heads.
    """

    def __init__(self, config: HymbaConfig, layer: int, *, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        tp_size = get_tensor_model_parallel_world_size()
        check_split(config, tp_size)
        self.config, self.vllm_config = config, vllm_config
        self.loops = eager_loops(vllm_config) and tp_size == 1
        self.heads = config.num_attention_heads // tp_size
        self.kv_heads = config.num_key_value_heads // tp_size
        self.channels = config.inner_size // tp_size
        self.consumer = config.is_consumer(layer)
        self._add_projections(config, tp_size, prefix)
        self._add_attention(config, layer, prefix)
        self._add_scan(config, tp_size)
        # The layer's name must hold one integer, and another than the attention's.
        root, _, _ = prefix.rpartition(f".{layer}.")
        self.scan_name = f"{root}.{config.num_hidden_layers + layer}.scan"
        context = vllm_config.compilation_config.static_forward_context
        if self.scan_name in context:
            raise ValueError(f"Duplicate layer name: {self.scan_name}")
        context[self.scan_name] = self
        self.kv_cache = (torch.tensor([]), torch.tensor([]))

    def _add_projections(self, config: HymbaConfig, tp_size: int, prefix: str) -> None:
        d_key, d_value = config.key_head_dim, config.value_head_dim
        query = [config.num_attention_heads * d_key]
        shared = [] if self.consumer else [config.num_key_value_heads * d_key, config.num_key_value_heads * d_value]
        widths = [*query, *shared, config.inner_size, config.inner_size]
        quant = self.vllm_config.quant_config
        self.in_proj = MergedColumnParallelLinear(
            config.hidden_size, widths, bias=False, quant_config=quant, prefix=f"{prefix}.in_proj"
        )
        self.widths = [width // tp_size for width in widths]
        self.out_proj = RowParallelLinear(
            config.inner_size, config.hidden_size, bias=False, quant_config=quant, prefix=f"{prefix}.out_proj"
        )
        eps = config.rms_norm_eps
        self.pre_avg_layernorm1 = _ShardedRMSNorm(config.inner_size, tp_size, eps)  # attention branch
        self.pre_avg_layernorm2 = _ShardedRMSNorm(config.inner_size, tp_size, eps)  # scan branch

    def _add_attention(self, config: HymbaConfig, layer: int, prefix: str) -> None:
        root, _, _ = prefix.rpartition(f".{layer}.")
        window, producer = config.window(layer), config.kv_producer(layer)
        self.rotary = get_rope(
            config.key_head_dim,
            max_position=self.vllm_config.model_config.max_model_len + config.num_meta,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
        )
        self.attn = Attention(
            self.heads,
            config.key_head_dim,
            config.key_head_dim**-0.5,
            num_kv_heads=self.kv_heads,
            cache_config=self.vllm_config.cache_config,
            per_layer_sliding_window=None if window is None else window + 1,
            prefix=f"{root}.{layer}.attn",
            kv_sharing_target_layer_name=None if producer is None else f"{root}.{producer}.attn",
            attn_backend=PinnedWindowBackend,
            head_size_v=config.value_head_dim,
        )

    def _add_scan(self, config: HymbaConfig, tp_size: int) -> None:
        states, rank, eps = config.mamba_d_state, config.mamba_dt_rank, config.rms_norm_eps
        self.conv1d = _Depthwise(self.channels, config.mamba_d_conv)
        self.x_proj = RowParallelLinear(config.inner_size, rank + 2 * states, bias=False)
        self.dt_proj = ColumnParallelLinear(rank, config.inner_size, bias=True)
        self.dt_layernorm = RMSNorm(rank, eps=eps)
        self.B_layernorm = RMSNorm(states, eps=eps)
        self.C_layernorm = RMSNorm(states, eps=eps)
        self.A = nn.Parameter(torch.empty(self.channels, states, dtype=torch.float32))
        self.D = nn.Parameter(torch.empty(self.channels, dtype=torch.float32))
        negative_exp = composed_weight_loader(sharded_weight_loader(0), lambda A_log: -torch.exp(A_log))
        set_weight_attrs(self.A, {"weight_loader": negative_exp})
        set_weight_attrs(self.D, {"weight_loader": sharded_weight_loader(0)})

    def allocate_constants(self, producer: "HymbaMixer | None") -> None:
        """Make the tensors that ``compute_constants`` fills; a consumer shares its producer's meta keys and values."""
        device, dtype = self.A.device, self.pre_avg_layernorm1.weight.dtype
        (past, channels), scan_shape = scan_state_shapes(self.config, get_tensor_model_parallel_world_size())
        conv_dtype, scan_dtype = scan_state_dtypes(self.vllm_config)
        self.start_conv_KI = torch.zeros(past, channels, dtype=conv_dtype, device=device)
        self.start_scan = torch.zeros(scan_shape, dtype=scan_dtype, device=device)
        if producer is None:
            width = self.config.key_head_dim + self.config.value_head_dim
            self.meta_HMC = torch.zeros(self.kv_heads, self.config.num_meta, width, dtype=dtype, device=device)
        else:
            self.meta_HMC = producer.meta_HMC
        self.attn.impl.meta_HMC = self.meta_HMC  # type: ignore[attr-defined]
        if cpu_loops():
            from .vllm_cpu import ScanWeights

            self.scan_weights = ScanWeights.empty(self.channels, self.config.mamba_d_state, self.config.mamba_d_conv)

    def forward(self, hidden_TE: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        """Mix tokens of all rows; ``positions_T`` count the meta tokens (the first real token stands at M)."""
        projected = self.in_proj(hidden_TE)[0]
        query, key, value, scan_input = self._split(projected)
        query, key = self.rotary(positions_T, query, key)
        attended = self.attn(query, key, value)
        scanned = torch.empty_like(attended)
        torch.ops.vllm.mamba_mixer(scan_input, scanned, _encode_layer_name(self.scan_name))
        return self.out_proj(self._fuse(attended, scanned))[0]

    def _split(
        self, projected: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        sizes = [*self.widths[:-2], 2 * self.channels]
        if self.consumer:
            query, scan_input = projected.split(sizes, dim=-1)
            return query, None, None, scan_input
        query, key, value, scan_input = projected.split(sizes, dim=-1)
        return query, key, value, scan_input

    def _fuse(self, attended: torch.Tensor, scanned: torch.Tensor) -> torch.Tensor:
        norm1, norm2 = self.pre_avg_layernorm1, self.pre_avg_layernorm2
        if self.loops:
            from .vllm_cpu import mean_of_norms as mean_by_loops

            mean = torch.empty_like(attended)
            mean_by_loops(
                attended.numpy(), norm1.weight.numpy(), scanned.numpy(), norm2.weight.numpy(), np.float32(norm1.eps),
                mean.numpy(),
            )  # fmt: skip
        elif norm1.tp_size == 1:
            mean = mean_of_norms(attended, scanned, norm1.weight, norm2.weight, norm1.eps)
        else:
            mean = (norm1(attended) + norm2(scanned)) / 2
        return mean

    # The scan, as vLLM's layer

    def forward_impl(self, hidden_states: torch.Tensor, output: torch.Tensor) -> None:
        """Scan input and gate [T, 2I] to the gated scan output [T, I]; called by the opaque op, which names both."""
        metadata = get_forward_context().attn_metadata
        if metadata is None:  # memory profiling: there are no pages yet
            output.zero_()
            return
        assert isinstance(metadata, dict)
        step: Any = metadata[self.scan_name]
        if cpu_loops():
            self._scan_with_loops(hidden_states, output, step)
        else:
            self._scan_with_kernels(hidden_states, output, step)

    def selection(self, u_TI: torch.Tensor, *, adapted: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the scan's input selects: step sizes before softplus [T, I], input map B and output map C [T, N]."""
        rank, states = self.config.mamba_dt_rank, self.config.mamba_d_state
        x_proj, dt_proj = self.x_proj, self.dt_proj
        if not adapted:
            x_proj, dt_proj = without_adapter(x_proj), without_adapter(dt_proj)
        selected_TP = x_proj(u_TI)[0]
        norms = (self.dt_layernorm, self.B_layernorm, self.C_layernorm)
        if cpu_loops():  # their norm is the faster one, of rows without a gap
            parts = selected_TP.split([rank, states, states], dim=-1)
            dt, B, C = (norm(part.contiguous()) for norm, part in zip(norms, parts, strict=True))
        else:
            dt_weight, B_weight, C_weight = (norm.weight for norm in norms)
            dt, B, C = selection_norms(selected_TP, dt_weight, B_weight, C_weight, self.config.rms_norm_eps)
        return dt_proj(dt)[0], B, C

    def _scan_with_loops(self, scan_input: torch.Tensor, output: torch.Tensor, step: ScanMetadata) -> None:
        from .vllm_cpu import scan_step

        slots = [step.state_indices_tensor_d[:, 0]] if step.state_indices_tensor_d is not None else []
        slots += [step.state_indices_tensor_p] if step.state_indices_tensor_p is not None else []
        assert step.starts is not None
        assert step.fresh is not None
        scan_step(self, scan_input, torch.cat(slots).numpy(), step.starts, step.fresh, output)

    def _scan_with_kernels(self, scan_input: torch.Tensor, output: torch.Tensor, step: ScanMetadata) -> None:
        """The same on ``nlrl_kernels``; reads no value back to the host, so a step of decodes can be captured."""
        decodes, tokens = step.num_decode_tokens, step.num_decode_tokens + step.num_prefill_tokens
        x_TI, gate_TI = scan_input[:tokens].chunk(2, dim=-1)
        conv_states, scan_states = self.kv_cache
        weight, bias, u_TI = self.conv1d.weight[:, 0], self.conv1d.bias, torch.empty_like(output[:tokens])
        # vLLM types these as optional, yet gives each where there are rows of its kind.
        slots: Any = step.state_indices_tensor_d[:decodes, 0] if step.state_indices_tensor_d is not None else None
        rows: dict[str, Any] = {
            "starts_R1": step.query_start_loc_p,
            "slots_R": step.state_indices_tensor_p,
            "has_state_R": step.has_initial_states_p,
        }
        if decodes:
            causal_conv1d_update(
                x_TI[:decodes], weight, bias, states_SKC=conv_states, slots_R=slots, out_RC=u_TI[:decodes]
            )
        if step.num_prefills:
            causal_conv1d_varlen(
                x_TI[decodes:], weight, bias, states_SKC=conv_states, start_KC=self.start_conv_KI,
                out_TC=u_TI[decodes:], **rows,
            )  # fmt: skip
        parts = (u_TI, *self.selection(u_TI), gate_TI, output[:tokens])
        if decodes:
            u, delta, B, C, gate, out = (part[:decodes] for part in parts)
            selective_state_update(
                u, delta, self.A, B, C, self.D, states_SCN=scan_states, slots_R=slots, z_RC=gate, out_RC=out,
                softplus=True,
            )  # fmt: skip
        if step.num_prefills:
            u, delta, B, C, gate, out = (part[decodes:] for part in parts)
            selective_scan_varlen(
                u, delta, self.A, B, C, self.D, states_SCN=scan_states, start_CN=self.start_scan, z_TC=gate,
                out_TC=out, softplus=True, longest=step.longest, **rows,
            )  # fmt: skip

    # What has to follow when the weights change

    def refresh_weights(self) -> None:
        """Renew the copies of weights that the loops read."""
        if cpu_loops():
            self.scan_weights.fill(self.conv1d.weight, self.conv1d.bias, self.A, self.D)

    def compute_constants(self, hidden_ME: torch.Tensor) -> torch.Tensor:
        """Run the mixer on the M meta tokens alone and keep what they leave; returns its output [M, E]."""
        meta = len(hidden_ME)
        query, key, value, scan_input = self._split(without_adapter(self.in_proj)(hidden_ME)[0])
        query, key = self.rotary(torch.arange(meta, device=hidden_ME.device), query.contiguous(), key)
        if key is not None and value is not None:
            both = [part.reshape(meta, self.kv_heads, part.shape[1] // self.kv_heads) for part in (key, value)]
            self.meta_HMC.copy_(torch.cat(both, dim=-1).transpose(0, 1))
        attended = self._attend_among_meta(query)
        return without_adapter(self.out_proj)(self._fuse(attended, self._scan_meta(scan_input)))[0]

    def _attend_among_meta(self, query: torch.Tensor) -> torch.Tensor:
        meta, width = len(query), self.config.key_head_dim
        q = query.view(meta, self.kv_heads, -1, width).permute(1, 2, 0, 3)
        keys, values = self.meta_HMC[:, None, :, :width], self.meta_HMC[:, None, :, width:]
        scores = (q * self.attn.impl.scale) @ keys.transpose(-1, -2)
        future = torch.ones(meta, meta, dtype=torch.bool, device=query.device).triu(1)
        weights = scores.float().masked_fill(future, float("-inf")).softmax(-1).to(values.dtype)
        return (weights @ values).permute(2, 0, 1, 3).reshape(meta, -1)

    def _scan_meta(self, scan_input: torch.Tensor) -> torch.Tensor:
        x_MI, gate_MI = scan_input.chunk(2, dim=-1)
        past = self.config.mamba_d_conv - 1
        padded = F.pad(x_MI, (0, 0, past, 0))
        u_MI = F.silu(F.conv1d(padded.T, self.conv1d.weight, self.conv1d.bias, groups=self.channels)).T.contiguous()
        dt, B, C = self.selection(u_MI, adapted=False)
        delta, u, B, C = F.softplus(dt.float()), u_MI.float(), B.float(), C.float()
        state = torch.zeros_like(self.A)
        y = torch.empty_like(u)
        for t in range(len(u)):
            state = state * torch.exp(delta[t, :, None] * self.A) + (delta[t] * u[t])[:, None] * B[t]
            y[t] = state @ C[t]
        self.start_conv_KI.copy_(padded[-past:])
        self.start_scan.copy_(state.T if cpu_loops() else state)
        return ((y + self.D * u) * F.silu(gate_MI.float())).to(scan_input.dtype)

    # vLLM's view of the states

    def get_state_shape(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return scan_state_shapes(self.config, get_tensor_model_parallel_world_size())

    def get_state_dtype(self) -> tuple[torch.dtype, torch.dtype]:
        return scan_state_dtypes(self.vllm_config)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        return MambaAttentionBackendEnum.MAMBA1

    def get_attn_backend(self) -> type[AttentionBackend]:
        return _ScanBackend
