"""Which vLLM the served backbones are written for, and a check that says so in one sentence.

vLLM promises no stable interface to models outside its tree, so the supported releases are a closed range and the
handful of signatures we build on are compared before a model is made.
"""

import inspect
import re
from typing import Any, TypeVar

SUPPORTED = ((0, 32), (0, 34))  # from the first, up to but not including the second
SUPPORTED_TEXT = ">=0.32,<0.34"


def supported(version: str) -> bool:
    """Whether a vLLM version string such as "0.32.0" or "0.33.1+cpu" lies in the supported range."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and SUPPORTED[0] <= (int(match[1]), int(match[2])) < SUPPORTED[1]


def check_signatures() -> None:
    """Whether the installed vLLM is one that the backbones are written for, by its version and by what they call.

    Raises:
        RuntimeError: another version, or the first signature that lacks a parameter.
    """
    import vllm

    if not supported(vllm.__version__):
        raise RuntimeError(
            f"nlrl's backbones run in vllm{SUPPORTED_TEXT}, not in {vllm.__version__}: install one of these."
        )
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.mamba.abstract import MambaBase
    from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
    from vllm.v1.attention.backend import AttentionMetadataBuilder

    needed = {
        Attention.__init__: ("head_size_v", "per_layer_sliding_window", "kv_sharing_target_layer_name", "attn_backend"),
        MambaBase.bind_kv_cache: ("kv_cache",),
        MambaBase.get_kv_cache_spec: ("vllm_config",),
        AutoWeightsLoader.load_weights: ("weights", "mapper"),
        WeightsMapper.__init__: ("orig_to_new_substr", "orig_to_new_stacked"),
        AttentionMetadataBuilder.build: ("common_prefix_len", "common_attn_metadata", "fast_build"),
    }
    for function, names in needed.items():
        missing = [name for name in names if name not in inspect.signature(function).parameters]
        if missing:
            raise RuntimeError(
                f"The installed vLLM's {function.__qualname__} lacks {', '.join(missing)}: "
                f"install vllm{SUPPORTED_TEXT} to serve nlrl's backbones."
            )


Config = TypeVar("Config")


def own_config(vllm_config: Any, kind: type[Config]) -> Config:
    """The configuration of the model that vLLM is about to make, of a backbone's own class.

    Raises:
        TypeError: another class read config.json, which happens if the plugin did not register first.
    """
    config = vllm_config.model_config.hf_config
    if not isinstance(config, kind):
        raise TypeError(
            f"config.json was read as {type(config).__name__}, not {kind.__name__}: is nlrl's vLLM plugin installed?"
        )
    return config
