"""Differential Transformers served by vLLM on a CPU, against the official numbers and the transformers model.

One process; engines are shared by the tests of this module, for each takes seconds to start.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diff_golden import DIFFLLAMAS, FOLDERS, Golden, load, official

pytest.importorskip("vllm")
from served import engines, generate, greedy, prompt_logprobs

pytestmark = pytest.mark.vllm

STEPS = 24
RANK = 4
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    with engines() as starter:
        yield starter


@pytest.fixture(scope="module")
def served(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """One engine a golden model, on its official files, DiffLlama's once with a configuration of transformers 4.

    16 tokens a step: the longer prompts take several, among other rows' single ones; every prefix is cached.
    """
    running: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in running:
            folder = official(name, tmp_path_factory.mktemp(name), old_style=name == "llama3rope_tied")
            running[name] = start(folder, max_num_batched_tokens=16)
        return running[name]

    return get


@pytest.fixture(params=FOLDERS)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load(request.param)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random V1 whose two cached heads serve two heads each: the golden V1 has a cached head for every head."""
    return write_random(tmp_path_factory.mktemp("grouped"), seed=0)


def write_random(folder: Path, seed: int) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    from nlrl_backbones.diff_transformer.config import DiffTransformerConfig

    config = DiffTransformerConfig(
        vocab_size=200, hidden_size=96, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=256, lambda_std_dev=0.4, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def assert_logprobs(llm: Any, golden: Golden, tolerance: float, **settings: Any) -> None:
    found = prompt_logprobs(llm, golden.prompts, **settings)
    for k, row in enumerate(found):
        assert row == pytest.approx(golden.logprobs(k), abs=tolerance), f"prompt {k}"


def torch_logprobs(model: Any, prompts: list[list[int]]) -> list[list[float]]:
    import torch

    rows = []
    for ids in prompts:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        rows.append([logits[i, token].item() for i, token in enumerate(ids[1:])])
    return rows


def random_prompts(vocabulary: int, lengths: tuple[int, ...] = (1, 9, 40, 70)) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def test_mixed_batch_then_the_same_from_the_prefix_cache(served: Callable[[str], Any], golden: Golden) -> None:
    llm = served(golden.name)
    assert greedy(llm, golden.prompts, STEPS)[golden.continued] == golden.continuation
    known = 16  # tokens of the continuation in the prompt, which is then longer than a block
    longer = golden.prompts[golden.continued] + golden.continuation[:known]
    again = generate(llm, [longer, *golden.prompts], STEPS - known)
    assert again[0].num_cached_tokens == 32
    assert list(again[0].outputs[0].token_ids) == golden.continuation[known:]


def test_alone(served: Callable[[str], Any], golden: Golden) -> None:
    served(golden.name).reset_prefix_cache()
    assert greedy(served(golden.name), [golden.prompts[golden.continued]], STEPS) == [golden.continuation]


def test_prompt_logprobs(served: Callable[[str], Any], golden: Golden) -> None:
    assert_logprobs(served(golden.name), golden, tolerance=2e-4)


def test_a_cached_token_is_as_large_as_its_rows_of_keys_and_values(served: Callable[[str], Any]) -> None:
    """One cached head a pair: 2d numbers of keys and of values (here padded to 32, the narrowest kernel)."""
    runner = served("v1").llm_engine.engine_core.engine_core.model_executor.driver_worker.model_runner
    specs = runner.get_kv_cache_spec()
    assert set(specs) == {f"model.layers.{i}.self_attn.attn" for i in range(4)}
    assert {(spec.num_kv_heads, spec.head_size) for spec in specs.values()} == {(4, 32)}
    assert runner.model_config.get_head_size() == 32


def test_reload_follows_lambda_and_the_embedding_that_a_head_may_be_tied_to(
    served: Callable[[str], Any], tmp_path: Path, golden: Golden
) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, DiffLlamaForCausalLM

    llm = served(golden.name)
    old, new = official(golden.name, tmp_path / "old"), official(golden.name, tmp_path / "new")
    weights = load_file(new / "model.safetensors")
    for key, tensor in weights.items():
        if "lambda" in key or "embed" in key:  # nothing else changes
            weights[key] = tensor.flip(0).contiguous() * 1.3
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(new)})
    llm.reset_prefix_cache()
    auto: Any = DiffLlamaForCausalLM if golden.name in DIFFLLAMAS else AutoModelForCausalLM
    expected = torch_logprobs(auto.from_pretrained(new, dtype=torch.float32), golden.prompts)
    moved = 0.0
    for k, (found, wanted) in enumerate(zip(prompt_logprobs(llm, golden.prompts), expected, strict=True)):
        assert found == pytest.approx(wanted, abs=2e-4)
        moved = max([moved, *(abs(a - b) for a, b in zip(found, golden.logprobs(k), strict=True))])
    assert moved > 0.01
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(old)})
    llm.reset_prefix_cache()
    assert_logprobs(llm, golden, tolerance=2e-4)


def write_adapter(folder: Path, weights: dict[str, Any], targets: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Write an adapter on the named matrices; returns the weights with it merged in."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    adapter, merged, alpha = {}, dict(weights), 2 * RANK
    for key, weight in weights.items():
        if key.endswith(tuple(f".{target}.weight" for target in targets)):
            a = torch.randn(RANK, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5
            b = torch.randn(weight.shape[0], RANK, generator=generator) * 0.1
            root = f"base_model.model.{key.removesuffix('.weight')}"
            adapter |= {f"{root}.lora_A.weight": a, f"{root}.lora_B.weight": b}
            merged[key] = weight + alpha / RANK * b @ a
    folder.mkdir(parents=True)
    save_file(adapter, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": alpha, "target_modules": [*targets], "bias": "none"})
    )
    return merged


def assert_continues_as(model: Any, ids: list[int], completion: Any) -> list[float]:
    """Each generated token has the model's log-probability and is its likeliest; returns those log-probabilities."""
    import torch

    tokens = list(completion.token_ids)
    with torch.no_grad():
        logits = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    expected = [row[token].item() for row, token in zip(logits, tokens, strict=True)]
    found = [step[token].logprob for step, token in zip(completion.logprobs, tokens, strict=True)]
    assert found == pytest.approx(expected, abs=2e-4)
    assert expected == pytest.approx(logits.max(-1).values.tolist(), abs=1e-3)
    return expected


def check_adapters(llm: Any, model: Any, prompts: list[list[int]], folder: Path, extra: tuple[str, ...] = ()) -> None:
    """Rows with an adapter on all matrices, on few, and on none, in one batch, equal the merged weights.

    The engine must have a free place for an adapter: on a CPU vLLM gives rows without one the last place's.
    """
    from vllm.lora.request import LoRARequest

    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    versions: list[dict[str, Any]] = [before]
    requests: list[Any] = [None]
    for number, targets in enumerate(((*MATRICES, *extra), ("q_proj", "v_proj")), start=1):
        versions.append(write_adapter(folder / str(number), before, targets, seed=number))
        requests.append(LoRARequest(f"adapter{number}", number, str(folder / str(number))))
    outputs = generate(llm, prompts * 3, 10, logprobs=0, lora_request=[r for r in requests for _ in prompts])
    kept = []
    for k, weights in enumerate(versions):
        model.load_state_dict(weights)
        rows = outputs[k * len(prompts) : (k + 1) * len(prompts)]
        kept.append([assert_continues_as(model, ids, row.outputs[0]) for ids, row in zip(prompts, rows, strict=True)])
        found = prompt_logprobs(llm, prompts, lora_request=requests[k])
        for row, expected in zip(found, torch_logprobs(model, prompts), strict=True):
            assert row == pytest.approx(expected, abs=2e-4)
    assert kept[0] != kept[1] != kept[2] != kept[0]


def test_grouped_heads_and_adapters_on_v1(start: Callable[..., Any], grouped: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    llm = start(grouped, enable_lora=True, max_loras=3, max_lora_rank=8, max_num_batched_tokens=48)
    check_adapters(llm, AutoModelForCausalLM.from_pretrained(grouped), random_prompts(200), tmp_path)


def test_adapters_on_a_diffllama(start: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import DiffLlamaForCausalLM

    folder = official("plain", tmp_path / "plain")
    llm = start(folder, enable_lora=True, max_loras=3, max_lora_rank=8, max_num_batched_tokens=48)
    model = DiffLlamaForCausalLM.from_pretrained(folder)
    check_adapters(llm, model, load("plain").prompts, tmp_path / "adapters")


def test_adapters_on_v2_and_its_lambda(start: Callable[..., Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = official("v2", tmp_path / "v2")
    llm = start(folder, enable_lora=True, max_loras=3, max_lora_rank=8, max_num_batched_tokens=48)
    model = AutoModelForCausalLM.from_pretrained(folder)
    check_adapters(llm, model, load("v2").prompts, tmp_path / "adapters", extra=("lambda_proj",))


@pytest.mark.parametrize("name", ["v1", "plain"])
def test_bfloat16_runs(start: Callable[..., Any], name: str, tmp_path: Path) -> None:
    """Its rounding moves single log-probabilities by tenths, so only the mean is compared."""
    golden = load(name)
    llm = start(official(name, tmp_path / name), dtype="bfloat16", enable_prefix_caching=False)
    differences = [
        abs(a - b)
        for k, row in enumerate(prompt_logprobs(llm, golden.prompts))
        for a, b in zip(row, golden.logprobs(k), strict=True)
    ]
    assert 0 < sum(differences) / len(differences) < 0.1


def test_heads_that_do_not_divide_are_refused_in_one_sentence() -> None:
    from nlrl_backbones.diff_transformer.config import DiffTransformerConfig
    from nlrl_backbones.diff_transformer.heads import HeadLayout

    config = DiffTransformerConfig(variant="v2", num_attention_heads=8, num_key_value_heads=2)
    halved = HeadLayout.of(config, 2)
    assert (halved.heads, halved.cached_heads, halved.width, halved.key_maps) == (2, 1, 384, 1)
    for parts in (3, 4):
        with pytest.raises(ValueError, match=f"4 differential .* 2 cached heads cannot .* over {parts} devices"):
            HeadLayout.of(config, parts)
