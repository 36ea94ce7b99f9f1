"""Language-model backbones: one folder each, with a transformers model and the same model served by vLLM.

Importing this package is light (no torch, transformers or vLLM). It makes the backbones known to transformers' auto
classes the moment those are imported, before or after this package, so that
``AutoModelForCausalLM.from_pretrained(folder)`` works without remote code.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

__all__ = ["BACKBONES", "Backbone", "boxed_dir"]


@dataclass(frozen=True)
class Backbone:
    """One architecture; classes are named as "module:Class" and imported on first use.

    Attributes:
        id: name users type.
        model_type: ``model_type`` in ``config.json``.
        architecture: entry of ``architectures`` in ``config.json``, under which vLLM looks the model up.
        config: the transformers configuration class; empty where transformers has its own.
        model: the transformers model class; empty where transformers has its own.
        vllm_model: the model class that vLLM serves; empty where vLLM has its own.
        boxed: folder name of the small checkpoint that ships with the package; empty where none does.
        prompts: prompt set that suits the boxed checkpoint.
        paper: where the architecture was published.
        verified: against what this implementation has been held.
    """

    id: str
    model_type: str
    architecture: str
    config: str
    model: str
    vllm_model: str
    boxed: str
    prompts: str
    paper: str
    verified: str = ""


BACKBONES: dict[str, Backbone] = {
    "hymba": Backbone(
        id="hymba",
        model_type="hymba",
        architecture="HymbaForCausalLM",
        config="nlrl_backbones.hymba.config:HymbaConfig",
        model="nlrl_backbones.hymba.model:HymbaForCausalLM",
        vllm_model="nlrl_backbones.hymba.vllm_model:HymbaForCausalLM",
        boxed="hymba-tiny",
        prompts="compact",
        paper="Dong et al. 2024, Hymba: A Hybrid-head Architecture for Small Language Models, arXiv 2411.13676",
        verified="NVIDIA's code on a tiny random model: logits, hidden states, caches, loss, greedy text",
    ),
    "ngpt": Backbone(
        id="ngpt",
        model_type="ngpt",
        architecture="NGPTForCausalLM",
        config="nlrl_backbones.ngpt.config:NGPTConfig",
        model="nlrl_backbones.ngpt.model:NGPTForCausalLM",
        vllm_model="nlrl_backbones.ngpt.vllm_model:NGPTForCausalLM",
        boxed="",
        prompts="compact",
        paper="Loshchilov et al. 2024, nGPT: Normalized Transformer on the Hypersphere, arXiv 2410.01131",
        verified="NVIDIA's code on tiny random models, nGPT and GPT: logits, hidden states, greedy text, five steps",
    ),
    "diff": Backbone(
        id="diff",
        model_type="diff_transformer",
        architecture="DiffTransformerForCausalLM",
        config="nlrl_backbones.diff_transformer.config:DiffTransformerConfig",
        model="nlrl_backbones.diff_transformer.model:DiffTransformerForCausalLM",
        vllm_model="nlrl_backbones.diff_transformer.vllm_model:DiffTransformerForCausalLM",
        boxed="",
        prompts="compact",
        paper="Ye et al. 2024, Differential Transformer, arXiv 2410.05258",
        verified="Microsoft's attention modules (V1, V2) in tiny random models: logits, hidden states, greedy text",
    ),
    # The same architecture in the layout of transformers, which has configuration and model of its own.
    "diffllama": Backbone(
        id="diffllama",
        model_type="diffllama",
        architecture="DiffLlamaForCausalLM",
        config="",
        model="",
        vllm_model="nlrl_backbones.diff_transformer.vllm_model:DiffLlamaForCausalLM",
        boxed="",
        prompts="full",
        paper="Ye et al. 2024, Differential Transformer, arXiv 2410.05258",
        verified="transformers' DiffLlama on tiny random models: logits, hidden states, gradients, greedy text",
    ),
    "bimamba": Backbone(
        id="bimamba",
        model_type="bimamba",
        architecture="BiMambaForCausalLM",
        config="nlrl_backbones.bimamba.config:BiMambaConfig",
        model="nlrl_backbones.bimamba.model:BiMambaForCausalLM",
        vllm_model="nlrl_backbones.bimamba.vllm_model:BiMambaForCausalLM",
        boxed="",
        prompts="compact",
        paper="Tang et al. 2024, Bi-Mamba: Towards Accurate 1-Bit State Space Models, arXiv 2411.11843",
        verified="the official code on a tiny random model: logits, states, greedy text, a distillation step",
    ),
    # Controls: what every claim is compared with, from the libraries as they are.
    "transformer": Backbone(
        id="transformer",
        model_type="llama",
        architecture="LlamaForCausalLM",
        config="",
        model="",
        vllm_model="",
        boxed="",
        prompts="compact",
        paper="Touvron et al. 2023, LLaMA: Open and Efficient Foundation Language Models, arXiv 2302.13971",
    ),
    "mamba2": Backbone(
        id="mamba2",
        model_type="mamba2",
        architecture="Mamba2ForCausalLM",
        config="",
        model="",
        vllm_model="",
        boxed="",
        prompts="full",
        paper="Dao and Gu 2024, Transformers are SSMs, arXiv 2405.21060",
    ),
}


def boxed_dir(backbone_id: str) -> Path:
    """Folder of the small checkpoint that ships with the backbone.

    Raises:
        ValueError: for an id that is not in ``BACKBONES``, or a backbone without such a checkpoint.
    """
    if backbone_id not in BACKBONES:
        raise ValueError(f"There is no backbone {backbone_id!r}: choose one of {', '.join(sorted(BACKBONES))}.")
    if not BACKBONES[backbone_id].boxed:
        raise ValueError(f"No model of {backbone_id} ships in the box: give a folder or a hub id of one.")
    return Path(__file__).parent / "boxed" / BACKBONES[backbone_id].boxed


_AUTO = "transformers.models.auto.modeling_auto"
_NEEDED = {
    "transformers.modeling_layers": "GradientCheckpointingLayer",
    "transformers.models.llama.modeling_llama": "LlamaForCausalLM",
}
"""Modules that our models import and that import the auto classes themselves, each with a name it has at its end."""


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def _register_configs(auto: ModuleType) -> None:
    for backbone in BACKBONES.values():
        if backbone.config:
            auto.AutoConfig.register(backbone.model_type, _load(backbone.config), exist_ok=True)


def _register_models(imported: ModuleType) -> None:
    """Register every model, except one whose module is being imported right now: it registers itself at its end.

    Nothing yet where one of ``_NEEDED`` is being imported (``from transformers import LlamaForCausalLM`` does that):
    this is called again at its end.
    """
    auto = sys.modules.get(_AUTO)
    unfinished = [m for m, name in _NEEDED.items() if m in sys.modules and not hasattr(sys.modules[m], name)]
    if auto is None or not hasattr(auto, "AutoModelForCausalLM") or unfinished:
        return
    for backbone in BACKBONES.values():
        module, _, name = backbone.model.partition(":")
        if not module:
            continue
        if module in sys.modules and not hasattr(sys.modules[module], name):
            continue
        auto.AutoModelForCausalLM.register(_load(backbone.config), _load(backbone.model), exist_ok=True)


wrapt.register_post_import_hook(_register_configs, "transformers.models.auto.configuration_auto")
for _awaited in (_AUTO, *_NEEDED):
    wrapt.register_post_import_hook(_register_models, _awaited)
