"""vLLM's Mamba-2 mixer with fewer launches where it multiplies bits, and put right where vLLM 0.32 is wrong on a CPU.

Axes: T packed tokens, E model width.
"""

from dataclasses import replace
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2
from vllm.platforms import current_platform
from vllm.utils.torch_utils import _encode_layer_name
from vllm.v1.kv_cache_interface import KVCacheSpec, MambaSpec

from .vllm_linear import multiplies_bits, normed_product


class Mixer(MambaMixer2):
    """``MambaMixer2`` whose prefill stops at the end of a block on a CPU, where the block's state is to be cached.

    With prefix caching the scheduler may let one step run past that end, if the scan gives back the state there. vLLM's
    scan for a CPU gives back the last states alone: a prompt longer than a block then failed, or took the state of
    another row of the batch.

    Its convolution is not packed there. ``MambaMixer2`` multiplies by a view of the matrix as it was first loaded,
    which a packed matrix leaves behind: a reload then changed nothing. Packing also wants 32 to divide the channels.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv1d._cpu_skip_gemm_dispatch = True  # type: ignore[assignment]

    def adds_to(self, residual_TE: torch.Tensor, norm: Any, dtype: torch.dtype) -> torch.Tensor | None:
        """``residual + mixer(norm(residual))`` with norms, gate and sum in the launches of the projections.

        A decoded token costs launches rather than bytes here: bits of a layer are 5 MB at 2.7B. None where that cannot
        be done: with an adapter on a projection, over several devices, on a CPU.
        """
        if not (multiplies_bits(self.in_proj) and multiplies_bits(self.out_proj)):
            return None
        projected = normed_product(self.in_proj, residual_TE, norm, dtype=dtype)
        scanned = torch.empty(len(residual_TE), self.tped_intermediate_size, dtype=dtype, device=residual_TE.device)
        torch.ops.vllm.mamba_mixer2(projected, scanned, _encode_layer_name(self.prefix))
        gate = projected[:, : self.tped_intermediate_size]
        return normed_product(self.out_proj, scanned, self.norm, gate, residual_TE)

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec | None:
        spec = super().get_kv_cache_spec(vllm_config)
        if not isinstance(spec, MambaSpec) or not current_platform.is_cpu():
            return spec
        return replace(spec, num_prefill_checkpoint_blocks=0, prefill_checkpoint_alignment=None)
