"""What ``check_gpu.py`` runs: each part checks or times one thing and returns its figures as a dict.

"passed" in a dict says whether its figures are good.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "backbones" / "golden_hymba"
CONTINUED = (0, 2, 4, 6)
STEPS = 24
FP32_TOLERANCE = 2e-4
"""On prompt log-probabilities; the official code's own float32 differs from its float64 by 4e-5."""


def make_engine(folder: Path, graphs: str, dtype: str, **settings: Any) -> Any:
    """An engine without tokenizer; its cache has a fixed size, so that several fit on one GPU."""
    from vllm import LLM

    from nlrl.serving import engine_args
    from nlrl_backbones.vllm_plugin import register

    register()
    fixed = {"skip_tokenizer_init": True, "dtype": dtype, "disable_log_stats": True, "kv_cache_memory_bytes": 4 << 30}
    return LLM(**(engine_args(folder, "cuda", graphs=graphs) | fixed | settings))  # type: ignore[arg-type]


def generate(llm: Any, prompts: list[list[int]], steps: int, **sampling: Any) -> list[Any]:
    """The outputs for token ids, greedy unless told otherwise."""
    from vllm import SamplingParams

    greedy = {"temperature": 0, "max_tokens": steps, "detokenize": False, "ignore_eos": True}
    how = SamplingParams(**(greedy | sampling))  # type: ignore[arg-type]
    return llm.generate([{"prompt_token_ids": ids} for ids in prompts], how, use_tqdm=False)


def continuations(outputs: list[Any]) -> list[list[int]]:
    """Generated ids of each output."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def logprob_differences(llm: Any, prompts: list[list[int]], expected: list[list[float]]) -> tuple[float, float]:
    """Largest and mean absolute difference of the prompts' token log-probabilities."""
    differences = [
        abs(step[token].logprob - value)
        for output, ids, values in zip(generate(llm, prompts, 1, prompt_logprobs=0), prompts, expected, strict=True)
        for step, token, value in zip(output.prompt_logprobs[1:], ids[1:], values, strict=True)
    ]
    return max(differences), sum(differences) / len(differences)


def equal_tokens(found: list[list[int]], expected: list[list[int]]) -> str:
    """How many generated tokens agree, row by row up to the first that does not, as "n / all"."""
    agree = 0
    for row, reference in zip(found, expected, strict=True):
        for token, wanted in zip(row, reference, strict=True):
            if token != wanted:
                break
            agree += 1
    return f"{agree} / {sum(len(row) for row in expected)}"


def model_only(source: Path) -> Path:
    """A copy of a model folder without other safetensors files, all of which vLLM would read."""
    folder = Path(tempfile.mkdtemp())
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, folder / name)
    return folder


def part_kernels() -> dict[str, Any]:
    """The kernel tests on the GPU."""
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    tail = (done.stdout + done.stderr)[-3000:]
    if done.returncode:
        print(tail, flush=True)
    return {"passed": done.returncode == 0, "summary": done.stdout.strip().splitlines()[-1:] or tail}


def part_golden(graphs: str) -> dict[str, Any]:
    """The official code's numbers in float32: mixed batches, prefix cache, single prompts, reload of weights."""
    from safetensors.torch import load_file, save_file

    cases = load_file(GOLDEN / "cases.safetensors")
    folder = model_only(GOLDEN)
    prompts = [cases[f"prompt.{k}.input_ids"].tolist() for k in range(8)]
    references = [cases[f"prompt.{k}.logits_f64"].log_softmax(-1) for k in range(8)]
    expected = [
        [rows[i, token].item() for i, token in enumerate(ids[1:])]
        for rows, ids in zip(references, prompts, strict=True)
    ]
    wanted = [cases[f"prompt.{k}.greedy_recompute_ids"].tolist() for k in CONTINUED]
    started = time.time()
    llm = make_engine(folder, graphs, "float32", max_model_len=128, max_num_seqs=8, max_num_batched_tokens=16)
    figures: dict[str, Any] = {"start_s": round(time.time() - started, 1)}

    def continued(rows: list[list[int]]) -> str:
        return equal_tokens([rows[k] for k in CONTINUED], wanted)

    figures["mixed"] = continued(continuations(generate(llm, prompts, STEPS)))
    cached = generate(llm, prompts, STEPS)
    figures["from_cache"] = continued(continuations(cached))
    figures["cached_tokens"] = sum(output.num_cached_tokens or 0 for output in cached)
    figures["alone"] = continued([continuations(generate(llm, [ids], STEPS))[0] for ids in prompts])
    figures["logprob_max"], figures["logprob_mean"] = logprob_differences(llm, prompts, expected)

    weights = load_file(folder / "model.safetensors")
    weights["model.memory_tokens"] = weights["model.memory_tokens"].flip(0).contiguous()
    moved = model_only(folder)
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(moved)})
    llm.reset_prefix_cache()
    short = [prompts[k] for k in CONTINUED]
    figures["reloaded"] = equal_tokens(continuations(generate(llm, short, STEPS)), transformers_greedy(moved, short))
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
    llm.reset_prefix_cache()
    figures["reloaded_back"] = continued(continuations(generate(llm, prompts, STEPS)))
    full = f"{len(CONTINUED) * STEPS} / {len(CONTINUED) * STEPS}"
    counts = [figures[name] for name in ("mixed", "from_cache", "alone", "reloaded", "reloaded_back")]
    figures["passed"] = counts == [full] * 5 and figures["logprob_max"] < FP32_TOLERANCE
    return figures


def transformers_greedy(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations by the transformers model, on the CPU in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    import nlrl_backbones  # noqa: F401  makes Hymba known to transformers

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    rows = []
    for ids in prompts:
        found = model.generate(torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False)
        rows.append(found[0, len(ids) :].tolist())
    return rows


def part_model(model: Path, reference: Path, dtype: str) -> dict[str, Any]:
    """A model against float32 log-probabilities computed on a CPU: 200 rows at once, prefix cache on, graphs on."""
    stored = json.loads(reference.read_text())
    prompts, expected, wanted = stored["prompts"], stored["logprobs"], stored["greedy"]
    started = time.time()
    folder = model_only(model)
    llm = make_engine(folder, "full_and_piecewise", dtype, max_num_batched_tokens=1024)
    figures: dict[str, Any] = {"start_s": round(time.time() - started, 1)}
    figures["logprob_max"], figures["logprob_mean"] = logprob_differences(llm, prompts, expected)
    repeat = max(1, 200 // len(prompts))
    for name in ("batch", "from_cache"):
        found = continuations(generate(llm, prompts * repeat, len(wanted[0])))
        figures[name] = equal_tokens(found, wanted * repeat)
    if dtype == "float32":
        agree, total = (int(number) for number in figures["batch"].split(" / "))
        figures["passed"] = figures["logprob_max"] < 5 * FP32_TOLERANCE and agree >= 0.98 * total
    else:
        figures["passed"] = figures["logprob_mean"] < 0.1
    return figures


def part_speed(model: Path, dtype: str, graphs: str) -> dict[str, Any]:
    """Tokens per second: prefill of long prompts, decode of 1, 64 and 256 short ones; second run of each."""
    import torch

    config = json.loads((model / "config.json").read_text())
    longest = min(1024, config.get("max_position_embeddings", 1024)) - 8
    llm = make_engine(
        model_only(model), graphs, dtype, max_model_len=longest + 8, enable_prefix_caching=False,
        max_num_batched_tokens=16384, kv_cache_memory_bytes=16 << 30,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return torch.randint(3, config["vocab_size"] - 1, (count, length), generator=draw).tolist()

    def rate(count: int, length: int, steps: int, tokens: int) -> int:
        seconds = 0.0
        for _ in range(2):
            ids = prompts(count, length)
            began = time.time()
            generate(llm, ids, steps)
            seconds = time.time() - began
        return round(tokens / seconds)

    figures: dict[str, Any] = {"prefill_tokens_per_s": rate(256, longest, 1, 256 * longest)}
    for batch in (1, 64, 256):
        figures[f"decode_{batch}_tokens_per_s"] = rate(batch, 16, 256, batch * 256)
    figures["passed"] = True
    return figures


def make_reference(model: Path, reference: Path) -> None:
    """Write prompts with the float32 log-probabilities and greedy continuations of the transformers model."""
    import torch
    from transformers import AutoModelForCausalLM

    import nlrl_backbones  # noqa: F401  makes Hymba known to transformers

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded.generation_config.eos_token_id = None
    vocabulary, longest = loaded.config.vocab_size, loaded.config.max_position_embeddings - 40
    draw = torch.Generator().manual_seed(5)
    lengths = [min(n, longest) for n in (1, 2, 5, 16, 31, 32, 33, 64, 100, 129, 200, 257, 300, 400)]
    prompts = [torch.randint(3, vocabulary - 1, (n,), generator=draw).tolist() for n in lengths]
    logprobs, greedy = [], []
    with torch.no_grad():
        for ids in prompts:
            rows = loaded(torch.tensor([ids])).logits[0].float().log_softmax(-1)
            logprobs.append([rows[i, token].item() for i, token in enumerate(ids[1:])])
            found = loaded.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False)
            greedy.append(found[0, len(ids) :].tolist())
    reference.write_text(json.dumps({"prompts": prompts, "logprobs": logprobs, "greedy": greedy}))
    print(f"wrote {reference}")
