"""Models that are about to be trained: fresh weights of a shape, and what their optimizer and compiler must know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import nlrl_backbones  # noqa: F401  registers the architectures with transformers
from nlrl.pretrain.shapes import SHAPES


def new_model(backbone: str, vocab_size: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of the boxed shape with fresh weights."""
    return model_of(SHAPES[backbone], vocab_size, tokenizer)


def model_of(shape: Mapping[str, Any], vocab_size: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model with fresh weights; `shape` holds "model_type" and its configuration's keys."""
    keys = dict(shape)
    ids = {
        "vocab_size": vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(keys.pop("model_type"), **keys, **ids))
    _spread_time_scales(model)
    normalize(model)
    return model


def normalize(model: PreTrainedModel) -> None:
    """What a model wants before its first step and after each: nGPT's vectors are of unit length again."""
    if (step := getattr(model, "after_optimizer_step", None)) is not None:
        step()


@torch.no_grad()
def _spread_time_scales(model: PreTrainedModel, shortest: float = 1e-3, longest: float = 0.5) -> None:
    """Step-size biases such that softplus of them is log-uniform, as in Mamba (arXiv 2312.00752, section 3.6).

    Hymba's own initialisation leaves them at zero, which forgets within a few tokens; a small model with little data
    does not find its way out of that.
    """
    for name, bias in model.named_parameters():
        if "dt_proj" in name and name.endswith("bias"):
            steps = torch.exp(torch.empty_like(bias).uniform_(math.log(shortest), math.log(longest)))
            bias.copy_(steps + torch.log(-torch.expm1(-steps)))


def decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices only; never on norms, biases, scales, the scan's A, meta tokens; a model may know better."""
    own: Any = getattr(model, "parameter_groups", None)
    if own is not None:
        return own(weight_decay)
    never = ("A_log", "memory_tokens", "wscale", "wbias")
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and not any(word in n for word in never)]
    ids = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def compile_layers(model: PreTrainedModel) -> None:
    """Have torch compile each layer on its own, in place, for training: layers that do the same share the code.

    The whole model in one piece, with lengths of any size, took over a minute (`runs/LOG.md`).
    """
    from torch._dynamo import config

    config.recompile_limit = 64  # Hymba has layers with and without a window, and with keys of their own or another's
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in max(lists, key=len):
        layer.compile(dynamic=True)
