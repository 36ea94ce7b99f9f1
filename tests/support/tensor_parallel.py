"""One of two processes that serve models together: run by `torch.distributed.run`, asked by test_tensor_parallel.py.

    python -m torch.distributed.run --nproc-per-node 2 tests/support/tensor_parallel.py JOBS RESULT

JOBS is a JSON list of {"name", "folder", "prompts", "steps"}; rank 0 writes to RESULT, by name, the greedy token ids,
or the sentence with which a model refused to be split. Importing vLLM takes most of the time, so all models share it.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from served import greedy


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Token ids of one model on both processes, or why it does not start."""
    from vllm import LLM

    try:
        llm = LLM(
            job["folder"], tensor_parallel_size=2, distributed_executor_backend="external_launcher", seed=0,
            skip_tokenizer_init=True, enforce_eager=True, dtype="float32", max_model_len=128, max_num_seqs=8,
            block_size=32, max_num_batched_tokens=32, load_format="safetensors", disable_log_stats=True,
        )  # fmt: skip
    except ValueError as error:
        return {"refused": str(error)}
    except Exception:
        return {"failed": traceback.format_exc()}
    return {"ids": greedy(llm, job["prompts"], job["steps"])}


def main() -> None:
    """Answer every job; the last model of all keeps the groups alive for the others."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CPU_KVCACHE_SPACE="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    from nlrl_backbones.vllm_plugin import register

    register()
    jobs, result = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    answers = {job["name"]: answer(job) for job in jobs}
    if os.environ["RANK"] == "0":
        result.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
