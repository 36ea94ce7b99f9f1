"""nGPT, and the GPT it is compared with, as vLLM serves them: the official checkpoint layout on stock attention.

Source: Loshchilov et al. 2024 (arXiv 2410.01131) in the form of the published ``model.py``; see ``model`` for the
equations. A key is final once scaled, so the paged cache holds nothing special. The learned scales are held as the
effective values that the equations use, in float32, whatever the model's dtype.

Under tensor parallelism the heads, the two halves of the feed-forward part and their scales are split; the hidden
state is whole on every rank after each output projection, so its norms need no communication.

Axes: T packed tokens, E model width, H heads on this rank, D head width, F feed-forward width on this rank,
V vocabulary.
"""

from collections.abc import Iterable
from itertools import islice
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.model_executor.utils import set_weight_attrs
from vllm.sequence import IntermediateTensors

from nlrl_backbones.common.vllm_attention import PlainAttention
from nlrl_backbones.common.vllm_compat import check_signatures, own_config
from nlrl_kernels import qk_step, residual_step, scaled_swiglu
from nlrl_kernels.hypersphere import position_step

from .config import NGPTConfig
from .position import position_tables

_NORM_EPS = 1e-6
_ALPHA = 0.05

Tables = tuple[torch.Tensor, torch.Tensor | None]


def scale_parameter(width: int, factor: float, *, parts: int = 1, sharded: bool = True) -> nn.Parameter:
    """A learned scale in float32: ``factor`` times what the checkpoint stores.

    If ``sharded``, the rank holds its share of each of the ``parts`` equal parts.
    """
    ranks = get_tensor_model_parallel_world_size() if sharded else 1
    rank = get_tensor_model_parallel_rank() if sharded else 0

    # vLLM's reload binds the first argument by its name.
    def load(param: torch.Tensor, loaded_weight: torch.Tensor) -> None:
        mine = loaded_weight.float().unflatten(0, (parts, ranks, -1))[:, rank].flatten()
        param.data.copy_(mine * factor)

    parameter = nn.Parameter(torch.empty(width // ranks, dtype=torch.float32), requires_grad=False)
    set_weight_attrs(parameter, {"weight_loader": load})
    return parameter


class NGPTBlock(nn.Module):
    """Attention and a gated feed-forward part; each moves the hidden state along the sphere (baseline: adds to it).

    Raises:
        ValueError: when tensor parallelism does not divide the heads.
    """

    def __init__(self, config: NGPTConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        ranks = get_tensor_model_parallel_world_size()
        if config.n_head % ranks:
            raise ValueError(f"nGPT: {config.n_head} heads cannot be split over tensor_parallel_size={ranks}.")
        self.is_normalized = bool(config.use_nGPT)
        self.heads, self.head_dim = config.n_head // ranks, config.head_dim
        width, inner, quant = config.n_embd, config.intermediate_size, vllm_config.quant_config
        self.qkv_proj = QKVParallelLinear(
            width, config.head_dim, config.n_head, bias=False, quant_config=quant, prefix=f"{prefix}.qkv_proj"
        )
        self.attn = PlainAttention(
            self.heads,
            config.head_dim,
            config.softmax_scale,
            self.heads,
            vllm_config=vllm_config,
            prefix=f"{prefix}.attn",
        )
        self.att_c_proj = RowParallelLinear(width, width, bias=False, quant_config=quant, prefix=f"{prefix}.att_c_proj")
        self.c_fc = MergedColumnParallelLinear(
            width, [inner] * 2, bias=False, quant_config=quant, prefix=f"{prefix}.c_fc"
        )
        self.mlp_c_proj = RowParallelLinear(inner, width, bias=False, quant_config=quant, prefix=f"{prefix}.mlp_c_proj")
        if config.use_nGPT:
            self.attn_alpha = scale_parameter(width, _ALPHA / config.base_scale, sharded=False)
            self.mlp_alpha = scale_parameter(width, _ALPHA / config.base_scale, sharded=False)
            self.sqk = scale_parameter(width, 1 / config.base_scale)
            self.suv = scale_parameter(2 * inner, width**0.5, parts=2)
        else:
            self.rmsnorm_att = RMSNorm(width, eps=_NORM_EPS)
            self.rmsnorm_mlp = RMSNorm(width, eps=_NORM_EPS)

    def forward(self, x_TE: torch.Tensor, tables: Tables) -> torch.Tensor:
        if not self.is_normalized:
            x_TE = x_TE + self._attend(self.rmsnorm_att(x_TE), tables)
            u, v = self.c_fc(self.rmsnorm_mlp(x_TE))[0].chunk(2, dim=-1)
            return x_TE + self.mlp_c_proj(u * F.silu(v))[0]
        x_TE = residual_step(x_TE, self._attend(x_TE, tables), self.attn_alpha.abs())
        inner_TF = scaled_swiglu(self.c_fc(x_TE)[0], self.suv)
        return residual_step(x_TE, self.mlp_c_proj(inner_TF)[0], self.mlp_alpha.abs())

    def _attend(self, x_TE: torch.Tensor, tables: Tables) -> torch.Tensor:
        qk, v = self.qkv_proj(x_TE)[0].split([2 * self.heads * self.head_dim, self.heads * self.head_dim], dim=-1)
        qk_T2HD = qk.unflatten(-1, (2, self.heads, self.head_dim))
        cross, keep = tables
        if self.is_normalized:
            qk_T2HD = qk_step(qk_T2HD, self.sqk.unflatten(-1, (self.heads, self.head_dim)), cross, keep)
        else:
            qk_T2HD = position_step(qk_T2HD, cross, keep)
        q, k = qk_T2HD.flatten(-2).unbind(dim=1)
        return self.att_c_proj(self.attn(q.contiguous(), k.contiguous(), v.contiguous()))[0]


@support_torch_compile
class NGPTModel(nn.Module):
    """Embedding and the blocks of this pipeline stage."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = own_config(vllm_config, NGPTConfig)
        self.head_dim, self.position = config.head_dim, config.position
        self.wte = (
            VocabParallelEmbedding(config.vocab_size, config.n_embd, prefix=f"{prefix}.wte")
            if get_pp_group().is_first_rank
            else PPMissingLayer()
        )
        self.start_layer, self.end_layer, self.h = make_layers(
            config.n_layer, lambda prefix: NGPTBlock(config, vllm_config, prefix), prefix=f"{prefix}.h"
        )
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(["hidden_states"], config.n_embd)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.wte(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        if get_pp_group().is_first_rank:
            hidden = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        else:
            assert intermediate_tensors is not None
            hidden = intermediate_tensors["hidden_states"]
        # One axis more than the tables have: queries and keys go through the step together.
        cross, keep = position_tables(positions[:, None], self.head_dim, self.position, torch.float32)
        for block in islice(self.h, self.start_layer, self.end_layer):
            hidden = block(hidden, (cross, keep))
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden})  # type: ignore[dict-item]
        return hidden


class NGPTForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    """What vLLM runs for the architecture "NGPTForCausalLM"."""

    # c_fc is one matrix in checkpoints and adapters; unnamed here, vLLM would pass over its adapter in silence.
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {"qkv_proj": ["query", "key", "value"], "c_fc": ["c_fc"]}
    embedding_modules: ClassVar[dict[str, str]] = {}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"_orig_mod.": ""},
        orig_to_new_stacked={".query": (".qkv_proj", "q"), ".key": (".qkv_proj", "k"), ".value": (".qkv_proj", "v")},
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_signatures()
        config = own_config(vllm_config, NGPTConfig)
        self.config = config
        self.transformer = NGPTModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))
        self.make_empty_intermediate_tensors = self.transformer.make_empty_intermediate_tensors
        self.logits_processor = LogitsProcessor(config.vocab_size)
        if not get_pp_group().is_last_rank:
            # One each: vLLM's loader passes over the weights of a name that has its own.
            self.lm_head, self.sz, self.rmsnorm_f = PPMissingLayer(), PPMissingLayer(), PPMissingLayer()
            return
        self.lm_head = ParallelLMHead(config.vocab_size, config.n_embd, prefix=maybe_prefix(prefix, "lm_head"))
        if config.use_nGPT:
            # Whole on every rank, for the logits are scaled after they have been gathered.
            self.sz = scale_parameter(config.vocab_size, 1 / config.base_scale, sharded=False)
        else:
            self.rmsnorm_f = RMSNorm(config.n_embd, eps=_NORM_EPS)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.transformer.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.transformer(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        if not self.config.use_nGPT:
            return self.logits_processor(self.lm_head, self.rmsnorm_f(hidden_states))
        logits_TV = self.logits_processor(self.lm_head, hidden_states)
        return None if logits_TV is None else logits_TV.float() * self.sz

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
