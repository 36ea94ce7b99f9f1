"""Differential Transformer as vLLM serves it: V1, V2 and DiffLlama, over vLLM's own pages.

Sources as in ``model``. Attention is one of two: a backend of our own, both maps of a head in one pass
(``vllm_attention``, which says when), or stock attention, in which they are two query heads of one group (``heads``).
Either way paging, chunked prefill, prefix caching and CUDA graphs are vLLM's, and a cached token is as large as in a
Transformer with the same key and value rows. lambda is computed from its vectors in float32: at every step on stock
attention, else whenever weights were loaded.

Reads our names of tensors and Microsoft's. DiffLlama's rows stay in their two halves, each split over the devices on
its own, so its LoRA adapters fit unchanged too.
"""

import re
from collections.abc import Iterable
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import DiffLlamaConfig
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    WeightsMapper,
    extract_layer_index,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from nlrl_backbones.common.vllm_attention import PlainAttention
from nlrl_backbones.common.vllm_compat import check_signatures, own_config
from nlrl_backbones.common.vllm_head import language_head

from .config import DiffTransformerConfig
from .heads import HeadLayout, difference, lambda_init, lambda_of
from .vllm_attention import HeadOutput, backend_for
from .weights import LAMBDAS, RENAMED
from .weights_diffllama import config_from_diffllama

_OFFICIAL_NAMES: Any = {re.compile(pattern): ours for pattern, ours in RENAMED.items()}


def diff_config(vllm_config: VllmConfig) -> DiffTransformerConfig:
    """The model's own configuration, ours for a DiffLlama of transformers.

    Raises:
        TypeError: another class read config.json.
        ValueError: a setting of a DiffLlama that we lack.
    """
    config = vllm_config.model_config.hf_config
    if isinstance(config, DiffLlamaConfig):
        return config_from_diffllama(config)
    return own_config(vllm_config, DiffTransformerConfig)


class DiffProjections(nn.Module):
    """Base of the attention: the rows of q, k and v of this device, in one matrix or, where heads lie in halves, three.

    The names of the matrices are what LoRA adapters address, so they belong to the attention module itself.
    """

    q_proj: Any
    k_proj: Any
    v_proj: Any
    qkv_proj: Any

    def __init__(self, config: DiffTransformerConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.layout = HeadLayout.of(config, get_tensor_model_parallel_world_size())
        d, bias, quant = self.layout.width, config.attention_bias, vllm_config.quant_config
        self.sizes = [2 * self.layout.heads * d, *[self.layout.cached_heads * config.cached_width] * 2]
        if self.layout.halves:
            for name, maps in (
                ("q_proj", config.num_attention_heads),
                ("k_proj", config.num_key_value_heads or 0),
                ("v_proj", config.num_key_value_heads or 0),
            ):
                halves = [maps // 2 * d] * 2
                matrix = MergedColumnParallelLinear(
                    config.hidden_size, halves, bias=bias, quant_config=quant, prefix=f"{prefix}.{name}"
                )
                self.add_module(name, matrix)
        else:
            self.qkv_proj = QKVParallelLinear(
                config.hidden_size,
                config.cached_width,  # the unit that is split over devices: in V1 a pair of maps
                2 * config.heads // config.key_maps,
                config.cached_heads,
                bias=bias,
                quant_config=quant,
                prefix=f"{prefix}.qkv_proj",
            )

    def project(self, x_TE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[T, E] to rows of queries, keys and values, [T, C] each."""
        if self.layout.halves:
            return self.q_proj(x_TE)[0], self.k_proj(x_TE)[0], self.v_proj(x_TE)[0]
        return self.qkv_proj(x_TE)[0].split(self.sizes, dim=-1)


class DiffAttention(DiffProjections):
    """Differential attention of all variants: ``W_o norm(A1 V - lambda A2 V)``."""

    def __init__(self, config: DiffTransformerConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__(config, vllm_config, prefix)
        layer, layout, quant = extract_layer_index(prefix), self.layout, vllm_config.quant_config
        self.constant = None if config.variant == "v2" else lambda_init(layer)
        self.eps, self.cached_width = config.head_norm_eps, config.cached_width
        self.o_proj = RowParallelLinear(
            config.heads * config.cached_width,
            config.hidden_size,
            bias=config.attention_bias,
            quant_config=quant,
            prefix=f"{prefix}.o_proj",
        )
        if self.constant is None:
            self.lambda_proj = ColumnParallelLinear(
                config.hidden_size, config.heads, bias=False, quant_config=quant, prefix=f"{prefix}.lambda_proj"
            )
        else:
            for name in LAMBDAS:
                self.register_parameter(name, nn.Parameter(torch.empty(layout.width, dtype=torch.float32)))
        self.subln = RMSNorm(config.cached_width, eps=config.subln_eps or 0.0) if config.variant == "v1" else None
        self.rotary_emb = get_rope(
            layout.width,
            max_position=config.max_position_embeddings,
            rope_parameters=config.rope_parameters,
            is_neox_style=not config.rope_interleaved,
        )
        self.in_one_pass = self._add_attention(config, vllm_config, f"{prefix}.attn")

    def _add_attention(self, config: DiffTransformerConfig, vllm_config: VllmConfig, prefix: str) -> bool:
        """Make ``attn``; whether it gives the heads' outputs rather than those of their maps."""
        layout, width, scale = self.layout, config.cached_width, config.scale
        backend = backend_for(config, vllm_config)
        if backend is None:
            self.attn: Any = PlainAttention(
                2 * layout.heads, width, scale, layout.cached_heads, vllm_config=vllm_config, prefix=prefix
            )
            return False
        # What reads the width of a head from the configuration must find that of a cached one.
        vllm_config.model_config.model_arch_config.head_size = width
        self.attn = Attention(
            layout.heads,
            width,
            scale,
            num_kv_heads=layout.cached_heads,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            prefix=prefix,
            attn_backend=backend,
        )
        self.attn.impl.head_output = self._head_output
        return True

    def _head_output(self) -> HeadOutput:
        assert self.constant is not None
        assert self.eps is not None
        vectors = [getattr(self, name).detach() for name in LAMBDAS]
        weight = None if self.subln is None else self.subln.weight.detach()
        return HeadOutput(lambda_of(vectors, self.constant, torch.float32), self.eps, weight, 1 - self.constant)

    def forward(self, x_TE: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        q_TC, k_TC, v_TC = self.project(x_TE)
        q_TC, k_TC = self.rotary_emb(positions_T, q_TC, k_TC)
        if self.in_one_pass:
            q_THPD, k_TGMD = self.layout.queries(q_TC), self.layout.keys(k_TC)
            out_TC = self.attn(q_THPD.flatten(1), k_TGMD.flatten(1), self.layout.values(v_TC).flatten(1))
            return self.o_proj(out_TC)[0]
        q_THW, k_TGW = self.layout.widen(self.layout.queries(q_TC), self.layout.keys(k_TC))
        out_TC = self.attn(q_THW.flatten(1), k_TGW.flatten(1), self.layout.values(v_TC).flatten(1))
        return self.o_proj(self._difference(out_TC, x_TE))[0]

    def _difference(self, out_TC: torch.Tensor, x_TE: torch.Tensor) -> torch.Tensor:
        if self.constant is None:
            return difference(out_TC, self.lambda_proj(x_TE)[0].float().sigmoid(), self.cached_width)
        vectors = [getattr(self, name) for name in LAMBDAS]
        return difference(
            out_TC,
            lambda_of(vectors, self.constant, out_TC.dtype),
            self.cached_width,
            eps=self.eps,
            weight_W=None if self.subln is None else self.subln.weight,
            factor=1 - self.constant,
        )


class DiffTransformerMLP(nn.Module):
    """Gated feed-forward: down(SiLU(gate(x)) * up(x))."""

    def __init__(self, config: DiffTransformerConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        width, inner, quant = config.hidden_size, config.intermediate_size, vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            width, [inner] * 2, bias=False, quant_config=quant, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(inner, width, bias=False, quant_config=quant, prefix=f"{prefix}.down_proj")
        self.act = SiluAndMul()

    def forward(self, x_TE: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_up_proj(x_TE)[0]))[0]


class DiffTransformerLayer(nn.Module):
    """Attention and feed-forward, each behind a norm; the residual is carried beside and added inside the norms."""

    def __init__(self, config: DiffTransformerConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = DiffAttention(config, vllm_config, f"{prefix}.self_attn")
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = DiffTransformerMLP(config, vllm_config, f"{prefix}.mlp")

    def forward(
        self, positions_T: torch.Tensor, x_TE: torch.Tensor, residual_TE: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        if residual_TE is None:
            residual_TE = x_TE
            x_TE = self.input_layernorm(x_TE)
        else:
            x_TE, residual_TE = self.input_layernorm(x_TE, residual_TE)
        x_TE = self.self_attn(x_TE, positions_T)
        x_TE, residual_TE = self.post_attention_layernorm(x_TE, residual_TE)
        return self.mlp(x_TE), residual_TE


@support_torch_compile
class DiffTransformerModel(nn.Module):
    """Embedding, this stage's layers and the final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = diff_config(vllm_config)
        stages = get_pp_group()
        if stages.is_first_rank or (config.tie_word_embeddings and stages.is_last_rank):
            self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        else:
            self.embed_tokens = PPMissingLayer()
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: DiffTransformerLayer(config, vllm_config, prefix),
            prefix=f"{prefix}.layers",
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if stages.is_last_rank else PPMissingLayer()
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states", "residual"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        residual: Any
        hidden: Any
        if get_pp_group().is_first_rank:
            hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
            residual = None
        else:
            assert intermediate_tensors is not None
            hidden, residual = intermediate_tensors["hidden_states"], intermediate_tensors["residual"]
        for layer in islice(self.layers, self.start_layer, self.end_layer):
            hidden, residual = layer(positions, hidden, residual)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden, "residual": residual})
        return self.norm(hidden, residual)[0]


class DiffTransformerForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    """What vLLM runs for the architecture "DiffTransformerForCausalLM"."""

    # Both forms of the projections; a model has one of them.
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "q_proj": ["q_proj"],
        "k_proj": ["k_proj"],
        "v_proj": ["v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    # Adapters are for the projections: with one possible on the head, vLLM 0.32 on a CPU fails at prompt_logprobs.
    embedding_modules: ClassVar[dict[str, str]] = {}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_regex=_OFFICIAL_NAMES,
        orig_to_new_stacked={".gate_proj": (".gate_up_proj", 0), ".up_proj": (".gate_up_proj", 1)},
    )
    joined_projections = WeightsMapper(
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_signatures()
        config = diff_config(vllm_config)
        self.config = config
        self.model = DiffTransformerModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head: Any = PPMissingLayer()
        if get_pp_group().is_last_rank:
            embedding: Any = self.model.embed_tokens
            self.lm_head = language_head(
                embedding, config.vocab_size, config.hidden_size, tied=config.tie_word_embeddings,
                prefix=maybe_prefix(prefix, "lm_head"),
            )  # fmt: skip
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        mapper = self.hf_to_vllm_mapper
        if self.config.variant != "diffllama":
            mapper = mapper | self.joined_projections
        return AutoWeightsLoader(self).load_weights(weights, mapper=mapper)


class DiffLlamaForCausalLM(DiffTransformerForCausalLM):
    """The same for the architecture "DiffLlamaForCausalLM": checkpoints of transformers' DiffLlama as they are."""
