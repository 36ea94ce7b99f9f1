"""Hymba for transformers: training, loss, and generation with a cache. Read from the top; then mixer, cache.

Source: Dong et al. 2024, arXiv 2411.13676, section 2; shapes, parameter names and initialisation are those of the
official checkpoint nvidia/Hymba-1.5B-Base. One deviation: in cached decoding the official code attends to one real
token fewer than in a full pass; here both see the same window, so cached and uncached generation agree, unless the
configuration asks for ``decode_window="official"``.

M learned meta tokens stand in front of every sequence at positions 0..M-1; real tokens count from M. Masks go by
position, so rows may be padded on either side and any number of tokens may follow on a filled cache.

Axes: B batch, T tokens of this call (meta tokens included inside the model), E model width.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from nlrl_backbones.common.loss import next_token_loss
from nlrl_backbones.hymba.cache import HymbaCache, LayerCache, Rows
from nlrl_backbones.hymba.config import HymbaConfig
from nlrl_backbones.hymba.mixer import HymbaMixer, KeysValues, RMSNorm, project, rotary_table


class HymbaPreTrainedModel(PreTrainedModel):
    """What transformers asks of every Hymba class: configuration, initialisation, what may be split or checkpointed."""

    config_class = HymbaConfig
    config: HymbaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["HymbaLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    # The scan's state cannot be rolled back, which speculative decoding would need.
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Matrices N(0, initializer_range), biases 0, norms 1, A = -(1..N), D = 1, meta tokens N(0, 1)."""
        if isinstance(module, HymbaModel):
            init.normal_(module.memory_tokens, std=1.0)
        elif isinstance(module, nn.ParameterList):
            # The scan's A_log [C, N] and D [C]. transformers visits the lists before the mixer that owns them, and
            # takes what it has visited for initialised.
            (parameter,) = module
            if parameter.ndim == 2:
                states = torch.arange(1, parameter.shape[1] + 1, dtype=torch.float32)
                init.copy_(parameter, torch.log(states).expand_as(parameter))
            else:
                init.ones_(parameter)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Conv1d, nn.Embedding)):
            init.normal_(module.weight, std=self.config.initializer_range)
            bias = getattr(module, "bias", None)
            if bias is not None:
                init.zeros_(bias)


class HymbaModel(HymbaPreTrainedModel):
    """Token embeddings, meta tokens, layers and the final norm."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.memory_tokens = nn.Parameter(torch.empty(config.num_meta, config.hidden_size))
        self.layers = nn.ModuleList(HymbaLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: HymbaCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, E] of the given tokens, meta tokens removed.

        Args:
            input_ids: [B, T].
            attention_mask: 1 for real tokens, 0 for padding, [B, T] or [B, cached + T]; None: all are real.
            past_key_values: what earlier calls left; filled further in place.
            use_cache: whether to start a cache when none is given.
            output_hidden_states: whether to also return the input of each layer and the normed output.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        cache = HymbaCache(self.config) if use_cache and past_key_values is None else past_key_values
        packing = None if attention_mask is None else _Packing(attention_mask[:, -input_ids.shape[1] :])
        x = self.embed_tokens(input_ids if packing is None else packing.pack(input_ids))
        first = cache is None or not cache.is_filled
        if first:
            x = torch.cat([self.memory_tokens.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        rows = Rows.next(x, self.config, packing.counts_B if packing else None, cache)
        rotary = rotary_table(rows.positions_BT, self.config, x.dtype)

        drop = self.config.num_meta if first else 0
        hidden: list[torch.Tensor] = []
        shared: dict[int, KeysValues] = {}
        for i, layer in enumerate(self.layers):
            if output_hidden_states:
                hidden.append(x)
            producer = self.config.kv_producer(i)
            borrowed = None if producer is None else shared[producer]
            # The checkpointing wrapper passes positional arguments on.
            x, shared[i] = layer(x, borrowed, rows, rotary, None if cache is None else cache.layers[i])
        x = self.final_layernorm(x)
        if cache is not None:
            cache.advance(rows)

        def given(h_BTE: torch.Tensor) -> torch.Tensor:
            return h_BTE[:, drop:] if packing is None else packing.unpack(h_BTE[:, drop:])

        states = (*map(given, hidden), given(x)) if output_hidden_states else None
        return BaseModelOutputWithPast(given(x), cache, states)  # type: ignore[arg-type]


class HymbaForCausalLM(HymbaPreTrainedModel, GenerationMixin):
    """Hymba with its language-model head, tied to the embeddings in official checkpoints."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__(config)
        self.model = HymbaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: HymbaCache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits [B, T, vocabulary], float32 or wider, and with ``labels`` the mean next-token cross-entropy.

        ``labels`` [B, T] hold -100 where a token carries no loss; label t is compared with the logits at t - 1.
        ``logits_to_keep`` asks for the logits of the last so many tokens only; 0 means all. The other arguments are
        those of ``HymbaModel.forward``.
        """
        if use_cache is None and labels is not None:
            use_cache = False
        output = self.model(input_ids, attention_mask, past_key_values, use_cache, output_hidden_states)
        logits_BTV = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
        loss = None
        if labels is not None:
            loss = next_token_loss(logits_BTV, labels)
        result = CausalLMOutputWithPast(loss, logits_BTV, output.past_key_values, output.hidden_states)  # type: ignore[arg-type]
        return result.to_tuple() if return_dict is False else result

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: HymbaCache | None = None,
        attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 1,
        **_: object,  # ``generate`` passes on all it knows, positions among it
    ) -> dict[str, object]:
        """The arguments of the next ``forward``: only the tokens that the cache has not seen."""
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "output_hidden_states": output_hidden_states,
            "logits_to_keep": logits_to_keep or 0,
        }


class HymbaLayer(GradientCheckpointingLayer):
    """``x += mixer(norm(x)); x += mlp(norm(x))``."""

    def __init__(self, config: HymbaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config)
        self.mamba = HymbaMixer(config, layer)
        self.pre_moe_layernorm = RMSNorm(config.hidden_size, config)
        self.moe = HymbaExperts(config)

    def forward(
        self,
        x_BTE: torch.Tensor,
        shared: KeysValues | None,
        rows: Rows,
        rotary: KeysValues,
        cache: LayerCache | None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """The layer's output, and the keys and values it attended to, for the layers that share them."""
        mixed, keys_values = self.mamba(self.input_layernorm(x_BTE), shared, rows, rotary, cache)
        x_BTE = x_BTE + mixed
        return x_BTE + self.moe(self.pre_moe_layernorm(x_BTE), rows.spared), keys_values


class HymbaExperts(nn.Module):
    """The feed-forward part; the official layout numbers its one expert."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList([HymbaMLP(config)])

    def forward(self, x_BTE: torch.Tensor, spared: int = 0) -> torch.Tensor:
        """[B, T, E] to [B, T, E]; adapters leave the first ``spared`` tokens alone."""
        return self.experts[0](x_BTE, spared)


class HymbaMLP(nn.Module):
    """``down(SiLU(gate x) * up x)``."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTE: torch.Tensor, spared: int = 0) -> torch.Tensor:
        """[B, T, E] to [B, T, E]; adapters leave the first ``spared`` tokens alone."""
        gated = F.silu(project(self.gate_proj, x_BTE, spared)) * project(self.up_proj, x_BTE, spared)
        return project(self.down_proj, gated, spared)


class _Packing:
    """Moves the real tokens of each row to its front, in order, so that padding only ever follows."""

    def __init__(self, attention_mask_BT: torch.Tensor) -> None:
        real = attention_mask_BT.bool()
        self.counts_B = real.sum(dim=-1)
        self.order_BT = torch.argsort(~real, dim=-1, stable=True, descending=False)
        self.inverse_BT = torch.argsort(self.order_BT, dim=-1)

    def pack(self, x_BT: torch.Tensor) -> torch.Tensor:
        return x_BT.gather(1, self.order_BT)

    def unpack(self, x_BTE: torch.Tensor) -> torch.Tensor:
        return x_BTE.gather(1, self.inverse_BT[..., None].expand_as(x_BTE))


# Whoever imports this module first triggers the hook in `nlrl_backbones` while the class above does not exist yet.
AutoModelForCausalLM.register(HymbaConfig, HymbaForCausalLM, exist_ok=True)
