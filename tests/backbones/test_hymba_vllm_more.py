"""Served Hymba beyond the golden numbers: adapters, other dtypes, compilation, and what is refused.

Engines are shared by the tests of this module and small: two layers, one of them with a window.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

SHAPE = {"num_hidden_layers": 3, "global_attn_idx": [2], "kv_reuse_group": [[0, 1]], "sliding_window": 8}
LENGTHS = (1, 7, 33, 60)
STEPS = 6
MODULES = (
    "mamba.in_proj", "mamba.out_proj", "mamba.x_proj.0", "mamba.dt_proj.0", "moe.experts.0.gate_proj",
    "moe.experts.0.up_proj", "moe.experts.0.down_proj",
)  # fmt: skip


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    from served import engines

    with engines() as started:
        yield started


@pytest.fixture(scope="module")
def folder(random_hymba: Callable[..., Path]) -> Path:
    return random_hymba(seed=3, **SHAPE)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, 500, (n,), generator=generator).tolist() for n in LENGTHS]


def reference(model: Any, prompts: list[list[int]]) -> list[list[float]]:
    """Per prompt, the log-probability of each token after the first, by transformers."""
    import torch

    with torch.no_grad():
        rows = [model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1) for ids in prompts]
    return [[row[i, token].item() for i, token in enumerate(ids[1:])] for row, ids in zip(rows, prompts, strict=True)]


def load(folder: Path, **settings: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).eval()


def assert_close(found: list[list[float]], expected: list[list[float]], tolerance: float) -> None:
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=tolerance)


def mean_difference(found: list[list[float]], expected: list[list[float]]) -> float:
    pairs = [pair for rows in zip(found, expected, strict=True) for pair in zip(*rows, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


# LoRA


@pytest.fixture(scope="module")
def adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """Down and up matrices of rank 4 by the name of the projection, and on disk as peft writes them."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(2)
    model, matrices, tensors = load(folder), {}, {}
    for layer in range(SHAPE["num_hidden_layers"]):
        for module in MODULES:
            name = f"model.layers.{layer}.{module}"
            rows, columns = model.get_submodule(name).weight.shape
            down = torch.randn(4, columns, generator=generator) * columns**-0.5
            up = torch.randn(rows, 4, generator=generator) * 0.2
            matrices[name] = (down, up)
            tensors |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    target = adapter_folder(folder)
    target.mkdir()
    save_file(tensors, target / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": list(MODULES), "bias": "none"}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return matrices


def adapter_folder(folder: Path) -> Path:
    return folder.parent / f"{folder.name}-adapter"


def adapted(model: Any, matrices: dict[str, tuple[Any, Any]]) -> Any:
    """The model with its projections wrapped as peft wraps them."""
    import torch

    class Adapter(torch.nn.Module):
        def __init__(self, base_layer: Any, down: Any, up: Any) -> None:
            super().__init__()
            self.base_layer, self.down, self.up = base_layer, down, up

        def forward(self, x: Any) -> Any:
            return self.base_layer(x) + x @ self.down.T @ self.up.T

    for name, (down, up) in matrices.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Adapter(model.get_submodule(name), down, up))
    return model


@pytest.fixture(scope="module")
def with_lora(start: Callable[..., Any], folder: Path, adapter: Any) -> Any:
    return start(folder, enable_lora=True, max_lora_rank=8, max_loras=1, max_num_batched_tokens=32)


def test_a_request_with_an_adapter_equals_the_model_that_trained_it(
    with_lora: Any, folder: Path, adapter: Any, prompts: list[list[int]]
) -> None:
    import torch
    from served import greedy, prompt_logprobs
    from vllm.lora.request import LoRARequest

    chosen = LoRARequest("one", 1, str(adapter_folder(folder)))
    plain, tuned = load(folder), adapted(load(folder), adapter)
    expected = reference(tuned, prompts)
    assert mean_difference(expected, reference(plain, prompts)) > 0.5
    for _ in range(2):  # the second time, with base requests between, from the prefix cache
        assert_close(prompt_logprobs(with_lora, prompts, lora_request=chosen), expected, 5e-4)
        assert_close(prompt_logprobs(with_lora, prompts), reference(plain, prompts), 5e-4)
    tuned.generation_config.eos_token_id = None
    for ids, found in zip(prompts, greedy(with_lora, prompts, STEPS, lora_request=chosen), strict=True):
        assert found == tuned.generate(torch.tensor([ids]), max_new_tokens=STEPS)[0, len(ids) :].tolist()


def test_merged_weights_reloaded_equal_the_merged_model(
    with_lora: Any, folder: Path, adapter: Any, prompts: list[list[int]], tmp_path: Path
) -> None:
    """The other route: merging moves what the meta tokens leave, and the reload follows, adapters enabled or not."""
    from served import prompt_logprobs
    from vllm.lora.request import LoRARequest

    merged = load(folder)
    for name, (down, up) in adapter.items():
        merged.get_submodule(name).weight.data += up @ down
    merged.save_pretrained(tmp_path)
    expected = reference(merged, prompts)
    assert mean_difference(expected, reference(adapted(load(folder), adapter), prompts)) > 0.05

    # An adapter that ran last must not reach the meta tokens when the constants are made anew.
    prompt_logprobs(with_lora, prompts[:1], lora_request=LoRARequest("one", 1, str(adapter_folder(folder))))
    with_lora.collective_rpc("reload_weights", kwargs={"weights_path": str(tmp_path)})
    with_lora.reset_prefix_cache()
    assert_close(prompt_logprobs(with_lora, prompts), expected, 5e-4)
    with_lora.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
    with_lora.reset_prefix_cache()
    assert_close(prompt_logprobs(with_lora, prompts), reference(load(folder), prompts), 5e-4)


# Layer roles


def test_the_first_layer_may_have_a_window_and_all_may_share(
    start: Callable[..., Any], random_hymba: Callable[..., Path], prompts: list[list[int]]
) -> None:
    from served import greedy, prompt_logprobs

    shape = SHAPE | {"global_attn_idx": [1], "kv_reuse_group": [[0, 2]], "num_memory_tokens": 3}
    folder = random_hymba(seed=4, **shape)
    llm = start(folder, max_num_batched_tokens=32)
    first = greedy(llm, prompts, STEPS)
    assert greedy(llm, prompts, STEPS) == first
    assert_close(prompt_logprobs(llm, prompts), reference(load(folder), prompts), 5e-4)


# Dtypes and compilation


def test_float16(start: Callable[..., Any], folder: Path, prompts: list[list[int]]) -> None:
    from served import prompt_logprobs

    llm = start(folder, dtype="float16", enable_prefix_caching=False)
    assert 0 < mean_difference(prompt_logprobs(llm, prompts), reference(load(folder), prompts)) < 0.02


@pytest.mark.slow
def test_compiled_by_inductor(
    start: Callable[..., Any], random_hymba: Callable[..., Path], prompts: list[list[int]]
) -> None:
    from served import prompt_logprobs

    folder = random_hymba(seed=5, **SHAPE | {"num_hidden_layers": 1, "global_attn_idx": [], "kv_reuse_group": None})
    llm = start(folder, dtype="bfloat16", enforce_eager=False)
    config = llm.llm_engine.vllm_config.compilation_config
    assert (config.mode.name, config.backend) == ("DYNAMO_TRACE_ONCE", "inductor")
    assert 0 < mean_difference(prompt_logprobs(llm, prompts), reference(load(folder), prompts)) < 0.15


# Refusals


def engine_config(folder: Path, **settings: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(folder), skip_tokenizer_init=True, **settings).create_engine_config()


def test_pipeline_stages_are_refused_before_any_process_starts(folder: Path) -> None:
    with pytest.raises(NotImplementedError, match="Pipeline parallelism is not supported"):
        engine_config(folder, pipeline_parallel_size=2)


@pytest.mark.parametrize(("heads", "devices", "good"), [((25, 5), 5, True), ((25, 5), 2, False), ((4, 2), 4, False)])
def test_heads_that_do_not_divide_are_refused(heads: tuple[int, int], devices: int, good: bool) -> None:
    from nlrl_backbones.hymba.config import HymbaConfig
    from nlrl_backbones.hymba.vllm_mixer import check_split

    config = HymbaConfig(hidden_size=32 * heads[0], num_attention_heads=heads[0], num_key_value_heads=heads[1])
    if good:
        check_split(config, devices)
        return
    with pytest.raises(ValueError, match=f"split over {devices} devices: choose a tensor_parallel_size"):
        check_split(config, devices)


@pytest.mark.parametrize(
    ("option", "lora", "sentence"),
    [
        ({"decode_window": "official"}, False, 'set it to "full", or use transformers'),
        ({"adapt_meta_tokens": True}, True, "merge it into the weights"),
    ],
)
def test_options_that_cannot_be_served_are_refused(
    folder: Path, option: dict[str, Any], lora: bool, sentence: str
) -> None:
    from nlrl_backbones.common.vllm_compat import own_config
    from nlrl_backbones.hymba.config import HymbaConfig
    from nlrl_backbones.hymba.vllm_model import check_settings

    vllm_config = engine_config(folder, **({"enable_lora": True} if lora else {}))
    config = own_config(vllm_config, HymbaConfig)
    check_settings(config, vllm_config)
    for name, value in option.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=sentence):
        check_settings(config, vllm_config)
