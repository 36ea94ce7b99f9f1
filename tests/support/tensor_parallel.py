"""One of two processes that serve models together; test_tensor_parallel.py starts both.

    python tests/support/tensor_parallel.py RANK PORT JOBS RESULT

JOBS is a JSON list of {"name", "folder", "prompts"}; rank 0 writes to RESULT, by name, 24 greedy token ids a prompt,
or the sentence with which a model refused to be split. Importing vLLM takes most of the time, so all models share it.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from served import greedy

STEPS = 24
_running: list[Any] = []
"""Engines share the process's groups, and one that is collected takes these with it."""


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Token ids of one model on both processes, or why it does not start."""
    from vllm import LLM

    try:
        llm = LLM(
            job["folder"], tensor_parallel_size=2, distributed_executor_backend="external_launcher", seed=0,
            skip_tokenizer_init=True, enforce_eager=True, dtype="float32", max_model_len=64, max_num_seqs=8,
            block_size=32, max_num_batched_tokens=32, load_format="safetensors", disable_log_stats=True,
            kv_cache_memory_bytes=64 << 20,
        )  # fmt: skip
    except ValueError as error:
        return {"refused": str(error)}
    except Exception:
        return {"failed": traceback.format_exc()}
    _running.append(llm)
    return {"ids": greedy(llm, job["prompts"], STEPS)}


def main() -> None:
    """Answer every job."""
    rank, port, jobs, result = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind",
        OMP_NUM_THREADS="1", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
    )  # fmt: skip
    from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

    from nlrl_backbones.vllm_plugin import register

    register()
    # vLLM names the processes' shared memory after this address. Its own choice, env://, is the same for all runs: what
    # a killed one left behind would stop every later one.
    address = f"tcp://127.0.0.1:{port}"
    ExecutorWithExternalLauncher._distributed_args = lambda self: (address, rank, rank)
    answers = {job["name"]: answer(job) for job in json.loads(jobs.read_text())}
    if rank == 0:
        result.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
