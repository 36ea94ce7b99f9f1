"""One model in one engine of vLLM, in this process: every workload in turn, its figures written as they come.

    python -m nlrl_backbones.bench_serve.vllm_measure NAME full|tiny all|goals FILE

It imports what it needs and begins at the first line of its input, which says how many seconds it has: so the next
process may load its modules while this one measures. Prompts are random token ids from a fixed seed; there is no
tokenizer, no file of weights and no network.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nlrl_backbones.bench_serve.models import write_model
from nlrl_backbones.bench_serve.workloads import FULL, TINY, Preset, Workload, chosen


def main(arguments: list[str]) -> None:
    """Measure one model; see the module."""
    name, size, which, file = arguments
    import torch
    import vllm

    limit = float(sys.stdin.readline() or 0)
    began = time.monotonic()
    tiny = size == "tiny"
    preset, path = TINY if tiny else FULL, Path(file)
    workloads = chosen(name, preset, only_goals=which == "goals")
    with tempfile.TemporaryDirectory() as folder:
        llm = make_engine(write_model(name, Path(folder) / name, tiny=tiny), preset, tiny=tiny)
    record: dict[str, Any] = {
        "model": name,
        "machine": machine(),
        "versions": {"vllm": vllm.__version__, "torch": torch.__version__},
        "engine": settings(preset, tiny=tiny) | {"tiny": tiny},
        "start_s": round(time.monotonic() - began, 1),
        "figures": {},
        "left_out": [workload.name for workload in workloads],
    }
    write(record, path)
    record |= held_by_one(llm, preset.cached)
    write(record, path)
    for workload in workloads:
        if time.monotonic() - began + workload.seconds > limit:
            continue
        record["figures"][workload.name] = measured(llm, workload)
        record["left_out"].remove(workload.name)
        write(record, path)
        print(f"{name}: {workload.name}: {json.dumps(record['figures'][workload.name])}", flush=True)


def settings(preset: Preset, *, tiny: bool) -> dict[str, Any]:
    """What every engine gets, whatever the model."""
    chosen: dict[str, Any] = {
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "seed": 0,
        "enable_prefix_caching": False,
        "max_model_len": preset.longest,
        "max_num_seqs": preset.rows,
        "max_num_batched_tokens": preset.step_tokens,
        "mamba_ssm_cache_dtype": "float32",
    }
    if tiny:
        return chosen | {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20}
    return chosen | {
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.9,
        "compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"},
    }


def make_engine(folder: Path, preset: Preset, *, tiny: bool) -> Any:
    """The engine for a folder with a configuration."""
    from vllm import LLM

    from nlrl_backbones.vllm_plugin import register

    register()
    return LLM(model=str(folder), **settings(preset, tiny=tiny))


def machine() -> dict[str, Any]:
    """The GPU by name and by its own number: ratios are of figures from one machine."""
    import platform

    import torch

    if not torch.cuda.is_available():
        return {"gpu": "no GPU", "uuid": platform.node()}
    about = torch.cuda.get_device_properties(0)
    return {"gpu": about.name, "uuid": str(getattr(about, "uuid", platform.node()))}


def held_by_one(llm: Any, context: int) -> dict[str, int]:
    """Bytes of the weights, and of the blocks that one request holds with its second generated token."""
    from nlrl_backbones.vllm_cache_bytes import bytes_a_block, groups_of

    core = llm.llm_engine.engine_core.engine_core
    model = core.model_executor.driver_worker.model_runner.get_model()
    manager = core.scheduler.kv_cache_manager
    cache, managers = manager.kv_cache_config, manager.coordinator.single_type_managers
    llm.llm_engine.add_request("0", prompts(llm, 1, context)[0], sampling(4))
    held = 0
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        for request in core.scheduler.running:
            if request.num_output_tokens >= 2:
                held = held or sum(group.blocks for group in groups_of(cache, managers, request.request_id))
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    return {"weight_bytes": weights, "cache_bytes": held * bytes_a_block(cache), "cached_tokens": context}


def measured(llm: Any, workload: Workload) -> dict[str, Any]:
    """Medians over the repeats, after a short run that compiles what is compiled late; rates in tokens a second."""
    ids = prompts(llm, workload.rows, workload.context)
    seconds_for(llm, ids, min(workload.few, 4), rows=max(1, workload.rows // 8))
    few = [seconds_for(llm, ids, workload.few) for _ in range(workload.repeats)]
    seconds = statistics.median(few)
    found: dict[str, Any] = {"seconds": [round(value, 4) for value in few]}
    if workload.few == 1:
        found["prefill"] = workload.rows * workload.context / seconds
    found["whole"] = 1 / seconds
    if workload.many is not None:
        many = [seconds_for(llm, ids, workload.many) for _ in range(workload.repeats)]
        found["longer"] = [round(value, 4) for value in many]
        more = statistics.median(many) - seconds
        if more > 0:
            found["decode"] = workload.rows * (workload.many - workload.few) / more
    return found


def seconds_for(llm: Any, ids: list[Any], tokens: int, rows: int | None = None) -> float:
    """Seconds until all requests have so many tokens."""
    began = time.monotonic()
    outputs = llm.generate(ids[:rows], sampling(tokens), use_tqdm=False)
    seconds = time.monotonic() - began
    if any(len(output.outputs[0].token_ids) != tokens for output in outputs):
        raise RuntimeError(f"A request ended before its {tokens} tokens: the figure would be of less work.")
    return seconds


def prompts(llm: Any, rows: int, context: int) -> list[dict[str, list[int]]]:
    """Random token ids, the same for every model of one vocabulary."""
    import torch

    draw = torch.Generator().manual_seed(0)
    vocabulary = llm.llm_engine.model_config.get_vocab_size()
    ids = torch.randint(3, vocabulary - 1, (rows, context), generator=draw).tolist()
    return [{"prompt_token_ids": row} for row in ids]


def sampling(tokens: int) -> Any:
    """Greedy, exactly so many tokens."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=tokens, detokenize=False, ignore_eos=True)


def write(record: dict[str, Any], path: Path) -> None:
    """Write the record so that a reader always finds a whole one."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


if __name__ == "__main__":
    main(sys.argv[1:])
