"""Differential Transformer for transformers: training, loss, and generation with a cache. Read from the top.

Sources: Ye et al. 2024, arXiv 2410.05258, equations 1 to 5, with Microsoft's ``multihead_flashdiff_1.py`` for the
pairing under grouped heads (V1); ``multihead_flashdiffv2.py`` (V2); DiffLlama of transformers. All three go through one
attention module: the layout of their heads is data (``heads.HeadLayout``), and the two maps are two query heads of an
ordinary grouped attention, so every attention implementation of transformers and its own caches serve.

Axes: B batch, T tokens of this call, E model width, H differential heads, G cached heads, P pair of maps, D width of
a map, W width of a cached head.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, eager_attention_forward

from nlrl_backbones.common.loss import next_token_loss
from nlrl_backbones.diff_transformer.config import DiffTransformerConfig
from nlrl_backbones.diff_transformer.heads import HeadLayout, difference, lambda_init, lambda_of
from nlrl_backbones.diff_transformer.weights import LAMBDAS, RENAMED

Rotary = tuple[torch.Tensor, torch.Tensor]


class DiffTransformerPreTrainedModel(PreTrainedModel):
    """What transformers asks of every class of the family: configuration, initialisation, names in files."""

    config_class = DiffTransformerConfig
    config: DiffTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DiffTransformerLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    # lambda is a difference of exponentials: its vectors stay in float32 whatever the model's dtype.
    _keep_in_fp32_modules_strict: ClassVar[set[str]] = set(LAMBDAS)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args: Any, **settings: Any) -> Any:
        """As in transformers; Microsoft's names of tensors are read too, and are written as ours on saving."""
        if settings.get("key_mapping") is not None:
            return super().from_pretrained(*args, **settings)
        settings["key_mapping"] = dict(RENAMED)
        loaded: Any = super().from_pretrained(*args, **settings)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # transformers would undo on saving what it renamed on loading.
        rules = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [rule for rule in rules if not set(rule.source_patterns) <= set(RENAMED)]
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices N(0, initializer_range), norms 1, lambda's vectors N(0, lambda_std_dev)."""
        super()._init_weights(module)
        if isinstance(module, DiffAttention) and module.constant is not None:
            for name in LAMBDAS:
                init.normal_(getattr(module, name), std=self.config.lambda_std_dev)


class DiffTransformerModel(DiffTransformerPreTrainedModel):
    """Token embeddings, layers and the final norm."""

    def __init__(self, config: DiffTransformerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DiffTransformerLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]  # reads rope_parameters and head_dim
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, E] of the given tokens.

        Args:
            input_ids: [B, T], or ``inputs_embeds`` [B, T, E] in their place.
            attention_mask: 1 for real tokens, 0 for padding on either side, [B, cached + T]; None: all are real.
            position_ids: [B, T]; counted from the cache's length when None. Only distances matter.
            past_key_values: a cache of transformers, filled further in place.
            inputs_embeds: see ``input_ids``.
            use_cache: whether to start a cache when none is given.
            output_hidden_states: whether to also return the input of each layer and the normed output.
        """
        x_BTE = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(x_BTE.shape[1], device=x_BTE.device) + seen)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=x_BTE,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = self.rotary_emb(position_ids.float(), position_ids)  # float32 angles in every dtype, as all origins
        hidden: list[torch.Tensor] = []
        for layer in self.layers:
            if output_hidden_states:
                hidden.append(x_BTE)
            x_BTE = layer(x_BTE, mask, rotary, past_key_values=past_key_values)
        x_BTE = self.norm(x_BTE)
        states = (*hidden, x_BTE) if output_hidden_states else None
        return BaseModelOutputWithPast(x_BTE, past_key_values, states)  # type: ignore[arg-type]


class DiffTransformerForCausalLM(DiffTransformerPreTrainedModel, GenerationMixin):
    """Differential Transformer with its language-model head."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: DiffTransformerConfig) -> None:
        super().__init__(config)
        self.model = DiffTransformerModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **loss_settings: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, T, vocabulary], float32 or wider, and with ``labels`` the mean next-token cross-entropy.

        ``labels`` [B, T] hold -100 where a token carries no loss; label t is compared with the logits at t - 1.
        ``logits_to_keep`` asks for the logits of the last so many tokens only; 0 means all. ``num_items_in_batch``
        makes the loss a sum over that number, as transformers' trainer wants. The other arguments are those of
        ``DiffTransformerModel.forward``.
        """
        if use_cache is None and labels is not None:
            use_cache = False
        output = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, output_hidden_states
        )
        logits_BTV = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
        loss = None
        if labels is not None:
            loss = next_token_loss(logits_BTV, labels, loss_settings.get("num_items_in_batch"))
        result = CausalLMOutputWithPast(loss, logits_BTV, output.past_key_values, output.hidden_states)  # type: ignore[arg-type]
        return result.to_tuple() if return_dict is False else result


class DiffTransformerLayer(GradientCheckpointingLayer):
    """``x += attention(norm(x)); x += mlp(norm(x))``."""

    def __init__(self, config: DiffTransformerConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = DiffAttention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = DiffTransformerMLP(config)

    def forward(
        self, x_BTE: torch.Tensor, mask: Any, rotary: Rotary, past_key_values: Cache | None = None
    ) -> torch.Tensor:
        """[B, T, E] to [B, T, E]."""
        x_BTE = x_BTE + self.self_attn(self.input_layernorm(x_BTE), mask, rotary, past_key_values)
        return x_BTE + self.mlp(self.post_attention_layernorm(x_BTE))


class DiffAttention(nn.Module):
    """Differential attention of all variants: ``W_o norm(A1 V - lambda A2 V)``.

    lambda is a scalar of the layer (V1, DiffLlama: four vectors and a constant) or one number a token and head (V2: a
    projection and a sigmoid); the norm over each head and the factor behind it exist in the first case alone.
    """

    is_causal = True

    def __init__(self, config: DiffTransformerConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer
        self.layout = layout = HeadLayout.of(config)
        self.constant = None if config.variant == "v2" else lambda_init(layer)
        # What transformers' attention functions read.
        self.num_key_value_groups = 2 * layout.heads // layout.cached_heads
        self.scaling = config.scale
        width, bias, d = config.hidden_size, config.attention_bias, layout.width
        self.q_proj = nn.Linear(width, 2 * layout.heads * d, bias=bias)
        self.k_proj = nn.Linear(width, layout.cached_heads * config.cached_width, bias=bias)
        self.v_proj = nn.Linear(width, layout.cached_heads * config.cached_width, bias=bias)
        self.o_proj = nn.Linear(layout.heads * config.cached_width, width, bias=bias)
        if self.constant is None:
            self.lambda_proj = nn.Linear(width, layout.heads, bias=False)
        else:
            for name in LAMBDAS:
                self.register_parameter(name, nn.Parameter(torch.empty(d, dtype=torch.float32)))
        if config.variant == "v1":
            self.subln = nn.RMSNorm(config.cached_width, eps=config.subln_eps)  # its weight; ``difference`` applies it

    def forward(self, x_BTE: torch.Tensor, mask: Any, rotary: Rotary, past_key_values: Cache | None) -> torch.Tensor:
        """[B, T, E] to [B, T, E]; ``mask`` is what transformers made for the chosen attention implementation."""
        q_BTHPD = _rotate(self.layout.queries(self.q_proj(x_BTE)), rotary, self.config.rope_interleaved)
        k_BTGMD = _rotate(self.layout.keys(self.k_proj(x_BTE)), rotary, self.config.rope_interleaved)
        q, k = (x.transpose(1, 2) for x in self.layout.widen(q_BTHPD, k_BTGMD))  # [B, 2H, T, W], [B, G, T, W]
        v = self.layout.values(self.v_proj(x_BTE)).transpose(1, 2)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        chosen = self.config._attn_implementation or "eager"
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(chosen, eager_attention_forward)
        out, _ = attend(self, q, k, v, mask, dropout=0.0, scaling=self.scaling)
        return self.o_proj(self._difference(out.flatten(2), x_BTE))

    def _difference(self, out_BTC: torch.Tensor, x_BTE: torch.Tensor) -> torch.Tensor:
        if self.constant is None:
            score_BTH = self.lambda_proj(x_BTE)
            lam_BTH = score_BTH.to(torch.promote_types(score_BTH.dtype, torch.float32)).sigmoid()
            return difference(out_BTC, lam_BTH, self.config.cached_width)
        vectors = [getattr(self, name) for name in LAMBDAS]
        return difference(
            out_BTC,
            lambda_of(vectors, self.constant, out_BTC.dtype),
            self.config.cached_width,
            eps=self.config.head_norm_eps,
            weight_W=self.subln.weight if self.config.variant == "v1" else None,
            factor=1 - self.constant,
        )


class DiffTransformerMLP(nn.Module):
    """``down(SiLU(gate x) * up x)``."""

    def __init__(self, config: DiffTransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        """[B, T, E] to [B, T, E]."""
        return self.down_proj(F.silu(self.gate_proj(x_BTE)) * self.up_proj(x_BTE))


def _rotate(x_BTHPD: torch.Tensor, rotary: Rotary, interleaved: bool) -> torch.Tensor:
    """Rotate each map by its position (Su et al. 2021, arXiv 2104.09864): pairs (2i, 2i+1), or (i, i + D/2)."""
    half = x_BTHPD.shape[-1] // 2
    cos, sin = (table[:, :, None, None, :half] for table in rotary)  # both halves of the table are the same angles
    a, b = x_BTHPD.unflatten(-1, (half, 2)).unbind(-1) if interleaved else x_BTHPD.chunk(2, dim=-1)
    first, second = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack([first, second], dim=-1).flatten(-2) if interleaved else torch.cat([first, second], dim=-1)
    return turned.to(x_BTHPD.dtype)


# Whoever imports this module first triggers the hook in `nlrl_backbones` while the class above does not exist yet.
AutoModelForCausalLM.register(DiffTransformerConfig, DiffTransformerForCausalLM, exist_ok=True)
