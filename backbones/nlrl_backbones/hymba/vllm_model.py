"""Hymba as vLLM serves it: the official checkpoint layout, the meta tokens folded into constants.

Source: Dong et al. 2024 (arXiv 2411.13676). See ``vllm_mixer`` for the mixer and what the meta tokens leave.
Loads ``model.layers.i.mamba...`` names as published; the tied head may be absent.
"""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFuncCalculator
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.interfaces import (
    HasInnerState,
    IsHybrid,
    SupportsLoRA,
    SupportsMambaPrefixCaching,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors

from nlrl_backbones.common.vllm_compat import check_signatures, own_config
from nlrl_backbones.common.vllm_head import language_head

from .config import HymbaConfig
from .vllm_layers import RMSNorm, SiluAndMul, without_adapter
from .vllm_mixer import HymbaMixer, scan_state_dtypes, scan_state_shapes


def check_settings(config: HymbaConfig, vllm_config: VllmConfig) -> None:
    """Whether this model can be served as asked.

    Raises:
        ValueError: one sentence, for settings that would change answers from one request to the next.
    """
    if config.decode_window != "full":
        raise ValueError(
            'Hymba: decode_window="official" is not served, for a cached prefix would depend on whether its tokens '
            'were read or written: set it to "full", or use transformers.'
        )
    if config.adapt_meta_tokens and vllm_config.lora_config is not None:
        raise ValueError(
            "Hymba: an adapter trained with adapt_meta_tokens changes what all requests share; merge it into the "
            "weights and reload those."
        )


class HymbaMLP(nn.Module):
    """Gated feed-forward: down(SiLU(gate(x)) * up(x))."""

    def __init__(self, config: HymbaConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        width, inner, quant = config.hidden_size, config.intermediate_size, vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            width, [inner] * 2, bias=False, quant_config=quant, prefix=f"{prefix}.gate_up_proj"
        )
        self.down_proj = RowParallelLinear(inner, width, bias=False, quant_config=quant, prefix=f"{prefix}.down_proj")
        self.act = SiluAndMul()

    def forward(self, x_TE: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act(self.gate_up_proj(x_TE)[0]))[0]

    def without_adapter(self, x_TE: torch.Tensor) -> torch.Tensor:
        """The same by the base weights."""
        gate_up_proj, down_proj = without_adapter(self.gate_up_proj), without_adapter(self.down_proj)
        return down_proj(self.act(gate_up_proj(x_TE)[0]))[0]


class HymbaLayer(nn.Module):
    """Mixer and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: HymbaConfig, layer: int, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mamba = HymbaMixer(config, layer, vllm_config=vllm_config, prefix=f"{prefix}.mamba")
        self.pre_moe_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.moe = HymbaMLP(config, vllm_config, f"{prefix}.moe")

    def forward(self, x_TE: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
        x_TE = x_TE + self.mamba(self.input_layernorm(x_TE), positions_T)
        return x_TE + self.moe(self.pre_moe_layernorm(x_TE))

    def compute_constants(self, x_ME: torch.Tensor) -> torch.Tensor:
        """The same on the meta tokens alone; fills the mixer's constants."""
        x_ME = x_ME + self.mamba.compute_constants(self.input_layernorm(x_ME))
        return x_ME + self.moe.without_adapter(self.pre_moe_layernorm(x_ME))


class MetaConstants(nn.Module, AttentionLayerBase):
    """Recomputes what the meta tokens leave and other copies of weights, after the first load and every reload.

    It has no weights and no cache. vLLM finishes attention layers last, in module order, after all other weights are
    in place; standing last in the model, this one sees them all. Writes in place, so captured graphs stay valid.
    """

    def __init__(self, model: "HymbaModel") -> None:
        super().__init__()
        self._model = [model]  # in a list: not a submodule of itself

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        model = self._model[0]
        with torch.no_grad():
            layers: Any = model.layers
            for layer in layers:
                layer.mamba.refresh_weights()
            hidden = model.memory_tokens.to(act_dtype)
            for layer in layers if len(hidden) else ():
                hidden = layer.compute_constants(hidden)

    def get_attn_backend(self) -> Any:
        raise NotImplementedError("The meta constants are no attention layer of their own.")

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> None:
        return None


@support_torch_compile
class HymbaModel(nn.Module):
    """Embedding, layers and final norm over real tokens; positions start at M."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = own_config(vllm_config, HymbaConfig)
        if get_pp_group().world_size > 1:
            raise ValueError("Hymba is not split over pipeline stages: use tensor_parallel_size instead.")
        self.num_meta = config.num_meta
        self.embed_tokens = VocabParallelEmbedding(config.vocab_size, config.hidden_size)
        self.memory_tokens = nn.Parameter(torch.empty(config.num_meta, config.hidden_size))
        layers = [HymbaLayer(config, i, vllm_config, f"{prefix}.layers.{i}") for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.final_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        for i, layer in enumerate(layers):
            producer = config.kv_producer(i)
            layer.mamba.allocate_constants(None if producer is None else layers[producer].mamba)
        self.meta_constants = MetaConstants(self)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        positions = positions + self.num_meta
        for layer in self.layers:
            hidden = layer(hidden, positions)
        return self.final_layernorm(hidden)


class HymbaForCausalLM(nn.Module, HasInnerState, IsHybrid, SupportsLoRA, SupportsMambaPrefixCaching):
    """What vLLM runs for the architecture "HymbaForCausalLM"."""

    # Adapters name modules as the transformers model does: one in_proj for all its rows, gate and up apart.
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "in_proj": ["in_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    embedding_modules: ClassVar[dict[str, str]] = {}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_substr={
            ".moe.experts.0.": ".moe.",
            ".x_proj.0.": ".x_proj.",
            ".dt_proj.0.": ".dt_proj.",
            ".A_log.0": ".A",
            ".D.0": ".D",
        },
        orig_to_new_stacked={".gate_proj": (".gate_up_proj", 0), ".up_proj": (".gate_up_proj", 1)},
    )

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, torch.dtype]:
        return scan_state_dtypes(vllm_config)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, int], tuple[int, int]]:
        return scan_state_shapes(own_config(vllm_config, HymbaConfig), vllm_config.parallel_config.tensor_parallel_size)

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[Any, Any]:
        return MambaStateCopyFuncCalculator.mamba1_state_copy_func()

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_signatures()
        config = own_config(vllm_config, HymbaConfig)
        check_settings(config, vllm_config)
        self.config = config
        self.model = HymbaModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = language_head(
            self.model.embed_tokens, config.vocab_size, config.hidden_size, tied=config.tie_word_embeddings,
            prefix=maybe_prefix(prefix, "lm_head"),
        )  # fmt: skip
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
