"""The part of ``check_gpu.py`` that compares both ways of serving differential attention, on a random model."""

import tempfile
from pathlib import Path
from typing import Any

from gpu_parts import FP32_TOLERANCE, make_reference, on_cuda, part_model

SIZES = {
    "vocab_size": 512, "hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 3,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
    "lambda_std_dev": 0.4, "initializer_range": 0.05,
}  # fmt: skip
"""Maps of 128 and values of 256, as in the paper's 3B model; two heads share a cached one."""
RUNS = (("auto", "bfloat16"), ("CUSTOM", "float16"), ("CUSTOM", "float32"), ("FLASH_ATTN", "bfloat16"))
"""vLLM's ``attention_backend`` and the dtype: ours unasked and asked for, and the rewrite as stock attention."""


def part_diff(attention: str, dtype: str, batch: int = 256, **sizes: Any) -> dict[str, Any]:
    """A random V1 by one attention backend against float32 log-probabilities computed on a CPU, as ``part_model``.

    The model is the same in every call with the same sizes, so figures of two backends can be put side by side. Ours
    multiplies float32 in float32, and is held to that.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from nlrl_backbones.diff_transformer.config import DiffTransformerConfig

    folder = Path(tempfile.mkdtemp())
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(DiffTransformerConfig(**(SIZES | sizes))).save_pretrained(folder)
    make_reference(folder, folder / "reference.json")
    asked = {} if attention == "auto" else {"attention_backend": attention}
    figures = part_model(folder, folder / "reference.json", dtype, batch, **asked)
    ours = attention == "CUSTOM" or (attention == "auto" and on_cuda())
    figures["passed"] &= (figures["attention"] == "DiffAttentionBackend") is ours
    if ours and dtype == "float32":
        figures["passed"] &= figures["logprob_mean"] < FP32_TOLERANCE
    return figures
