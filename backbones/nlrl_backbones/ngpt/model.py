"""nGPT, and the GPT it is compared with, for transformers: training, loss, and generation with a cache.

Source: Loshchilov et al. 2024, arXiv 2410.01131, in the form of the published ``model.py`` (NVIDIA/ngpt), whose
parameter names and initialisation these are. Deviations: there is a cache (a key is final once scaled, and positions
are absolute), rows may be padded, and a textbook rotary step can be chosen. ``train.py`` keeps the weights normalised.

Axes: B batch, T tokens of this call, S cached and new tokens, E model width, H heads, D head width.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from nlrl_backbones.common.loss import next_token_loss
from nlrl_backbones.ngpt.config import NGPTConfig
from nlrl_backbones.ngpt.position import position_tables
from nlrl_backbones.ngpt.train import normalize_matrices
from nlrl_backbones.ngpt.train import parameter_groups as _parameter_groups
from nlrl_kernels import qk_step, residual_step, scaled_swiglu
from nlrl_kernels.hypersphere import position_step

_NORM_EPS = 1e-6
_ALPHA = 0.05
"""Effective alpha at initialisation: how far each half of a block moves the hidden state."""


class _OutputProjection(nn.Linear):
    """A projection onto the residual stream; its initialisation shrinks with depth."""


class NGPTPreTrainedModel(PreTrainedModel):
    """What transformers asks of every nGPT class: configuration, initialisation, what may be split or checkpointed."""

    config_class = NGPTConfig
    config: NGPTConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["NGPTBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["attn_alpha", "mlp_alpha", "sqk", "suv", "sz"]
    _supports_sdpa = True
    _input_embed_layer = "wte"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices N(0, s) with s = base_scale, output projections s / sqrt(2 layers); scales s, ``suv`` 1, norms 1.

        ``normalize_matrices`` then makes the matrices' vectors unit vectors, before the first step of training.
        """
        scale = self.config.base_scale
        if isinstance(module, _OutputProjection):
            init.normal_(module.weight, std=scale * (2 * self.config.n_layer) ** -0.5)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=scale)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, NGPTBlock) and self.config.use_nGPT:
            for parameter in (module.attn_alpha, module.mlp_alpha, module.sqk):
                init.constant_(parameter, scale)
            init.ones_(module.suv)
        elif isinstance(module, NGPTForCausalLM) and self.config.use_nGPT:
            init.constant_(module.sz, scale)


class NGPTModel(NGPTPreTrainedModel):
    """Token embeddings and blocks. nGPT has no norm at the end; the baseline's is a parameter of the whole model."""

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(NGPTBlock(config, i) for i in range(config.n_layer))
        self.gradient_checkpointing = False
        self._final_norms: list[nn.Module] = []  # in a list: a submodule of the whole model, not of this one
        self.post_init()

    def end_with(self, norm: nn.Module) -> None:
        """Norm the last hidden state, so that the head may follow on it directly."""
        self._final_norms = [norm]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, E] of the given tokens.

        Args:
            input_ids: [B, T], or ``inputs_embeds`` [B, T, E] in their place.
            attention_mask: 1 for real tokens, 0 for padding on either side, [B, cached + T]; None: all are real.
            past_key_values: what earlier calls left; filled further in place.
            inputs_embeds: embeddings in place of ``input_ids``.
            use_cache: whether to start a cache when none is given.
            output_hidden_states: whether to also return the embeddings and each block's output, the last one as above.
            output_attentions: refused when true.
            return_dict: accepted, for peft passes it on; the output is always an object.
        """
        if output_attentions:
            raise ValueError("nGPT returns no attention weights: leave output_attentions unset.")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        cache = DynamicCache() if use_cache and past_key_values is None else past_key_values
        x: torch.Tensor = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        step = _Step.of(x, attention_mask, cache, self.config)
        hidden = [x]
        for block in self.h:
            x = block(x, step, cache)
            hidden.append(x)
        for norm in self._final_norms:
            hidden[-1] = x = norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,  # type: ignore[arg-type]
            past_key_values=cache,
            hidden_states=tuple(hidden) if output_hidden_states else None,  # type: ignore[arg-type]
        )


class NGPTForCausalLM(NGPTPreTrainedModel, GenerationMixin):
    """nGPT or its baseline with a language-model head, which is a matrix of its own."""

    def __init__(self, config: NGPTConfig) -> None:
        super().__init__(config)
        self.transformer = NGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.use_nGPT:
            self.sz = nn.Parameter(torch.empty(config.vocab_size))
        else:
            self.rmsnorm_f = nn.RMSNorm(config.n_embd, eps=_NORM_EPS)
            self.transformer.end_with(self.rmsnorm_f)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, T, vocabulary], float32 or wider, and with ``labels`` the mean next-token cross-entropy.

        ``labels`` [B, T] hold -100 where a token carries no loss; label t is compared with the logits at t - 1.
        ``logits_to_keep`` asks for the logits of the last so many tokens only; 0 means all. The other arguments are
        those of ``NGPTModel.forward``.
        """
        if use_cache is None and labels is not None:
            use_cache = False
        output = self.transformer(
            input_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
        )
        logits_BTV = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
        if self.config.use_nGPT:
            logits_BTV = logits_BTV * self.logit_scale_V.to(logits_BTV.dtype)
        loss = None
        if labels is not None:
            loss = next_token_loss(logits_BTV, labels)
        result = CausalLMOutputWithPast(loss, logits_BTV, output.past_key_values, output.hidden_states)  # type: ignore[arg-type]
        return result.to_tuple() if return_dict is False else result

    @property
    def logit_scale_V(self) -> torch.Tensor:
        """The effective scale of each token's logit."""
        return self.sz / self.config.base_scale

    def get_output_embeddings(self) -> Any:
        """The matrix that takes the last hidden state to logits: in nGPT ``lm_head`` with its rows scaled by ``sz``.

        TRL's trainers multiply by its ``weight`` and never see the logits of ``forward``.
        """
        return _ScaledHead(self) if self.config.use_nGPT else self.lm_head

    def after_optimizer_step(self) -> None:
        """What training must do before its first step and after each: in nGPT, ``train.normalize_matrices``."""
        normalize_matrices(self)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Groups for an optimizer: see ``train.parameter_groups``."""
        return _parameter_groups(self, weight_decay)

    @property
    def wants_warmup(self) -> bool:
        """Whether training starts with a rising learning rate; the published recipe has none for nGPT."""
        return not self.config.use_nGPT

    def resize_token_embeddings(self, *_: object, **__: object) -> nn.Embedding:
        """Refused: a new token would need a unit vector in two matrices and an entry of ``sz``.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("nGPT's vocabulary cannot be resized: choose vocab_size before training.")


class _ScaledHead:
    """nGPT's head as one matrix; computed when asked for, so that gradients reach both of its factors."""

    bias = None

    def __init__(self, model: NGPTForCausalLM) -> None:
        self._model = model

    @property
    def weight(self) -> torch.Tensor:
        """[vocabulary, E]."""
        matrix = self._model.lm_head.weight
        return matrix * self._model.logit_scale_V.to(matrix.dtype)[:, None]

    def __call__(self, x_BTE: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, vocabulary]."""
        return F.linear(x_BTE, self.weight)


class NGPTBlock(GradientCheckpointingLayer):
    """Attention and a gated feed-forward part; each moves the hidden state along the sphere (baseline: adds to it)."""

    def __init__(self, config: NGPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        width, inner = config.n_embd, config.intermediate_size
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.att_c_proj = _OutputProjection(width, width, bias=False)
        self.c_fc = nn.Linear(width, 2 * inner, bias=False)
        self.mlp_c_proj = _OutputProjection(inner, width, bias=False)
        if config.use_nGPT:
            self.attn_alpha = nn.Parameter(torch.empty(width))
            self.mlp_alpha = nn.Parameter(torch.empty(width))
            self.sqk = nn.Parameter(torch.empty(width))
            self.suv = nn.Parameter(torch.empty(2 * inner))
        else:
            self.rmsnorm_att = nn.RMSNorm(width, eps=_NORM_EPS)
            self.rmsnorm_mlp = nn.RMSNorm(width, eps=_NORM_EPS)

    def forward(self, x_BTE: torch.Tensor, step: "_Step", cache: Cache | None) -> torch.Tensor:
        """[B, T, E] to [B, T, E]."""
        if not self.config.use_nGPT:
            x_BTE = x_BTE + self._attend(self.rmsnorm_att(x_BTE), step, cache)
            u, v = self.c_fc(self.rmsnorm_mlp(x_BTE)).chunk(2, dim=-1)
            return x_BTE + self.mlp_c_proj(u * F.silu(v))
        x_BTE = residual_step(x_BTE, self._attend(x_BTE, step, cache), self._alpha(self.attn_alpha))
        inner = scaled_swiglu(self.c_fc(x_BTE), self.suv * self.config.n_embd**0.5)
        return residual_step(x_BTE, self.mlp_c_proj(inner), self._alpha(self.mlp_alpha))

    def _alpha(self, stored_E: torch.Tensor) -> torch.Tensor:
        return torch.abs(stored_E * (_ALPHA / self.config.base_scale))

    def _attend(self, x_BTE: torch.Tensor, step: "_Step", cache: Cache | None) -> torch.Tensor:
        heads = (self.config.n_head, self.config.head_dim)
        q, k, v = (part(x_BTE).unflatten(-1, heads) for part in (self.query, self.key, self.value))
        if self.config.use_nGPT:
            scale_HD = (self.sqk / self.config.base_scale).unflatten(-1, heads)
            q, k = (qk_step(x, scale_HD, step.cross, step.keep) for x in (q, k))
        else:
            q, k = (position_step(x, step.cross, step.keep) for x in (q, k))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        out_BHTD = F.scaled_dot_product_attention(
            q, k, v, attn_mask=step.mask, is_causal=step.is_causal, scale=self.config.softmax_scale
        )
        return self.att_c_proj(out_BHTD.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class _Step:
    """Where the tokens of one call stand: tables of the position step, and what each token sees.

    Attributes:
        cross, keep: tables of the position step.
        mask: [B, 1, T, S], or None when ``is_causal`` says it all, or one token sees everything.
        is_causal: whether each token sees itself and those before it, with nothing cached and nothing padded.
    """

    cross: torch.Tensor
    keep: torch.Tensor | None
    mask: torch.Tensor | None
    is_causal: bool

    @classmethod
    def of(cls, x_BTE: torch.Tensor, given: torch.Tensor | None, cache: Cache | None, config: NGPTConfig) -> "_Step":
        """The step of a call whose tokens follow what is cached; ``given`` is the attention mask."""
        length, past = x_BTE.shape[1], 0 if cache is None else cache.get_seq_length()
        columns_S = torch.arange(past + length, device=x_BTE.device)
        mask = None
        if given is None:
            positions = columns_S[None, past:]
            if past and length > 1:
                mask = (columns_S <= columns_S[past:, None])[None, None]
        else:
            if given.shape[-1] != past + length:
                columns = given.shape[-1]
                raise ValueError(f"attention_mask must cover the {past} cached and {length} new tokens, got {columns}.")
            positions = (given.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
            queries_T1 = columns_S[past:, None]
            # Padding sees itself, so that it has something finite to attend to.
            seen_BTS = (columns_S <= queries_T1) & given.bool()[:, None] | (columns_S == queries_T1)
            mask = seen_BTS[:, None]
        wide = torch.promote_types(x_BTE.dtype, torch.float32)
        cross, keep = position_tables(positions, config.head_dim, config.position, wide)
        return cls(cross, keep, mask, is_causal=given is None and not past and length > 1)


# Whoever imports this module first triggers the hook in `nlrl_backbones` while the class above does not exist yet.
AutoModelForCausalLM.register(NGPTConfig, NGPTForCausalLM, exist_ok=True)
