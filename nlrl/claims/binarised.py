"""A full-precision Mamba-2 made binary after its training: what Bi-Mamba's training has to beat."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nlrl.pretrain.models import model_of
from nlrl.pretrain.shapes import SHAPES
from nlrl_backbones.bimamba.linear import LatentLinear
from nlrl_backbones.bimamba.weights import PROJECTIONS

_NAMES = {"backbone.embeddings.": "backbone.embedding."}
"""transformers' names of Mamba-2's tensors -> the official ones, where they differ."""


@torch.no_grad()
def binarised(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The Bi-Mamba nearest to a Mamba-2 of the boxed shape: W becomes sign(W - b) s + b.

    b and s are a column's mean and the mean magnitude of what is left; everything else stays.
    """
    wide = {_renamed(name): tensor for name, tensor in model.state_dict().items()}
    vocabulary = wide["backbone.embedding.weight"].shape[0]
    found = model_of(SHAPES["bimamba"], vocabulary, tokenizer)
    torch.nn.Module.to(found, model.device)
    for name, parameter in found.named_parameters():
        module, _, leaf = name.rpartition(".")
        if module.rpartition(".")[2] not in PROJECTIONS:
            parameter.copy_(wide[name])
            continue
        weight = wide[f"{module}.weight"]
        shift = weight.mean(0, keepdim=True)
        parameter.copy_(
            {"weight": weight - shift, "wscale": (weight - shift).abs().mean(0, True), "wbias": shift}[leaf]
        )
    return found.eval()


def packed_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights as they are served: a bit for a binary weight, 16 bits for every other."""
    binary = {id(module.weight) for module in model.modules() if isinstance(module, LatentLinear)}
    bits = sum(parameter.numel() * (1 if id(parameter) in binary else 16) for parameter in model.parameters())
    return -(-bits // 8)


def _renamed(name: str) -> str:
    for ours, official in _NAMES.items():
        name = name.replace(ours, official)
    return name
