"""nGPT and its GPT baseline served by vLLM on a CPU, against the published code (golden_ngpt) and transformers.

One process; engines are shared by the tests of this module, for each takes seconds to start.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ngpt_golden import STEPS, load_cases, write_folders

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

CONTINUED = (0, 1, 2)
PROJECTIONS = ("query", "key", "value", "att_c_proj", "c_fc", "mlp_c_proj")


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    return load_cases("ngpt")


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    from served import engines

    with engines() as make:
        yield make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model with room for a continuation after its longest prompt."""
    return write_folders("ngpt", tmp_path_factory.mktemp("ngpt"), block_size=128)[1]


@pytest.fixture(scope="module")
def chunked(start: Callable[..., Any], folder: Path) -> Any:
    """16 tokens a step: long prompts take several, among other rows' single ones; every prefix is cached."""
    return start(folder, enable_prefix_caching=True, max_num_batched_tokens=16)


@pytest.fixture(scope="module")
def with_lora(start: Callable[..., Any], folder: Path) -> Any:
    return start(folder, enable_lora=True, max_lora_rank=8, max_loras=1)


def prompts_of(cases: dict[str, Any], count: int = 5) -> list[list[int]]:
    return [cases[f"prompt.{k}.input_ids"].tolist() for k in range(count)]


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    import nlrl_backbones  # noqa: F401  registers the architecture with transformers

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def greedy_by(model: Any, prompts: list[list[int]], steps: int = STEPS) -> list[list[int]]:
    """What transformers continues each prompt with."""
    import torch

    how = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return [model.generate(torch.tensor([ids]), **how)[0, len(ids) :].tolist() for ids in prompts]


def logprobs_by(model: Any, prompts: list[list[int]]) -> list[list[float]]:
    """Per prompt, transformers' log-probability of each token after the first."""
    import torch

    rows = []
    for ids in prompts:
        with torch.no_grad():
            table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        rows.append([table[i, token].item() for i, token in enumerate(ids[1:])])
    return rows


def golden_logprobs(cases: dict[str, Any], prompts: list[list[int]]) -> list[list[float]]:
    tables = [cases[f"prompt.{k}.logits_f64"].log_softmax(-1) for k in range(len(prompts))]
    return [
        [table[i, token].item() for i, token in enumerate(ids[1:])] for table, ids in zip(tables, prompts, strict=True)
    ]


def assert_close(found: list[list[float]], expected: list[list[float]], tolerance: float = 1e-4) -> None:
    for k, (row, wanted) in enumerate(zip(found, expected, strict=True)):
        assert row == pytest.approx(wanted, abs=tolerance), f"prompt {k}"


def test_mixed_batch_then_the_same_from_the_prefix_cache(chunked: Any, cases: dict[str, Any], folder: Path) -> None:
    from served import generate

    prompts = prompts_of(cases)
    expected = [cases[f"prompt.{k}.greedy_ids"].tolist() for k in CONTINUED] + greedy_by(load(folder), prompts[3:])
    first, again = generate(chunked, prompts, STEPS), generate(chunked, prompts, STEPS)
    assert sum(output.num_cached_tokens for output in first) == 0
    assert sum(output.num_cached_tokens for output in again) >= 64
    for outputs in (first, again):
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected


def test_each_prompt_alone(chunked: Any, cases: dict[str, Any]) -> None:
    from served import greedy

    chunked.reset_prefix_cache()
    for k in CONTINUED:
        found = greedy(chunked, [cases[f"prompt.{k}.input_ids"].tolist()], STEPS)
        assert found == [cases[f"prompt.{k}.greedy_ids"].tolist()]


def test_prompt_logprobs(chunked: Any, cases: dict[str, Any]) -> None:
    from served import prompt_logprobs

    prompts = prompts_of(cases)
    assert_close(prompt_logprobs(chunked, prompts), golden_logprobs(cases, prompts))


def test_reload_takes_the_new_weights_and_the_old_again(
    chunked: Any, cases: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file
    from served import greedy

    prompts = prompts_of(cases)
    before = greedy(chunked, prompts, STEPS)
    weights = load_file(folder / "model.safetensors")
    for name in ("sz", "transformer.h.0.sqk", "transformer.h.1.suv", "transformer.h.2.mlp_alpha", "lm_head.weight"):
        weights[name] = weights[name].flip(0).contiguous()
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for source, expected in ((tmp_path, greedy_by(load(tmp_path), prompts)), (folder, before)):
        chunked.collective_rpc("reload_weights", kwargs={"weights_path": str(source)})
        chunked.reset_prefix_cache()
        assert greedy(chunked, prompts, STEPS) == expected
        assert (expected == before) == (source == folder)


def write_adapter(folder: Path, model: Any, rank: int = 4) -> None:
    """A random LoRA adapter in peft's layout on every projection; adds it to ``model``'s weights."""
    import torch
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(3), {}
    for i, block in enumerate(model.transformer.h):
        for name in PROJECTIONS:
            matrix = getattr(block, name).weight
            a = torch.randn(rank, matrix.shape[1], generator=generator) * 0.2
            b = torch.randn(matrix.shape[0], rank, generator=generator) * 0.2
            root = f"base_model.model.transformer.h.{i}.{name}"
            tensors |= {f"{root}.lora_A.weight": a, f"{root}.lora_B.weight": b}
            matrix.data += b @ a
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"target_modules": list(PROJECTIONS)}))


def test_lora_equals_merged_weights(with_lora: Any, cases: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    from served import greedy, prompt_logprobs
    from vllm.lora.request import LoRARequest

    merged, prompts = load(folder), prompts_of(cases)
    write_adapter(tmp_path / "adapter", merged)
    request = LoRARequest("random", 1, str(tmp_path / "adapter"))
    expected = greedy_by(merged, prompts)
    assert greedy(with_lora, prompts, STEPS, lora_request=request) == expected
    assert_close(prompt_logprobs(with_lora, prompts, lora_request=request), logprobs_by(merged, prompts))
    without = greedy(with_lora, prompts[:3], STEPS)
    assert without == [cases[f"prompt.{k}.greedy_ids"].tolist() for k in CONTINUED]
    assert all(a != b for a, b in zip(without, expected, strict=False))


def test_the_baseline(start: Callable[..., Any], tmp_path: Path) -> None:
    from served import greedy, prompt_logprobs

    cases = load_cases("baseline")
    llm = start(write_folders("baseline", tmp_path)[1], max_model_len=64, max_num_batched_tokens=8)
    prompts = prompts_of(cases, 2)
    assert greedy(llm, prompts, STEPS)[0] == cases["prompt.0.greedy_ids"].tolist()
    assert_close(prompt_logprobs(llm, prompts), golden_logprobs(cases, prompts))


def test_the_rotary_option(start: Callable[..., Any], cases: dict[str, Any], tmp_path: Path) -> None:
    from served import greedy, prompt_logprobs

    source = write_folders("ngpt", tmp_path, position="rotary", block_size=128)[1]
    llm, prompts = start(source, max_num_batched_tokens=16), prompts_of(cases)
    model = load(source)
    assert greedy(llm, prompts, STEPS) == greedy_by(model, prompts)
    assert_close(prompt_logprobs(llm, prompts), logprobs_by(model, prompts))


def test_bfloat16_is_near(start: Callable[..., Any], cases: dict[str, Any], folder: Path) -> None:
    """Rounding moves single logits by some tenths; a wrong formula moves the mean by more than 1."""
    from served import prompt_logprobs

    llm, prompts = start(folder, dtype="bfloat16", enable_prefix_caching=False), prompts_of(cases)
    pairs = zip(prompt_logprobs(llm, prompts), golden_logprobs(cases, prompts), strict=True)
    differences = [abs(a - b) for found, expected in pairs for a, b in zip(found, expected, strict=True)]
    assert 0 < sum(differences) / len(differences) < 0.05
