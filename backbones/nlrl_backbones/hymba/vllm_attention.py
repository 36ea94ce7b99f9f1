"""Hymba's attention under vLLM: paged keys and values, a window by position, meta tokens pinned outside the pages.

The M meta tokens' keys and values are the same for every request, so each layer holds them once, [H, M, C], and every
query sees them besides its window; vLLM's paging, window freeing and prefix hashes then know real tokens only.
One page row is a token's key and value side by side, and their widths may differ.

On CUDA the Triton kernels of ``nlrl_kernels`` do the work, one launch for the rows that decode, whose keys are shared
out over the GPU, and one for the others; on a CPU the loops of ``vllm_cpu``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_layout import KVCacheLayout

from nlrl_kernels import pinned_window_attention

from .vllm_layers import cpu_loops

# From this many queries on, one request's attention is cheaper as matrix products than as a loop over pages.
_MANY_QUERIES = 12


@dataclass
class PinnedWindowMetadata(AttentionMetadata):
    """What one step needs: where the rows are, and their pages. R rows, P blocks a row; rows of one token first."""

    num_tokens: int
    num_decodes: int
    num_decode_tokens: int
    max_query_len: int
    starts: torch.Tensor  # [R + 1]
    lengths: torch.Tensor  # [R]
    block_table: torch.Tensor  # [R, P]
    cpu: "CpuRows | None"


@dataclass
class CpuRows:
    """The same as NumPy, and the rows split by how they are computed."""

    starts: np.ndarray
    lengths: np.ndarray
    block_table: np.ndarray
    few: np.ndarray
    many: list[int]


class PinnedWindowBackend(AttentionBackend):
    """Backend of all Hymba layers, handed to each ``Attention`` layer directly."""

    forward_includes_kv_cache_update: bool = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float32, torch.float16, torch.bfloat16]

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type["PinnedWindowImpl"]:
        return PinnedWindowImpl

    @staticmethod
    def get_builder_cls() -> type["PinnedWindowMetadataBuilder"]:
        return PinnedWindowMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        # Within a page, one head's slots lie together: what the loops of vllm_cpu count on.
        return (KVCacheLayout.LBHNC,)


class PinnedWindowMetadataBuilder(AttentionMetadataBuilder[PinnedWindowMetadata]):
    """Hands the step's tensors on; on CUDA it touches no value, so its result can be captured in a graph."""

    # The kernel's grid depends on the number of rows and the longest query only: any uniform batch replays.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH
    reorder_batch_threshold: int | None = 1

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._few_at_once = kv_cache_spec.dtype == torch.float32  # the loop over pages reads float32

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> PinnedWindowMetadata:
        common = common_attn_metadata
        # By the host's copy of the starts: nothing waits for the GPU.
        decodes, _, decode_tokens, _ = split_decodes_and_prefills(common, decode_threshold=1)
        return PinnedWindowMetadata(
            num_tokens=common.num_actual_tokens,
            num_decodes=decodes,
            num_decode_tokens=decode_tokens,
            max_query_len=common.max_query_len,
            starts=common.query_start_loc,
            lengths=common.seq_lens,
            block_table=common.block_table_tensor,
            cpu=self._cpu_rows(common) if cpu_loops() else None,
        )

    def _cpu_rows(self, common: CommonAttentionMetadata) -> CpuRows:
        starts = common.query_start_loc.numpy()
        queries = np.diff(starts)
        few = queries < _MANY_QUERIES if self._few_at_once else np.zeros(len(queries), bool)
        return CpuRows(
            starts=starts,
            lengths=common.seq_lens.numpy(),
            block_table=common.block_table_tensor.numpy(),
            few=np.flatnonzero(few & (queries > 0)),
            many=np.flatnonzero(~few & (queries > 0)).tolist(),
        )


class PinnedWindowImpl(AttentionImpl[PinnedWindowMetadata]):
    """One layer's attention. ``meta_HMC`` is set by the layer that owns it, before the first step."""

    meta_HMC: torch.Tensor

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
        if alibi_slopes is not None or logits_soft_cap is not None or attn_type != AttentionType.DECODER:
            raise ValueError("Hymba's attention has no ALiBi, no soft cap, and decodes only.")
        if kv_cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
            raise ValueError(f"Hymba's pages are not quantised: drop kv_cache_dtype={kv_cache_dtype!r}.")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.num_kv_heads = num_kv_heads
        self.kv_cache_dtype = kv_cache_dtype
        # vLLM counts the positions kept, itself included; Hymba's W is the distance of the furthest key.
        self.window = None if sliding_window is None else sliding_window - 1

    def do_kv_cache_update(
        self,
        layer: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Store key [T, H, D] and value [T, H, V] in pages [B, H, N, D + V] at ``slot_mapping`` [T]."""
        if kv_cache.is_cuda:
            from vllm.v1.attention.ops.triton_reshape_and_cache_flash import triton_reshape_and_cache_flash_diffkv

            triton_reshape_and_cache_flash_diffkv(
                key, value, kv_cache.transpose(1, 2), slot_mapping, "auto", layer._k_scale, layer._v_scale
            )
        elif kv_cache.dtype == torch.float32 and cpu_loops():
            _write_with_loops(key, value, kv_cache, slot_mapping)
        else:
            kept = slot_mapping >= 0
            slots, size = slot_mapping[kept], kv_cache.shape[2]
            count = len(slot_mapping)
            packed = torch.cat([key[:count][kept], value[:count][kept]], dim=-1)
            kv_cache[slots // size, :, slots % size] = packed.to(kv_cache.dtype)

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,
        attn_metadata: PinnedWindowMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write the attention of query [T, H * G, D] over pages and meta tokens into output [T, H * G, V]."""
        if attn_metadata is None:  # memory profiling: there are no pages yet
            return output.zero_()
        if attn_metadata.cpu is not None:
            self._forward_with_loops(query, kv_cache, attn_metadata.cpu, output)
        else:
            self._forward_with_kernel(query, kv_cache, attn_metadata, output)
        return output

    def _forward_with_loops(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        rows: CpuRows,
        output: torch.Tensor,
    ) -> None:
        from .vllm_cpu import attend_row, paged_attention, strided

        if rows.few.size:
            attend = paged_attention(self.head_size, output.shape[-1])
            q, pages = strided(query), strided(kv_cache)
            attend(
                q.flat, q.strides[0], pages.flat, pages.strides[0], pages.strides[1], kv_cache.shape[2],
                self.meta_HMC.view(-1).numpy(), self.meta_HMC.shape[1], rows.block_table, rows.starts, rows.lengths,
                rows.few, -1 if self.window is None else self.window, np.float32(self.scale), self.num_kv_heads,
                self.num_heads // self.num_kv_heads, output.view(len(output), -1).numpy(),
            )  # fmt: skip
        for row in rows.many:
            begin, end = int(rows.starts[row]), int(rows.starts[row + 1])
            attend_row(
                query[begin:end],
                kv_cache,
                self.meta_HMC,
                rows.block_table[row],
                int(rows.lengths[row]),
                window=self.window,
                scale=self.scale,
                out_THV=output[begin:end],
            )

    def _forward_with_kernel(
        self, query: torch.Tensor, kv_cache: torch.Tensor, metadata: PinnedWindowMetadata, output: torch.Tensor
    ) -> None:
        width, decodes, pages_BNHC = self.head_size, metadata.num_decodes, kv_cache.transpose(1, 2)

        def attend(rows: slice, tokens: int, longest: int) -> None:
            pinned_window_attention(
                query[:tokens],
                pages_BNHC[..., :width],
                pages_BNHC[..., width:],
                metadata.block_table[rows],
                metadata.lengths[rows],
                metadata.starts[rows.start :] if rows.stop is None else metadata.starts[: rows.stop + 1],
                meta_k_HMD=self.meta_HMC[..., :width],
                meta_v_HMD=self.meta_HMC[..., width:],
                window=self.window,
                scale=self.scale,
                out_THD=output[:tokens],
                max_query_len=longest,
            )

        if decodes:
            attend(slice(0, decodes), metadata.num_decode_tokens, 1)
        if decodes < len(metadata.lengths) and metadata.num_decode_tokens < metadata.num_tokens:
            attend(slice(decodes, None), metadata.num_tokens, metadata.max_query_len)


def _write_with_loops(
    key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
) -> None:
    from .vllm_cpu import strided, write_pages

    k, v, pages = strided(key), strided(value), strided(kv_cache)
    write_pages(
        k.flat, k.strides[0], v.flat, v.strides[0], slot_mapping.numpy(), kv_cache.shape[2], key.shape[1],
        key.shape[2], value.shape[2], pages.flat, pages.strides[0], pages.strides[1],
    )  # fmt: skip
