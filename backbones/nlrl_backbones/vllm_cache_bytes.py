"""How much cache memory one sequence holds under vLLM, by vLLM's own block manager; no weights and no GPU are needed.

    python -m nlrl_backbones.vllm_cache_bytes hymba-1.5b llama-3.2-3b --tokens 8192
    python -m nlrl_backbones.vllm_cache_bytes DIR                                      (a folder with config.json)

The model is built without storage, vLLM groups its layers and cuts the pages, and vLLM's scheduler takes one request
through its prompt and on to the last token. Counted are the blocks that the request holds then; a block is charged
with all the pool gives up for it, padding included. On a CPU the figures are those of a CUDA device as long as a page
of attention outweighs a layer's state, as in bfloat16 Hymba, whose convolution states alone differ between the two.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlrl_backbones.shapes import SHAPES, write_shape

_DECODED = 260
"""Last tokens of the sequence that are decoded one by one: more than two blocks, so that every phase of one occurs."""


@dataclass(frozen=True)
class GroupUse:
    """Layers that share block numbers, and the blocks that one sequence holds of them."""

    kind: str
    layers: int
    block_size: int
    blocks: int


@dataclass(frozen=True)
class CacheUse:
    """What one sequence holds at its last token.

    Attributes:
        tokens: its length.
        weight_bytes: all parameters, tied ones once.
        page_bytes: a block of one layer.
        block_bytes: a block of the pool: a page of each layer of the largest group.
        groups: in vLLM's order.
        highest_blocks: the most it held while decoding: a scan's state is copied from block to block.
        prefill_blocks: the most it held while its prompt was computed.
    """

    tokens: int
    weight_bytes: int
    page_bytes: int
    block_bytes: int
    groups: tuple[GroupUse, ...]
    highest_blocks: int
    prefill_blocks: int

    @property
    def blocks(self) -> int:
        """Blocks held at the last token, of all groups."""
        return sum(group.blocks for group in self.groups)

    @property
    def bytes(self) -> int:
        """Bytes held at the last token."""
        return self.blocks * self.block_bytes


def measure(folder: Path, tokens: int, **engine: Any) -> CacheUse:
    """The cache use of the model whose ``config.json`` is in the folder, for a sequence of so many tokens.

    Args:
        folder: needs no weights.
        tokens: length of the sequence; its last 260 tokens, or half of it, are decoded.
        engine: vLLM's engine arguments; bfloat16, steps of 2,048 tokens and pages as on a CUDA device when not given.
    """
    from nlrl_backbones.vllm_plugin import register

    register()
    from vllm.engine.arg_utils import EngineArgs

    fixed = {"model": str(folder), "skip_tokenizer_init": True, "enforce_eager": True, "load_format": "dummy"}
    chosen = {
        "dtype": "bfloat16",
        "block_size": 16,
        "max_num_batched_tokens": 2048,
        "max_model_len": tokens,
        "mamba_ssm_cache_dtype": "float32",
    }
    vllm_config = EngineArgs(**(chosen | engine | fixed)).create_engine_config()
    with _parallel_groups(vllm_config):
        weight_bytes, specs = _build(vllm_config)
    return _follow_one_request(vllm_config, specs, tokens, weight_bytes)


@contextmanager
def _parallel_groups(vllm_config: Any) -> Iterator[None]:
    """Process groups as vLLM wants them, of this process alone; those of a running engine are used and left."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state

    if parallel_state.model_parallel_is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(vllm_config):
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        parallel_state.ensure_model_parallel_initialized(1, 1)
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()


def _build(vllm_config: Any) -> tuple[int, dict[str, Any]]:
    """Bytes of the weights, and what each layer asks of the cache."""
    import torch
    from vllm.config import get_layers_from_vllm_config, set_current_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import set_default_torch_dtype

    with set_current_vllm_config(vllm_config):
        with set_default_torch_dtype(vllm_config.model_config.dtype), torch.device("meta"):
            model = initialize_model(vllm_config)
        current_platform.update_block_size_for_backend(vllm_config)
        layers: dict[str, Any] = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
        specs = {
            name: layer.get_kv_cache_spec(vllm_config)
            for name, layer in layers.items()
            if getattr(layer, "kv_sharing_target_layer_name", None) is None
        }
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return weight_bytes, {name: spec for name, spec in specs.items() if spec is not None}


def _follow_one_request(vllm_config: Any, specs: dict[str, Any], tokens: int, weight_bytes: int) -> CacheUse:
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.structured_output import StructuredOutputManager

    vllm_config.cache_config.kv_cache_layout = "LBHNC"  # that of CPUs; the blocks do not depend on it
    (cache_config,) = kv_cache_utils.get_kv_cache_configs(vllm_config, [specs], [64 << 30])
    # As vLLM's engine does between the two.
    vllm_config.cache_config.block_size = min(group.kv_cache_spec.block_size for group in cache_config.kv_cache_groups)
    block_size, hash_block_size = kv_cache_utils.resolve_kv_cache_block_sizes(cache_config, vllm_config)
    cache_config.hash_block_size = hash_block_size
    cache_config.cache_hit_alignment_tokens = kv_cache_utils.resolve_cache_hit_alignment_tokens(
        cache_config, vllm_config, block_size, hash_block_size
    )
    vllm_config.cache_config.num_gpu_blocks = cache_config.num_blocks
    scheduler = Scheduler(
        vllm_config, cache_config, StructuredOutputManager(vllm_config), block_size, hash_block_size=hash_block_size
    )
    prompt = tokens - min(_DECODED, tokens // 2)
    request = _request(vllm_config, prompt, tokens, hash_block_size)
    scheduler.add_request(request)
    managers = scheduler.kv_cache_manager.coordinator.single_type_managers
    prefill, highest, groups = 0, 0, ()
    while request.num_tokens < tokens:
        decoding = request.num_tokens > prompt
        step = scheduler.schedule()
        groups = groups_of(cache_config, managers, "0")
        held = sum(group.blocks for group in groups)
        prefill, highest = max(prefill, 0 if decoding else held), max(highest, held if decoding else 0)
        sampled = [[1] if request.num_computed_tokens >= request.num_tokens else []]
        scheduler.update_from_output(step, ModelRunnerOutput(["0"], {"0": 0}, sampled))
    return CacheUse(
        tokens=tokens,
        weight_bytes=weight_bytes,
        page_bytes=cache_config.kv_cache_groups[0].kv_cache_spec.page_size_bytes,
        block_bytes=bytes_a_block(cache_config),
        groups=groups,
        highest_blocks=highest,
        prefill_blocks=prefill,
    )


def _request(vllm_config: Any, prompt: int, tokens: int, hash_block_size: int) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.request import Request

    hasher = None
    if vllm_config.cache_config.enable_prefix_caching:
        function = get_hash_fn_by_name(vllm_config.cache_config.prefix_caching_hash_algo)
        kv_cache_utils.init_none_hash(function)
        hasher = kv_cache_utils.get_request_block_hasher(hash_block_size, function)
    how = SamplingParams(max_tokens=tokens - prompt, ignore_eos=True)
    return Request("0", [n % 1000 for n in range(prompt)], how, None, block_hasher=hasher)


def groups_of(cache_config: Any, managers: Sequence[Any], request_id: str) -> tuple[GroupUse, ...]:
    """The blocks that a request holds now, by vLLM's groups of layers and their block managers."""
    return tuple(
        GroupUse(
            kind=_kind(group.kv_cache_spec),
            layers=len(group.layer_names),
            block_size=group.kv_cache_spec.block_size,
            blocks=sum(not block.is_null for block in manager.req_to_blocks[request_id]),
        )
        for group, manager in zip(cache_config.kv_cache_groups, managers, strict=True)
    )


def bytes_a_block(cache_config: Any) -> int:
    """What the pool gives up for one block: a page of each layer of the largest group."""
    return cache_config.kv_cache_tensors[0].size // cache_config.num_blocks


def _kind(spec: Any) -> str:
    return {"FullAttentionSpec": "full attention", "SlidingWindowSpec": "window", "MambaSpec": "scan state"}.get(
        type(spec).__name__, type(spec).__name__
    )


def describe(name: str, use: CacheUse) -> list[str]:
    """The lines that the command prints for one model."""
    lines = [f"{name}: weights {use.weight_bytes / 1e9:.3f} GB, one sequence of {use.tokens:,} tokens"]
    kinds = dict.fromkeys((group.kind, group.block_size) for group in use.groups)
    for kind, block_size in kinds:
        groups = [group for group in use.groups if (group.kind, group.block_size) == (kind, block_size)]
        blocks = sum(group.blocks for group in groups)
        layers = "+".join(str(group.layers) for group in groups)
        lines.append(f"  {kind:<15} layers {layers}, {block_size} tokens a block, {blocks} blocks")
    most = f"at most {use.highest_blocks * use.block_bytes / 1e6:.1f} MB while decoding"
    prompt = f"{use.prefill_blocks * use.block_bytes / 1e6:.1f} MB in the prompt's steps"
    lines.append(f"  page {use.page_bytes:,} bytes a layer, block {use.block_bytes:,} bytes")
    lines.append(f"  {use.blocks} blocks = {use.bytes / 1e6:.1f} MB held ({most}, {prompt})")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line names and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help=f"folders with config.json, or shapes: {', '.join(SHAPES)}")
    parser.add_argument("--tokens", type=int, default=8192, help="length of the sequence")
    parser.add_argument("--engine", type=json.loads, default={}, metavar="JSON", help="vLLM's engine arguments")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    for model in chosen.models:
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_shape(model, Path(scratch)) if model in SHAPES else Path(model)
            print("\n".join(describe(model, measure(folder, chosen.tokens, **chosen.engine))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
