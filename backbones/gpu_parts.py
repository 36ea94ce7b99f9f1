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
LENGTHS = (1, 2, 5, 16, 31, 32, 33, 64, 100, 129, 200, 257, 300, 400)
"""Tokens of the prompts of a reference: around the sizes of pages, tiles and windows."""
TF32_TOLERANCE = 1e-2
LEAST_COMPARED = {"float32": 0.8, "float16": 0.25, "bfloat16": 0.25}
"""Share of the decoded tokens that come before a row's first other one. On an H100, TF32 left 428 of 448 equal; in
bfloat16 a row of 32 tokens may part early, where two tokens are about as likely."""
"""On the mean: vLLM's attention and scans in Triton keep ten bits of each factor when they are asked for float32."""
FP32_TOLERANCE = 2e-4
"""On prompt log-probabilities; the official code's own float32 differs from its float64 by 4e-5."""


def on_cuda() -> bool:
    """Whether this machine has the device these parts are for; on a CPU they run small models."""
    import torch

    return torch.cuda.is_available()


def make_engine(folder: Path, graphs: str, dtype: str, **settings: Any) -> Any:
    """An engine without tokenizer; its cache has a fixed size, so that several fit on one GPU."""
    from vllm import LLM

    from nlrl.serving import engine_args
    from nlrl_backbones.vllm_plugin import register

    register()
    device, cache = ("cuda", 2 << 30) if on_cuda() else ("cpu", 256 << 20)
    fixed = {"skip_tokenizer_init": True, "dtype": dtype, "disable_log_stats": True, "kv_cache_memory_bytes": cache}
    if on_cuda():  # with a cache of fixed size, only the share that must be free at the start
        fixed["gpu_memory_utilization"] = 0.08
    return LLM(**(engine_args(folder, device, graphs=graphs) | fixed | settings))  # type: ignore[arg-type]


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
    for name in ("model.memory_tokens", "model.embed_tokens.weight"):
        weights[name] = weights[name].flip(0).contiguous()
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


def part_model(model: Path, reference: Path, dtype: str, batch: int = 256, **settings: Any) -> dict[str, Any]:
    """A model against float32 log-probabilities computed on a CPU: of prompts, and of decoding with batch 1 and 256.

    16 bits run with CUDA graphs, float32 without. A decoded token is compared as long as all before it agree.
    Settings are vLLM's engine arguments.
    """
    stored = json.loads(reference.read_text())
    prompts, wanted = stored["prompts"], stored["greedy"]
    started = time.time()
    graphs = "none" if dtype == "float32" else "full_and_piecewise"
    longest = max(map(len, prompts)) + len(wanted[0]) + 1
    llm = make_engine(model_only(model), graphs, dtype, max_num_batched_tokens=1024, max_model_len=longest, **settings)
    figures: dict[str, Any] = {"start_s": round(time.time() - started, 1)}
    figures["logprob_max"], figures["logprob_mean"] = logprob_differences(llm, prompts, stored["logprobs"])
    figures["noise_mean"] = stored["noise"][dtype]
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context.values()
    kinds = {layer.get_attn_backend().__name__ for layer in layers if hasattr(layer, "get_attn_backend")}
    figures["attention"] = ", ".join(sorted(kinds))
    rows = [k % len(prompts) for k in range(batch)]
    batches = {"batch_1": [[k] for k in range(len(prompts))], "batch_256": [rows], "from_cache": [rows]}
    for name, calls in batches.items():
        outputs = [generate(llm, [prompts[k] for k in call], len(wanted[0]), logprobs=0) for call in calls]
        order = [k for call in calls for k in call]
        flat = [output for call in outputs for output in call]
        figures[name] = equal_tokens(continuations(flat), [wanted[k] for k in order])
        figures[f"{name}_cached_tokens"] = sum(output.num_cached_tokens or 0 for output in flat)
        known = [(wanted[k], stored["greedy_logprobs"][k]) for k in order]
        figures[f"{name}_error"], figures[f"{name}_compared"] = decode_error(flat, known)
    llm.llm_engine.engine_core.shutdown()
    figures["passed"] = good_enough(figures, dtype)
    return figures


def good_enough(figures: dict[str, Any], dtype: str) -> bool:
    """On average, 16 bits must stay within twice their noise and float32 within that of TF32, by which vLLM's own
    kernels multiply. Hymba's multiply in float32: `part_golden` holds them to `FP32_TOLERANCE`.

    Rows that leave the reference at once compare next to nothing, so a share of the tokens must have been compared.
    """
    names = ("batch_1", "batch_256", "from_cache")
    if min(figures[f"{name}_compared"] for name in names) < LEAST_COMPARED[dtype]:
        return False
    errors = [figures["logprob_mean"], *(figures[f"{name}_error"] for name in names)]
    return max(errors) < (TF32_TOLERANCE if dtype == "float32" else 2 * figures["noise_mean"])


def decode_error(outputs: list[Any], references: list[tuple[list[int], list[float]]]) -> tuple[float, float]:
    """Mean absolute difference of the log-probabilities of decoded tokens, each row up to its first other token.

    Beside it the share of all tokens that was compared.
    """
    differences = []
    for output, (tokens, logprobs) in zip(outputs, references, strict=True):
        found = output.outputs[0]
        for step, token, wanted, value in zip(found.logprobs, found.token_ids, tokens, logprobs, strict=True):
            if token != wanted:
                break
            differences.append(abs(step[token].logprob - value))
    share = len(differences) / sum(len(tokens) for tokens, _ in references)
    return sum(differences) / len(differences) if differences else float("inf"), share


def part_load(shape: str, tokens: str = "8000", sequences: str = "4") -> dict[str, Any]:
    """Serve a large shape with random weights: what it weighs, and the blocks its sequences hold while decoding."""
    from nlrl_backbones.shapes import SHAPES, write_shape
    from nlrl_backbones.vllm_cache_bytes import bytes_a_block, groups_of

    length, count, decoded = int(tokens), int(sequences), 16
    folder = write_shape(shape, Path(tempfile.mkdtemp())) if shape in SHAPES else Path(shape)
    started = time.time()
    llm = make_engine(
        folder, "full_decode_only", "bfloat16", load_format="dummy", max_model_len=length + decoded,
        max_num_batched_tokens=2048, kv_cache_memory_bytes=(8 << 30) if on_cuda() else (64 << 20), max_num_seqs=32,
    )  # fmt: skip
    figures: dict[str, Any] = {"start_s": round(time.time() - started, 1)}
    core = llm.llm_engine.engine_core.engine_core
    model = core.model_executor.driver_worker.model_runner.get_model()
    figures["weight_bytes"] = sum(value.numel() * value.element_size() for value in model.parameters())
    cache = core.scheduler.kv_cache_manager.kv_cache_config
    managers = core.scheduler.kv_cache_manager.coordinator.single_type_managers
    _add_requests(llm, [[(row + n) % 1000 for n in range(length)] for row in range(count)], decoded)
    began, prefilled, held = time.time(), 0.0, ()
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        running = core.scheduler.running
        if len(running) == count and all(request.num_output_tokens for request in running):
            prefilled = prefilled or time.time()
            held = groups_of(cache, managers, running[0].request_id)
    figures["prefill_s"], figures["decode_s"] = round(prefilled - began, 2), round(time.time() - prefilled, 2)
    for kind in dict.fromkeys(group.kind for group in held):
        blocks = sum(group.blocks for group in held if group.kind == kind)
        figures[f"{kind} bytes a sequence"] = blocks * bytes_a_block(cache)
    figures["bytes_a_sequence"] = sum(group.blocks for group in held) * bytes_a_block(cache)
    llm.llm_engine.engine_core.shutdown()
    figures["passed"] = bool(held)
    return figures


def _add_requests(llm: Any, prompts: list[list[int]], steps: int) -> None:
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=steps, detokenize=False, ignore_eos=True)
    for number, ids in enumerate(prompts):
        llm.llm_engine.add_request(str(number), {"prompt_token_ids": ids}, how)


def part_speed(model: Path, dtype: str, graphs: str) -> dict[str, Any]:
    """Tokens per second: prefill of long prompts, decode of 1, 64 and 256 short ones; second run of each."""
    import torch
    from transformers import AutoConfig

    import nlrl_backbones  # noqa: F401  makes the backbones known to transformers

    config = AutoConfig.from_pretrained(model)
    longest = min(1024, getattr(config, "max_position_embeddings", 1024)) - 8
    llm = make_engine(
        model_only(model), graphs, dtype, max_model_len=longest + 8, enable_prefix_caching=False,
        max_num_batched_tokens=16384, kv_cache_memory_bytes=16 << 30,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return torch.randint(3, config.vocab_size - 1, (count, length), generator=draw).tolist()

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


def make_reference(model: Path, reference: Path, lengths: tuple[int, ...] = LENGTHS) -> None:
    """Write prompts with the transformers model's float32 log-probabilities and greedy continuations, and its noise.

    The noise of a dtype is the mean absolute difference of the prompts' log-probabilities from the float32 ones.
    """
    import torch
    from transformers import AutoModelForCausalLM

    import nlrl_backbones  # noqa: F401  makes the backbones known to transformers

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    loaded.generation_config.eos_token_id = None
    vocabulary, longest = loaded.config.vocab_size, getattr(loaded.config, "max_position_embeddings", 1024) - 40
    draw = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, vocabulary - 1, (min(n, longest),), generator=draw).tolist() for n in lengths]
    logprobs, greedy, greedy_logprobs = [], [], []
    how = {"max_new_tokens": 32, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        for ids in prompts:
            logprobs.append(_token_logprobs(loaded, ids))
            found = loaded.generate(torch.tensor([ids]), **how)
            greedy.append(found.sequences[0, len(ids) :].tolist())
            steps = torch.cat(found.logits).float().log_softmax(-1)
            greedy_logprobs.append([row[token].item() for row, token in zip(steps, greedy[-1], strict=True)])
        noise = {"float32": 0.0}
        for dtype in (torch.bfloat16, torch.float16):
            rounded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
            pairs = zip(prompts, logprobs, strict=True)
            errors = [abs(a - b) for ids, row in pairs for a, b in zip(_token_logprobs(rounded, ids), row, strict=True)]
            noise[str(dtype).removeprefix("torch.")] = sum(errors) / len(errors)
    stored = {"prompts": prompts, "logprobs": logprobs, "greedy": greedy, "greedy_logprobs": greedy_logprobs}
    reference.write_text(json.dumps(stored | {"noise": noise}))
    print(f"wrote {reference}")


def _token_logprobs(model: Any, ids: list[int]) -> list[float]:
    """Of each token after the first."""
    import torch

    rows = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [rows[i, token].item() for i, token in enumerate(ids[1:])]
