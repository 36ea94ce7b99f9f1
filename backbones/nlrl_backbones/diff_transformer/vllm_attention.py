"""Differential attention as a vLLM attention backend: both maps of a head in one pass over its paged keys and values.

A cached head is one page row of the stock shape, with [k1; k2] of width 2d and v of width 2d side by side, each stored
once. vLLM's own ``Attention`` layer holds the pages and its own custom operators call us, so that paging, prefix
caching, torch.compile and piecewise CUDA graphs treat it as any attention. What leaves the layer is the head's output
behind the difference, its norm and its factor.

The kernels are ``nlrl_kernels.diff_attention_paged``: rows with a token or two go to its split over keys, the others to
its tiles of queries. It serves V1 and DiffLlama. V2 stays on stock attention: its maps share one key, so both maps of a
head are ordinary query heads, and there is nothing to save.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import vllm.envs as envs
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
    max_decode_query_len,
)
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_layout import KVCacheLayout

from nlrl_kernels import diff_attention_paged

from .config import DiffTransformerConfig

WIDEST_MAP = 128
"""Of a wider map, values of 256 and more would not fit into the registers of the kernels' tiles."""
_PLAIN_PAGES = ("auto", "float32", "float16", "bfloat16")


def obstacle(config: DiffTransformerConfig, vllm_config: VllmConfig) -> str | None:
    """Why these layers cannot run on the backend, as the rest of a sentence; None if they can."""
    parallel = vllm_config.parallel_config
    if config.variant == "v2":
        return "both maps of variant v2 share one key, which stock attention serves as well"
    if (config.head_dim or 0) > WIDEST_MAP:
        return f"maps of width {config.head_dim} are wider than {WIDEST_MAP}"
    if vllm_config.cache_config.cache_dtype not in _PLAIN_PAGES:
        return f"its pages are not quantised (kv_cache_dtype={vllm_config.cache_config.cache_dtype!r})"
    if getattr(vllm_config.quant_config, "kv_cache_scheme", None) is not None:
        return "its pages are not quantised (the checkpoint has a kv_cache_scheme)"
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        return "it does not split a context over devices"
    if envs.VLLM_BATCH_INVARIANT:
        return "over how many programs it splits a row's keys depends on the batch (VLLM_BATCH_INVARIANT)"
    return None


def backend_for(config: DiffTransformerConfig, vllm_config: VllmConfig) -> "type[DiffAttentionBackend] | None":
    """The backend, or None for the rewrite as stock attention (``heads``).

    vLLM's ``attention_backend`` decides: "CUSTOM" is this backend, any other name stock attention by that backend.
    Unset, it is this backend on CUDA where it can, else stock attention.

    Raises:
        ValueError: "CUSTOM" is asked for and cannot be; one sentence.
    """
    asked, why_not = vllm_config.attention_config.backend, obstacle(config, vllm_config)
    if asked is AttentionBackendEnum.CUSTOM:
        if why_not is not None:
            raise ValueError(f"Differential attention cannot run as attention_backend CUSTOM: {why_not}; leave it out.")
        return DiffAttentionBackend
    return DiffAttentionBackend if asked is None and current_platform.is_cuda() and why_not is None else None


class HeadOutput(NamedTuple):
    """What stands behind the maps of a layer: ``factor * weight * norm(A1 v - lam A2 v)``.

    Attributes:
        lam: lambda, a scalar in float32.
        eps: of the head norm.
        weight_W: of the head norm, or None.
        factor: 1 - lambda_init.
    """

    lam: torch.Tensor
    eps: float
    weight_W: torch.Tensor | None
    factor: float


@dataclass
class DiffRows:
    """Rows of a step that go through one launch: R of them, P blocks a row.

    Attributes:
        tokens: the step's tokens up to the end of these rows.
        starts: first token of each row, and the end of the last, [R + 1].
        lengths: tokens of each row in the cache, this step's included, [R].
        block_table: [R, P].
        longest: no row has more tokens in this step.
    """

    tokens: int
    starts: torch.Tensor
    lengths: torch.Tensor
    block_table: torch.Tensor
    longest: int


@dataclass
class DiffAttentionMetadata(AttentionMetadata):
    """The rows of a step in one or two launches: those with a token or two, and those with many."""

    launches: list[DiffRows]


@register_backend(AttentionBackendEnum.CUSTOM)
class DiffAttentionBackend(AttentionBackend):
    """Backend of the layers of V1 and DiffLlama, handed to each ``Attention`` layer directly."""

    forward_includes_kv_cache_update: bool = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.float16, torch.bfloat16]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type["DiffAttentionImpl"]:
        return DiffAttentionImpl

    @staticmethod
    def get_builder_cls() -> type["DiffAttentionMetadataBuilder"]:
        return DiffAttentionMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        # Any strides will do; best is where the tokens of a head lie together.
        return tuple(KVCacheLayout)


class DiffAttentionMetadataBuilder(AttentionMetadataBuilder[DiffAttentionMetadata]):
    """Cuts a step into launches by numbers on the host alone; no value of a device tensor is read or written.

    So a CUDA graph of a decode replays: its one launch depends on the number of rows and the shapes of its tensors.
    Mixed steps are not captured as a whole, for their launches change, only the pieces between the attention layers.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=True)
        self._few = max_decode_query_len(vllm_config)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> DiffAttentionMetadata:
        """The launches of a step whose rows stand in vLLM's order: decodes first.

        Raises:
            ValueError: a common prefix is to be computed once for all rows (cascade attention).
        """
        if common_prefix_len:
            raise ValueError("Differential attention computes no common prefix apart: turn cascade attention off.")
        common = common_attn_metadata
        decodes, prefills, few_tokens, _ = split_decodes_and_prefills(common, decode_threshold=self._few)
        launches = []
        if decodes:
            longest = min(self._few, common.max_query_len)
            launches.append(_rows(common, slice(0, decodes), few_tokens, longest))
        if prefills:
            rows = slice(decodes, decodes + prefills)
            launches.append(_rows(common, rows, common.num_actual_tokens, common.max_query_len))
        return DiffAttentionMetadata(launches)


def _rows(common: CommonAttentionMetadata, rows: slice, tokens: int, longest: int) -> DiffRows:
    return DiffRows(
        tokens=tokens,
        starts=common.query_start_loc[rows.start : rows.stop + 1],
        lengths=common.seq_lens[rows],
        block_table=common.block_table_tensor[rows],
        longest=longest,
    )


class DiffAttentionImpl(AttentionImpl[DiffAttentionMetadata]):
    """One layer's attention. The layer that owns it sets ``head_output``, which is asked again after every reload."""

    head_output: Callable[[], HeadOutput]

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int,
        alibi_slopes: list[float] | None,
        sliding_window: int | None,
        kv_cache_dtype: str,
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
    ) -> None:
        if (alibi_slopes, sliding_window, logits_soft_cap) != (None, None, None) or attn_type != AttentionType.DECODER:
            raise ValueError("Differential attention has no ALiBi, no window, no soft cap, and decodes only.")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.num_kv_heads = num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        self._behind: HeadOutput | None = None

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Compute lambda; CUDA graphs hold its address, so a reload writes into the same tensor."""
        new = self.head_output()
        if self._behind is not None:
            new = new._replace(lam=self._behind.lam.copy_(new.lam))
        self._behind = new

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store keys and values, [T, G, 2d] each, in pages [B, G, N, 4d] at ``slot_mapping`` [T]; -1 is nowhere."""
        if kv_cache.is_cuda:
            from vllm._custom_ops import reshape_and_cache_flash

            k_pages, v_pages = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
            reshape_and_cache_flash(key, value, k_pages, v_pages, slot_mapping, "auto", layer._k_scale, layer._v_scale)
            return
        kept = slot_mapping >= 0
        slots, size, count = slot_mapping[kept], kv_cache.shape[2], len(slot_mapping)
        row = torch.cat([key[:count][kept], value[:count][kept]], dim=-1)
        kv_cache[slots // size, :, slots % size] = row.to(kv_cache.dtype)

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,
        attn_metadata: DiffAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write the heads' outputs into output [T, H, 2d]; query [T, H, 2d] is [q1; q2], keys and values are cached."""
        if attn_metadata is None:  # memory profiling: no pages yet, but as much scratch memory as a prefill takes
            torch.empty_like(output)
            return output.zero_()
        assert self._behind is not None, "vLLM calls process_weights_after_loading before the first step"
        lam, eps, weight, factor = self._behind
        pages, width = kv_cache.transpose(1, 2), self.head_size // 2
        k1_pages, k2_pages, v_pages = pages.split([width, width, 2 * width], dim=-1)
        for rows in attn_metadata.launches:
            diff_attention_paged(
                query[: rows.tokens, :, :width],
                query[: rows.tokens, :, width:],
                k1_pages,
                k2_pages,
                v_pages,
                rows.block_table,
                rows.lengths,
                rows.starts,
                lam,
                scale=self.scale,
                out_THW=output[: rows.tokens],
                max_query_len=rows.longest,
                eps=eps,
                weight_W=weight,
                factor=factor,
            )
        return output
