"""Hymba served by vLLM on a CPU, against NVIDIA's own implementation (golden_hymba) and the transformers model.

One process; engines are shared by the tests of this module, for each takes seconds to start.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

GOLDEN = Path(__file__).parent / "golden_hymba"
CONTINUED = (0, 2, 4, 6)
LENGTHS = (1, 4, 11, 16, 17, 18, 29, 47)
STEPS = 24


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module")
def golden_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint alone: vLLM reads every safetensors file of a folder."""
    folder = tmp_path_factory.mktemp("golden")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    return folder


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    """Starts an engine without tokenizer on a folder; all end together, for they share the process's groups."""
    from nlrl.engine.vllm_setup import prepare_environment

    prepare_environment()
    from vllm import LLM

    running: list[Any] = []

    def make(folder: Path, **settings: Any) -> Any:
        fixed = {"skip_tokenizer_init": True, "enforce_eager": True, "disable_log_stats": True}
        chosen = {"dtype": "float32", "max_num_seqs": 8, "max_model_len": 128, "block_size": 16} | settings
        running.append(LLM(model=str(folder), **fixed, **chosen))
        return running[-1]

    yield make
    for llm in running:
        llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def chunked(start: Callable[..., Any], golden_dir: Path) -> Any:
    """16 tokens a step: most prompts take several, among other rows' single ones; every prefix is cached."""
    return start(golden_dir, enable_prefix_caching=True, max_num_batched_tokens=16)


def greedy(llm: Any, prompts: list[list[int]], steps: int = STEPS) -> list[list[int]]:
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=steps, detokenize=False, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], how, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def prompt_logprobs(llm: Any, prompts: list[list[int]]) -> list[list[float]]:
    """Per prompt, the log-probability of each token after the first."""
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], how, use_tqdm=False)
    return [
        [step[token].logprob for step, token in zip(out.prompt_logprobs[1:], ids[1:], strict=True)]
        for out, ids in zip(outputs, prompts, strict=True)
    ]


def golden_prompts(cases: dict[str, Any]) -> list[list[int]]:
    return [cases[f"prompt.{k}.input_ids"].tolist() for k in range(len(LENGTHS))]


def assert_golden_continuations(outputs: list[list[int]], cases: dict[str, Any]) -> None:
    for k in CONTINUED:
        assert outputs[k] == cases[f"prompt.{k}.greedy_recompute_ids"].tolist(), f"prompt {k}"


def assert_golden_logprobs(llm: Any, cases: dict[str, Any], tolerance: float) -> None:
    prompts = golden_prompts(cases)
    for k, (found, ids) in enumerate(zip(prompt_logprobs(llm, prompts), prompts, strict=True)):
        reference = cases[f"prompt.{k}.logits_f64"].log_softmax(-1)
        expected = [reference[i, token].item() for i, token in enumerate(ids[1:])]
        assert found == pytest.approx(expected, abs=tolerance), f"prompt {k}"


def test_the_plugin_registers_twice_without_harm() -> None:
    from vllm.model_executor.models import ModelRegistry

    from nlrl_backbones.vllm_plugin import register

    register()
    register()
    assert "HymbaForCausalLM" in ModelRegistry.get_supported_archs()


@pytest.mark.parametrize(
    ("version", "good"), [("0.31.9", False), ("0.32.0", True), ("0.33.1+cpu", True), ("0.34.0", False), ("dev", False)]
)
def test_supported_versions(version: str, good: bool) -> None:
    from nlrl_backbones.common.vllm_compat import supported

    assert supported(version) is good


def test_mixed_batch_then_the_same_from_the_prefix_cache(chunked: Any, cases: dict[str, Any]) -> None:
    prompts = golden_prompts(cases)
    assert_golden_continuations(greedy(chunked, prompts), cases)
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=STEPS, detokenize=False, ignore_eos=True)
    again = chunked.generate([{"prompt_token_ids": ids} for ids in prompts], how, use_tqdm=False)
    assert sum(output.num_cached_tokens for output in again) >= 64
    assert_golden_continuations([list(output.outputs[0].token_ids) for output in again], cases)


def test_each_prompt_alone(chunked: Any, cases: dict[str, Any]) -> None:
    chunked.reset_prefix_cache()
    prompts = golden_prompts(cases)
    assert_golden_continuations(
        [greedy(chunked, [ids])[0] if k in CONTINUED else [] for k, ids in enumerate(prompts)], cases
    )


def test_prompt_logprobs(chunked: Any, cases: dict[str, Any]) -> None:
    assert_golden_logprobs(chunked, cases, tolerance=2e-4)


def test_pages_are_kept_for_producers_only(chunked: Any) -> None:
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, SlidingWindowSpec

    config = json.loads((GOLDEN / "config.json").read_text())
    consumers = {layer for group in config["kv_reuse_group"] for layer in group[1:]}
    layers = range(config["num_hidden_layers"])
    runner = chunked.llm_engine.engine_core.engine_core.model_executor.driver_worker.model_runner
    specs = runner.get_kv_cache_spec()
    attention = {name: spec for name, spec in specs.items() if not isinstance(spec, MambaSpec)}
    assert set(attention) == {f"model.layers.{i}.attn" for i in layers if i not in consumers}
    assert len(specs) - len(attention) == len(layers)
    for i in layers:
        spec = attention.get(f"model.layers.{i}.attn")
        if i in consumers:
            assert spec is None
        elif i in config["global_attn_idx"]:
            assert isinstance(spec, FullAttentionSpec)
        else:
            assert isinstance(spec, SlidingWindowSpec)
            assert spec.sliding_window == config["sliding_window"] + 1
            assert (spec.head_size, spec.head_size_v) == (16, 32)


def test_reload_recomputes_what_the_meta_tokens_leave(
    chunked: Any, cases: dict[str, Any], random_hymba: Callable[..., Path], golden_dir: Path
) -> None:
    """New weights, new answers, equal to transformers' with the new weights; and back. The tied head follows too."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    prompts = [ids for k, ids in enumerate(golden_prompts(cases)) if k in CONTINUED]
    before = greedy(chunked, prompts)
    new_dir = random_hymba().parent / "meta_moved"
    shutil.copytree(golden_dir, new_dir)
    weights = load_file(new_dir / "model.safetensors")
    for name in ("model.memory_tokens", "model.embed_tokens.weight"):
        weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, new_dir / "model.safetensors", metadata={"format": "pt"})

    chunked.collective_rpc("reload_weights", kwargs={"weights_path": str(new_dir)})
    chunked.reset_prefix_cache()
    after = greedy(chunked, prompts)
    model: Any = AutoModelForCausalLM.from_pretrained(new_dir, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    for ids, found in zip(prompts, after, strict=True):
        expected = model.generate(torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False)
        assert found == expected[0, len(ids) :].tolist()
    assert after != before

    chunked.collective_rpc("reload_weights", kwargs={"weights_path": str(golden_dir)})
    chunked.reset_prefix_cache()
    assert greedy(chunked, prompts) == before


def test_the_path_of_a_gpu_on_torch_references(
    start: Callable[..., Any], golden_dir: Path, cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on nlrl_kernels on a GPU, on their references here."""
    from nlrl_backbones.hymba import vllm_attention, vllm_layers, vllm_mixer

    for module in (vllm_layers, vllm_attention, vllm_mixer):
        monkeypatch.setattr(module, "cpu_loops", lambda: False)
    llm = start(golden_dir, enable_prefix_caching=True, max_num_batched_tokens=32)
    assert_golden_continuations(greedy(llm, golden_prompts(cases)), cases)
    assert_golden_continuations(greedy(llm, golden_prompts(cases)), cases)


@pytest.mark.parametrize("meta", [0, 19])
def test_other_shapes_against_transformers(
    start: Callable[..., Any], random_hymba: Callable[..., Path], meta: int
) -> None:
    """Wider heads, other groups, no meta tokens or a number that fills no page; prompts longer than a query chunk."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = random_hymba(seed=1, num_memory_tokens=meta, num_hidden_layers=4, global_attn_idx=[0], sliding_window=40)
    llm = start(folder, max_model_len=512, max_num_batched_tokens=300, max_num_seqs=4, enable_prefix_caching=False)
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(3, 500, (n,), generator=generator).tolist() for n in (1, 37, 150, 290)]
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = prompt_logprobs(llm, prompts)
    for ids, logprobs in zip(prompts, found, strict=True):
        with torch.no_grad():
            reference = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [reference[i, token].item() for i, token in enumerate(ids[1:])]
        assert logprobs == pytest.approx(expected, abs=3e-4)


def test_bfloat16_runs(start: Callable[..., Any], golden_dir: Path, cases: dict[str, Any]) -> None:
    """Its rounding moves these logits by about 0.4, so only the mean is compared."""
    llm = start(golden_dir, dtype="bfloat16", enable_prefix_caching=False)
    prompts = golden_prompts(cases)
    differences = [
        abs(found - cases[f"prompt.{k}.logits_f64"].log_softmax(-1)[i, prompts[k][i + 1]].item())
        for k, row in enumerate(prompt_logprobs(llm, prompts))
        for i, found in enumerate(row)
    ]
    assert 0 < sum(differences) / len(differences) < 0.15
