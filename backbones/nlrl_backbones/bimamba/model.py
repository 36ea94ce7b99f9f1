"""Bi-Mamba for transformers: training, loss, and generation with a cache. Read from the top; then mixer, linear.

Source: Tang et al. 2024, arXiv 2411.11843; shapes, parameter names and initialisation are those of the official code.
Equations and every deviation stand in README.md.

Rows of a batch may be padded on either side. Inside, the real tokens of a row stand at its end: padding in front of
them leaves convolution and state at zero, where they start, so that every row's cache is that of the row alone.

Axes: B batch, T tokens of this call, E model width, V vocabulary.
"""

import math
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from nlrl_backbones.bimamba.config import BiMambaConfig
from nlrl_backbones.bimamba.linear import LatentLinear
from nlrl_backbones.bimamba.mixer import BiMambaMixer, RMSNorm, wide
from nlrl_backbones.common.loss import next_token_loss


class BiMambaPreTrainedModel(PreTrainedModel):
    """What transformers asks of every Bi-Mamba class: configuration, initialisation, what may be checkpointed."""

    config_class = BiMambaConfig
    config: BiMambaConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["BiMambaLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values", "cache_params"]
    # The state cannot be rolled back, which speculative decoding would need.
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As ``mamba_ssm`` and the official binary layer start them.

        Latent matrices as torch's linear layers, out_proj then over sqrt(layers); scale and shift from the matrix by
        column: mean |W - mean W| and mean W. A uniform, dt log-uniform, D and norms 1, embedding normal.
        """
        if isinstance(module, BiMambaMixer):
            self._init_mixer(module)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, (nn.Embedding, nn.Linear)):  # the one linear layer is a head that is not tied
            init.normal_(module.weight, std=self.config.initializer_range)

    def _init_mixer(self, mixer: BiMambaMixer) -> None:
        config = self.config
        low, high = config.decay_range
        init.copy_(mixer.A_log, torch.empty_like(mixer.A_log, dtype=torch.float32).uniform_(low, high).log())
        init.ones_(mixer.D)
        shortest, longest, floor = config.step_range
        steps = torch.empty_like(mixer.dt_bias, dtype=torch.float32).uniform_(math.log(shortest), math.log(longest))
        steps = steps.exp().clamp(min=floor)
        init.copy_(mixer.dt_bias, steps + torch.log(-torch.expm1(-steps)))  # softplus of it is the step
        init.kaiming_uniform_(mixer.conv1d.weight, a=math.sqrt(5))
        assert mixer.conv1d.bias is not None
        init.uniform_(mixer.conv1d.bias, -(config.conv_kernel**-0.5), config.conv_kernel**-0.5)
        for projection, shrink in ((mixer.in_proj, 1.0), (mixer.out_proj, config.n_layer**-0.5)):
            if isinstance(projection, LatentLinear):
                _init_latent(projection, shrink)


def _init_latent(projection: LatentLinear, shrink: float) -> None:
    if getattr(projection.weight, "_is_hf_initialized", False):
        return
    bound = shrink * projection.weight.shape[1] ** -0.5
    init.uniform_(projection.weight, -bound, bound)
    scale, shift = column_statistics(projection.weight)
    init.copy_(projection.wscale, scale)
    init.copy_(projection.wbias, shift)


def column_statistics(weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What wscale and wbias [1, I] start as: mean |W - mean W| and mean W of each input column."""
    shift = weight_OI.mean(dim=0, keepdim=True)
    return (weight_OI - shift).abs().mean(dim=0, keepdim=True), shift


class BiMambaLayer(GradientCheckpointingLayer):
    """``residual += mixer(norm(residual))``, the residual in float32."""

    def __init__(self, config: BiMambaConfig, layer: int) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.mixer = BiMambaMixer(config, layer)

    def forward(
        self, residual_BTE: torch.Tensor, cache: Cache | None = None, real_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, T, E] to [B, T, E]."""
        return residual_BTE + self.mixer(self.norm(residual_BTE), cache, real_BT)


class BiMambaModel(BiMambaPreTrainedModel):
    """Token embeddings, layers and the final norm."""

    def __init__(self, config: BiMambaConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(BiMambaLayer(config, i) for i in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding [V, E], which a tied head shares."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.embedding = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, E] of tokens that follow what the cache holds.

        ``attention_mask`` [B, >= T] is 0 at padding; where it is longer, its last T columns count. With
        ``output_hidden_states`` the residual before every layer and the normed output are returned.

        Raises:
            ValueError: padding in tokens that follow a filled cache, or neither or both kinds of input.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Bi-Mamba: give either input_ids or inputs_embeds.")
        x_BTE = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = past_key_values
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        rows = _Rows.of(attention_mask, x_BTE.shape[1], cache)
        x_BTE = wide(x_BTE if rows is None else rows.pack(x_BTE))
        states: list[torch.Tensor] = []
        for layer in self.layers:
            if output_hidden_states:
                states.append(x_BTE)
            x_BTE = layer(x_BTE, cache=cache, real_BT=None if rows is None else rows.real_BT)
        states.append(self.norm_f(x_BTE))
        if rows is not None:
            states = [rows.unpack(state) for state in states]
        hidden = tuple(states) if output_hidden_states else None
        return BaseModelOutputWithPast(states[-1], cache if use_cache else None, hidden)  # type: ignore[arg-type]


class BiMambaForCausalLM(BiMambaPreTrainedModel, GenerationMixin):
    """The language model: hidden states to logits by a head that is the embedding unless untied."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "backbone.embedding.weight"}

    def __init__(self, config: BiMambaConfig) -> None:
        super().__init__(config)
        self.backbone = BiMambaModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding [V, E], which a tied head shares."""
        return self.backbone.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace it."""
        self.backbone.embedding = value

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: torch.Tensor | None = None,
        cache_params: Cache | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, T, V] in float32 or wider, and the mean next-token loss of ``labels``.

        ``labels`` [B, T] hold -100 where a token carries no loss; label t is compared with the logits at t - 1.
        ``logits_to_keep`` asks for the logits of the last so many tokens only; 0 means all. ``cache_params`` is
        another name of ``past_key_values``, which transformers uses for models named after Mamba. The rest is as in
        ``BiMambaModel``.
        """
        if use_cache is None and labels is not None:
            use_cache = False
        cache = cache_params if past_key_values is None else past_key_values
        output = self.backbone(input_ids, attention_mask, cache, use_cache, output_hidden_states, inputs_embeds)
        logits_BTV = wide(self.lm_head(output.last_hidden_state[:, -logits_to_keep:]))
        loss = None
        if labels is not None:
            loss = next_token_loss(logits_BTV, labels)
        result = CausalLMOutputWithPast(loss, logits_BTV, output.past_key_values, output.hidden_states)  # type: ignore[arg-type]
        return result.to_tuple() if return_dict is False else result

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        cache_params: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 1,
        **_: object,  # ``generate`` passes on all it knows, positions among it
    ) -> dict[str, object]:
        """The arguments of the next ``forward``: the whole prompt first, then each new token."""
        cache = cache_params if past_key_values is None else past_key_values
        follows = use_cache and cache is not None and cache.has_previous_state()
        return {
            "input_ids": input_ids[:, -1:] if follows else input_ids,
            "attention_mask": None if follows else attention_mask,
            "past_key_values": cache,
            "use_cache": use_cache,
            "output_hidden_states": output_hidden_states,
            "logits_to_keep": logits_to_keep or 0,
        }


class _Rows:
    """Moves the real tokens of each row to its end, in order, so that padding only ever precedes."""

    def __init__(self, real_BT: torch.Tensor) -> None:
        self.order_BT = torch.argsort(real_BT.to(torch.uint8), dim=-1, stable=True)
        self.inverse_BT = torch.argsort(self.order_BT, dim=-1)
        self.real_BT = real_BT.gather(1, self.order_BT)

    @classmethod
    def of(cls, attention_mask: torch.Tensor | None, tokens: int, cache: Cache | None) -> "_Rows | None":
        """None where nothing is padded."""
        if attention_mask is None:
            return None
        real_BT = attention_mask[:, -tokens:].bool()
        if bool(real_BT.all()):
            return None
        if cache is not None and cache.has_previous_state():
            raise ValueError("Bi-Mamba: tokens that follow a filled cache cannot be padded: give rows of one length.")
        return cls(real_BT)

    def pack(self, x_BTE: torch.Tensor) -> torch.Tensor:
        return x_BTE.gather(1, self.order_BT[..., None].expand_as(x_BTE))

    def unpack(self, x_BTE: torch.Tensor) -> torch.Tensor:
        return x_BTE.gather(1, self.inverse_BT[..., None].expand_as(x_BTE))


# Whoever imports this module first triggers the hook in `nlrl_backbones` while the class above does not exist yet.
AutoModelForCausalLM.register(BiMambaConfig, BiMambaForCausalLM, exist_ok=True)
