"""Running vLLM engines in a test's own process, and asking them for token ids."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def engines() -> Iterator[Callable[..., Any]]:
    """Gives ``start(folder, **settings)``: an eager float32 engine without tokenizer on a model folder.

    All engines end together when the block is left, for they share the process's groups; so use it in a fixture of
    module scope. Settings are vLLM's engine arguments.
    """
    from nlrl.engine.vllm_setup import prepare_environment

    prepare_environment()
    from vllm import LLM

    from nlrl_backbones.vllm_plugin import register

    register()
    running: list[Any] = []

    def start(folder: Path, **settings: Any) -> Any:
        fixed = {
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "disable_log_stats": True,
            "load_format": "safetensors",
        }
        chosen = {"dtype": "float32", "max_num_seqs": 8, "max_model_len": 128, "block_size": 32} | settings
        running.append(LLM(model=str(folder), **(fixed | chosen)))
        return running[-1]

    try:
        yield start
    finally:
        for llm in running:
            llm.llm_engine.engine_core.shutdown()


def model_only(source: Path, target: Path) -> Path:
    """Copy configuration and weights alone: vLLM would read every safetensors file of a golden folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, target)
    return target


def generate(llm: Any, prompts: list[list[int]], steps: int, **settings: Any) -> list[Any]:
    """vLLM's outputs for token ids, greedy; ``lora_request`` and sampling settings may be given."""
    from vllm import SamplingParams

    lora = {"lora_request": settings.pop("lora_request")} if "lora_request" in settings else {}
    how = SamplingParams(
        **({"temperature": 0, "max_tokens": steps, "detokenize": False, "ignore_eos": True} | settings)
    )
    return llm.generate([{"prompt_token_ids": ids} for ids in prompts], how, use_tqdm=False, **lora)


def greedy(llm: Any, prompts: list[list[int]], steps: int, **settings: Any) -> list[list[int]]:
    """The greedy continuation of each prompt, ``steps`` tokens long."""
    return [list(output.outputs[0].token_ids) for output in generate(llm, prompts, steps, **settings)]


def prompt_logprobs(llm: Any, prompts: list[list[int]], **settings: Any) -> list[list[float]]:
    """Per prompt, the log-probability of each token after the first."""
    outputs = generate(llm, prompts, 1, prompt_logprobs=0, **settings)
    return [
        [step[token].logprob for step, token in zip(out.prompt_logprobs[1:], ids[1:], strict=True)]
        for out, ids in zip(outputs, prompts, strict=True)
    ]
