"""What the configuration classes of several backbones check alike."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

_OF_TRANSFORMERS = frozenset(
    {
        "model_type",
        "torch_dtype",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "attn_implementation",
        "experts_implementation",
        "per_layer_config",
        "quantization_config",
    }
)
"""What transformers itself may hand to any configuration besides its own fields."""


def refuse_unknown_keys(
    family: str, keys: Mapping[str, Any], config: type[PretrainedConfig], *, also: Iterable[str] = (),
    named: Iterable[str] = (),
) -> None:  # fmt: skip
    """Raise ``ValueError`` for keys of ``config.json`` that neither transformers nor this class knows.

    Args:
        family: as the sentence names it.
        keys: those that are no fields of the class.
        config: the class; its own fields are named as the known ones.
        also: further keys that pass.
        named: keys that the class takes under other names, for the sentence.
    """
    known = _OF_TRANSFORMERS | set(GenerationConfig().to_dict()) | set(also)
    unknown = sorted(key for key in keys if not key.startswith("_") and key not in known)
    if unknown:
        own = {f.name for f in fields(config) if f.name in config.__annotations__}  # type: ignore[arg-type]
        ours = sorted(own | set(named))
        raise ValueError(f"{family}: unknown configuration keys {unknown}; the known ones are {ours}.")
