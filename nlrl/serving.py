"""vLLM's arguments for the models in the box, the same for the server and for an engine in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Graphs = Literal["full_and_piecewise", "full_decode_only", "none"]
"""CUDA graphs: whole decode steps and compiled pieces of the rest; whole decode steps alone (no compilation, a quicker
start); or none."""


def engine_args(model_dir: Path | str, device: str, *, graphs: Graphs = "full_and_piecewise") -> dict[str, Any]:
    """Arguments of `vllm.LLM`, `EngineArgs` or, as flags, of its server, for a model folder.

    The recurrent state of a scan stays in float32 whatever the model's dtype: rounding it at every step drifts.

    Args:
        model_dir: folder with config.json and *.safetensors.
        device: "cpu" or "cuda".
        graphs: how CUDA graphs are used; without meaning on a CPU.
    """
    chosen: dict[str, Any] = {
        "model": str(model_dir),
        "max_num_seqs": 256,
        "enable_prefix_caching": True,
        "mamba_ssm_cache_dtype": "float32",
    }
    if device == "cpu":
        # Pages of 32 tokens decode 1.5 times as fast as vLLM's 128; compiling takes 25 s and gains little there.
        return chosen | {"dtype": "float32", "enforce_eager": True, "max_num_batched_tokens": 2048, "block_size": 32}
    if graphs == "none":
        return chosen | {"enforce_eager": True}
    if graphs == "full_decode_only":
        return chosen | {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}
    return chosen | {"compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"}}


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as vLLM's command line writes them."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", json.dumps(value) if isinstance(value, Mapping) else str(value)]
    return flags
