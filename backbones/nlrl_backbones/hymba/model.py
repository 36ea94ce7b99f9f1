"""Hymba for transformers: training, loss, and generation with a cache. Read from the top: model, layer, mixer, cache.

Source: Dong et al. 2024, arXiv 2411.13676, section 2; shapes, parameter names and initialisation are those of the
official checkpoint nvidia/Hymba-1.5B-Base. One deviation: in cached decoding the official code attends to one real
token fewer than in a full pass; here both see the same window, so cached and uncached generation agree.

M learned meta tokens stand in front of every sequence at positions 0..M-1; real tokens count from M. Masks go by
position, so rows may be padded on either side and any number of tokens may follow on a filled cache.

Axes: B batch, T tokens of this call (meta tokens included inside the model), S cached and new tokens, E model width,
H heads, D key width, V value width, C scan channels (= H V), N scan states, K convolution width, R dt rank.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from nlrl_backbones.hymba.cache import HymbaCache, LayerCache, Rows
from nlrl_backbones.hymba.config import HymbaConfig
from nlrl_kernels import selective_scan

KeysValues = tuple[torch.Tensor, torch.Tensor]


class RMSNorm(nn.RMSNorm):
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last axis."""

    def __init__(self, width: int, config: HymbaConfig) -> None:
        super().__init__(width, eps=config.rms_norm_eps)


class HymbaPreTrainedModel(PreTrainedModel):
    """What transformers asks of every Hymba class: configuration, initialisation, what may be split or checkpointed."""

    config_class = HymbaConfig
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
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


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
        rotary = _rotary_table(rows.positions_BT, self.config, x.dtype)

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
            loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
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
        return x_BTE + self.moe(self.pre_moe_layernorm(x_BTE)), keys_values


class HymbaExperts(nn.Module):
    """The feed-forward part; the official layout numbers its one expert."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList([HymbaMLP(config)])

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        """[B, T, E] to [B, T, E]."""
        return self.experts[0](x_BTE)


class HymbaMLP(nn.Module):
    """``down(SiLU(gate x) * up x)``."""

    def __init__(self, config: HymbaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTE: torch.Tensor) -> torch.Tensor:
        """[B, T, E] to [B, T, E]."""
        return self.down_proj(F.silu(self.gate_proj(x_BTE)) * self.up_proj(x_BTE))


class HymbaMixer(nn.Module):
    """Attention heads and scan channels on the same input: one projection in, one out, their normed mean between.

    The rows of ``in_proj`` are query, key, value, scan input, scan gate; a layer that reads another layer's keys and
    values has no key and value rows. Parameter names with an index follow the official file.
    """

    def __init__(self, config: HymbaConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.window = config.window(layer)
        self.is_consumer = config.is_consumer(layer)
        inner, rank, states = config.inner_size, config.mamba_dt_rank, config.mamba_d_state
        kv_heads = 0 if self.is_consumer else config.num_key_value_heads
        self.split = [
            config.num_attention_heads * config.key_head_dim,
            kv_heads * config.key_head_dim,
            kv_heads * config.value_head_dim,
            inner,
            inner,
        ]
        self.in_proj = nn.Linear(config.hidden_size, sum(self.split), bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.mamba_d_conv, groups=inner)
        self.x_proj = nn.ModuleList([nn.Linear(inner, rank + 2 * states, bias=False)])
        self.dt_proj = nn.ModuleList([nn.Linear(rank, inner)])
        self.A_log = nn.ParameterList([nn.Parameter(torch.empty(inner, states))])
        self.D = nn.ParameterList([nn.Parameter(torch.empty(inner))])
        self.dt_layernorm = RMSNorm(rank, config)
        self.B_layernorm = RMSNorm(states, config)
        self.C_layernorm = RMSNorm(states, config)
        self.pre_avg_layernorm1 = RMSNorm(inner, config)  # attention branch
        self.pre_avg_layernorm2 = RMSNorm(inner, config)  # scan branch
        self.out_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(
        self,
        x_BTE: torch.Tensor,
        shared: KeysValues | None,
        rows: Rows,
        rotary: KeysValues,
        cache: LayerCache | None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """[B, T, E] to [B, T, E], and the keys and values attended to, cached ones included, for the sharers."""
        query, key, value, scan_input_BTC, gate_BTC = self.in_proj(x_BTE).split(self.split, dim=-1)
        q_BHTD = _rotate(self._heads(query, self.config.key_head_dim), *rotary)
        if self.is_consumer:
            assert shared is not None
            keys_values = shared
        else:
            k_BHTD = _rotate(self._heads(key, self.config.key_head_dim), *rotary)
            v_BHTV = self._heads(value, self.config.value_head_dim)
            keys_values = (k_BHTD, v_BHTV) if cache is None else cache.append(k_BHTD, v_BHTV)
        attention_BTC = self._attend(q_BHTD, *keys_values, rows)
        scan_BTC = self._scan(scan_input_BTC, gate_BTC, rows, cache)
        mean_BTC = (self.pre_avg_layernorm1(attention_BTC) + self.pre_avg_layernorm2(scan_BTC)) / 2
        return self.out_proj(mean_BTC), keys_values

    def _heads(self, x_BTC: torch.Tensor, width: int) -> torch.Tensor:
        return x_BTC.unflatten(-1, (-1, width)).transpose(1, 2)

    def _attend(self, q_BHTD: torch.Tensor, k_BGSD: torch.Tensor, v_BGSV: torch.Tensor, rows: Rows) -> torch.Tensor:
        repeats = q_BHTD.shape[1] // k_BGSD.shape[1]  # each key/value head serves a block of query heads
        k_BHSD, v_BHSV = (x.repeat_interleave(repeats, dim=1) for x in (k_BGSD, v_BGSV))
        out_BHTV = F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSV, attn_mask=rows.visible(self.window), scale=self.config.key_head_dim**-0.5
        )
        return out_BHTV.transpose(1, 2).flatten(2)

    def _scan(self, x_BTC: torch.Tensor, gate_BTC: torch.Tensor, rows: Rows, cache: LayerCache | None) -> torch.Tensor:
        u_BTC = self._convolve(x_BTC, rows, cache)
        sizes = [self.config.mamba_dt_rank, self.config.mamba_d_state, self.config.mamba_d_state]
        dt, B, C = self.x_proj[0](u_BTC).split(sizes, dim=-1)
        delta_BTC = F.softplus(self.dt_proj[0](self.dt_layernorm(dt)))
        if rows.padded:  # a step of size 0 leaves the state as it is
            delta_BTC = delta_BTC * rows.real_BT[..., None]
        A_CN = -torch.exp(self.A_log[0].to(torch.promote_types(x_BTC.dtype, torch.float32)))
        start = None if cache is None else cache.scan_BCN
        y_BTC, final_BCN = selective_scan(
            u_BTC, delta_BTC, A_CN, self.B_layernorm(B), self.C_layernorm(C), self.D[0], gate_BTC, start
        )
        if cache is not None:
            cache.scan_BCN = final_BCN
        return y_BTC

    def _convolve(self, x_BTC: torch.Tensor, rows: Rows, cache: LayerCache | None) -> torch.Tensor:
        """SiLU of the causal depthwise convolution, as a sum of shifted inputs: no transposes, cheap backward."""
        past = self.config.mamba_d_conv - 1
        if cache is None or cache.conv_BKC is None:
            raw_BTC = F.pad(x_BTC, (0, 0, past, 0))
        else:
            raw_BTC = torch.cat([cache.conv_BKC, x_BTC], dim=1)
        if cache is not None:
            cache.conv_BKC = rows.last_real(raw_BTC, past)
        length = x_BTC.shape[1]
        taps = self.conv1d.weight[:, 0].unbind(dim=-1)
        y_BTC = self.conv1d.bias + sum(tap * raw_BTC[:, k : k + length] for k, tap in enumerate(taps))
        return F.silu(y_BTC)


def _rotary_table(positions_BT: torch.Tensor, config: HymbaConfig, dtype: torch.dtype) -> KeysValues:
    """Cosines and sines [B, 1, T, D] of the half-split rotation (Su et al. 2021, arXiv 2104.09864)."""
    wide = torch.promote_types(dtype, torch.float32)
    exponents = torch.arange(0, config.key_head_dim, 2, dtype=wide, device=positions_BT.device) / config.key_head_dim
    angles = positions_BT[:, None, :, None].to(wide) * config.rope_base**-exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x_BHTD: torch.Tensor, cos_B1TD: torch.Tensor, sin_B1TD: torch.Tensor) -> torch.Tensor:
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_B1TD + torch.cat([-second, first], dim=-1) * sin_B1TD


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
