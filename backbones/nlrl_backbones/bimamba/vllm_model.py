"""Bi-Mamba as vLLM serves it: vLLM's Mamba-2 mixer with binarised projections, latent or packed checkpoints.

Source: Tang et al. 2024 (arXiv 2411.11843). Convolution, scan, states, prefix caching and CUDA graphs are vLLM's own
(``MambaMixer2``), on a CPU too. Ours are the projections (``vllm_linear``) and the residual in float32, which vLLM's
Mamba-2 carries in the model's dtype.

Axes: T packed tokens, E model width.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import (
    MambaStateCopyFuncCalculator,
    MambaStateDtypeCalculator,
    MambaStateShapeCalculator,
)
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.interfaces import (
    HasInnerState,
    IsAttentionFree,
    SupportsLoRA,
    SupportsMambaPrefixCaching,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.sequence import IntermediateTensors

from nlrl_backbones.common.vllm_compat import check_signatures, own_config
from nlrl_backbones.common.vllm_head import language_head
from nlrl_kernels.binary.reference import pack_signs

from .config import BiMambaConfig
from .vllm_linear import BinaryConfig
from .vllm_mixer import Mixer
from .weights import PROJECTIONS

_PROJECTIONS = tuple(f".mixer.{name}" for name in PROJECTIONS)
_LATENT = tuple(f".mixer.{name}.weight" for name in PROJECTIONS)


class BiMambaLayer(nn.Module):
    """``residual += mixer(norm(residual))``, the residual in float32."""

    def __init__(self, config: BiMambaConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.dtype = vllm_config.model_config.dtype
        self.norm = RMSNorm(config.d_model, eps=config.layer_norm_epsilon, dtype=torch.float32)
        self.mixer = Mixer(
            hidden_size=config.d_model,
            ssm_state_size=config.state_size,
            conv_kernel_size=config.conv_kernel,
            intermediate_size=config.intermediate_size,
            use_conv_bias=True,
            use_bias=False,
            n_groups=config.n_groups,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.layer_norm_epsilon,
            activation=config.hidden_act,
            model_config=vllm_config.model_config,
            cache_config=vllm_config.cache_config,
            quant_config=BinaryConfig(config),
            prefix=f"{prefix}.mixer",
        )

    def forward(self, residual_TE: torch.Tensor) -> torch.Tensor:
        added = self.mixer.adds_to(residual_TE, self.norm, self.dtype)
        if added is not None:
            return added
        return residual_TE + self.mixer(self.norm(residual_TE).to(self.dtype)).float()


@support_torch_compile
class BiMambaModel(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = own_config(vllm_config, BiMambaConfig)
        self.dtype = vllm_config.model_config.dtype
        self.embedding = VocabParallelEmbedding(config.vocab_size, config.d_model)
        layers = (BiMambaLayer(config, vllm_config, f"{prefix}.layers.{i}") for i in range(config.n_layer))
        self.layers = nn.ModuleList(layers)
        self.norm_f = RMSNorm(config.d_model, eps=config.layer_norm_epsilon, dtype=torch.float32)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.embedding(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        residual = (self.embedding(input_ids) if inputs_embeds is None else inputs_embeds).float()
        for layer in self.layers:
            residual = layer(residual)
        return self.norm_f(residual).to(self.dtype)


class BiMambaForCausalLM(nn.Module, HasInnerState, IsAttentionFree, SupportsMambaPrefixCaching, SupportsLoRA):
    """What vLLM runs for the architecture "BiMambaForCausalLM"."""

    hf_to_vllm_mapper = WeightsMapper(orig_to_new_substr={".A_log": ".A"})
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {"in_proj": ["in_proj"]}
    # Adapters are for the projections: with one possible on the head, vLLM 0.32 on a CPU fails at prompt_logprobs.
    embedding_modules: ClassVar[dict[str, str]] = {}

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> Any:
        cache = vllm_config.cache_config
        return MambaStateDtypeCalculator.mamba2_state_dtype(
            vllm_config.model_config.dtype, cache.mamba_cache_dtype, cache.mamba_ssm_cache_dtype
        )

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, int], tuple[int, int, int]]:
        config = own_config(vllm_config, BiMambaConfig)
        return MambaStateShapeCalculator.mamba2_state_shape(
            intermediate_size=config.intermediate_size,
            tp_world_size=vllm_config.parallel_config.tensor_parallel_size,
            n_groups=config.n_groups,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            state_size=config.state_size,
            conv_kernel=config.conv_kernel,
            num_spec=vllm_config.num_speculative_tokens,
        )

    @classmethod
    def get_mamba_state_copy_func(cls) -> tuple[Any, Any]:
        return MambaStateCopyFuncCalculator.mamba2_state_copy_func()

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        check_signatures()
        config = own_config(vllm_config, BiMambaConfig)
        self.config = config
        self.backbone = BiMambaModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "backbone"))
        self.lm_head = language_head(
            self.backbone.embedding, config.vocab_size, config.d_model, tied=config.tie_embeddings,
            prefix=maybe_prefix(prefix, "lm_head"),
        )  # fmt: skip
        self.logits_processor = LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.backbone.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.backbone(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        whole = self._binarised(_whole_projections(weights))
        return AutoWeightsLoader(self).load_weights(whole, mapper=self.hf_to_vllm_mapper)

    def _binarised(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors as this engine keeps them.

        Latent matrices become signs, packed ones for a packed engine, so that a trainer's weights can be loaded into
        either. Where an engine has room for exact zeros, it is told of none as well.
        """
        packs, room, untold = self.config.weight_format == "packed", self.config.packed_zeros, set[str]()
        for name, tensor in weights:
            root, _, kind = name.rpartition(".")
            if name.endswith(_LATENT):
                if not packs:
                    yield name, tensor.sign()
                    continue
                packed, zeros = pack_signs(tensor)
                _check_room(root, len(zeros), room)
                yield f"{root}.weight_packed", packed
                if root in room:
                    yield f"{root}.weight_zeros", zeros
                continue
            if kind == "weight_packed" and not packs:
                raise ValueError(
                    "Bi-Mamba: this engine was started on a latent checkpoint and cannot load packed weights: "
                    "start one on the packed folder."
                )
            if kind == "weight_packed" and root in room:
                untold ^= {root}
            if kind == "weight_zeros":
                _check_room(root, len(tensor), room)
                untold ^= {root}
            yield name, tensor
        for root in untold:  # each is named once by its bits, and again by its zeros if there are any
            yield f"{root}.weight_zeros", torch.empty(0, 2, dtype=torch.int32)


def _whole_projections(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, those of a projection one after another once its matrix and both scales are there.

    Of a latent projection the engine keeps what the three come to, so a part of them cannot be renewed alone.
    """
    parts: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in weights:
        root = name.rpartition(".")[0]
        if not root.endswith(_PROJECTIONS):
            yield name, tensor
            continue
        held = parts.setdefault(root, [])
        held.append((name, tensor))
        kinds = {name.rpartition(".")[2] for name, _ in held}
        if {"wscale", "wbias"} <= kinds and kinds & {"weight", "weight_packed"}:
            yield from held
            held.clear()
    lacking = sorted(root for root, held in parts.items() if any(not n.endswith(".weight_zeros") for n, _ in held))
    if lacking:
        raise ValueError(
            f"Bi-Mamba: {lacking[0]} came without its matrix or one of its scales: "
            "load all tensors of a projection together."
        )
    for held in parts.values():
        yield from held


def _check_room(name: str, zeros: int, room: dict[str, int]) -> None:
    if zeros > room.get(name, 0):
        raise ValueError(
            f"Bi-Mamba: {name} now has {zeros} exact zeros where this engine made room for {room.get(name, 0)}: "
            "start a new one on this checkpoint, or serve latent checkpoints."
        )
