"""The vLLM plugin: tells vLLM about every backbone of the registry (entry point group ``vllm.general_plugins``).

vLLM calls ``register`` in each of its processes, sometimes twice, before it knows whether it needs us; so it is
idempotent and imports no model. A checkpoint's ``auto_map`` is never followed: no remote code runs.
"""

import importlib
import logging
import sys

import wrapt

from nlrl_backbones import BACKBONES
from nlrl_backbones.common.vllm_compat import SUPPORTED_TEXT, supported
from nlrl_backbones.common.vllm_tied import let_tied_heads_follow

logger = logging.getLogger(__name__)

_SETTINGS = {"BiMambaForCausalLM": "nlrl_backbones.bimamba.vllm_settings:BiMambaSettings"}
"""Hooks that vLLM runs on an engine's settings, by architecture. Hybrids get theirs without asking."""


def register() -> None:
    """Register configurations and served models of all backbones with transformers and vLLM."""
    import vllm
    from transformers import AutoConfig
    from vllm.model_executor.models import ModelRegistry

    if not supported(vllm.__version__):
        logger.warning(
            "nlrl's backbones are written for vllm%s and may fail under the installed %s: install a supported vLLM.",
            SUPPORTED_TEXT,
            vllm.__version__,
        )
    known = set(ModelRegistry.get_supported_archs())
    for backbone in BACKBONES.values():
        module, _, name = backbone.config.partition(":")
        if module:
            AutoConfig.register(backbone.model_type, getattr(importlib.import_module(module), name), exist_ok=True)
        if backbone.vllm_model and backbone.architecture not in known:
            ModelRegistry.register_model(backbone.architecture, backbone.vllm_model)
    _register_settings()
    wrapt.register_post_import_hook(let_tied_heads_follow, "vllm.model_executor.layers.vocab_parallel_embedding")
    _let_llvmlite_be_scanned()


def _let_llvmlite_be_scanned() -> None:
    """Keep vLLM's start on a CPU from failing where numba was imported first.

    vLLM 0.32 looks into the ``__dict__`` of every object of every loaded module; llvmlite's handle of its library,
    which numba loads, answers any attribute with a wrapped function. For this one it gets an empty dictionary.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None and hasattr(ffi, "lib"):
        ffi.lib._fntab["__dict__"] = {}


def _register_settings() -> None:
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for architecture, reference in _SETTINGS.items():
        module, _, name = reference.partition(":")
        MODELS_CONFIG_MAP.setdefault(architecture, getattr(importlib.import_module(module), name))
