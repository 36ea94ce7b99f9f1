"""Bi-Mamba served by vLLM on a CPU, against the official numbers (golden_bimamba) and the transformers model.

One process; engines are shared by the tests of this module, for each takes seconds to start.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from served import engines, generate, greedy, prompt_logprobs

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

GOLDEN = Path(__file__).parent / "golden_bimamba"
CONTINUATION = json.loads((GOLDEN / "cases.json").read_text())["greedy"]["new_tokens"]
PROMPTS, CONTINUED, STEPS = range(4), 2, 24
FEW = {"kv_cache_memory_bytes": 64 << 20, "max_num_batched_tokens": 16, "block_size": 16}
"""16 tokens a step: longer prompts take several, among other rows' single ones."""


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    with engines() as make:
        yield lambda folder, **settings: make(folder, **(FEW | settings))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, cases: dict[str, Any]) -> dict[str, Path]:
    """The golden model and its variant with exact zeros, each latent and packed."""
    from safetensors.torch import load_file, save_file

    from nlrl_backbones.convert import convert

    root = tmp_path_factory.mktemp("bimamba")
    for name in ("plain", "zeros"):
        source = root / f"{name}_source"
        source.mkdir()
        shutil.copy(GOLDEN / "config.json", source)
        tensors = load_file(GOLDEN / "model.safetensors")
        if name == "zeros":
            for key, index in cases.items():
                if key.startswith("zero_variant.index."):
                    tensors[key.removeprefix("zero_variant.index.")].view(-1)[index.long()] = 0
        save_file(tensors, source / "model.safetensors")
        convert("bimamba", source, root / name)
        convert("bimamba", source, root / f"{name}_packed", packed=True)
    return {name: root / name for name in ("plain", "zeros", "plain_packed", "zeros_packed")}


@pytest.fixture(scope="module")
def latent(start: Callable[..., Any], folders: dict[str, Path]) -> Any:
    return start(folders["plain"], enable_prefix_caching=True)


@pytest.fixture(scope="module")
def packed(start: Callable[..., Any], folders: dict[str, Path]) -> Any:
    return start(folders["zeros_packed"])


@pytest.fixture(scope="module")
def by_bits(start: Callable[..., Any], folders: dict[str, Path]) -> Iterator[Any]:
    """What runs on a GPU, on the kernel's torch reference: products straight from the bits. With LoRA."""
    from nlrl_backbones.bimamba import vllm_linear

    patch = pytest.MonkeyPatch()
    patch.setattr(vllm_linear, "dense_on_this_device", lambda: False)
    yield start(folders["zeros_packed"], enable_lora=True, max_lora_rank=8)
    patch.undo()


def prompts_of(cases: dict[str, Any]) -> list[list[int]]:
    return [cases[f"prompt{k}.input_ids"].tolist() for k in PROMPTS]


def logprobs_of(logits: Any, ids: list[int]) -> list[float]:
    reference = logits.log_softmax(-1)
    return [reference[i, token].item() for i, token in enumerate(ids[1:])]


def assert_golden_logprobs(llm: Any, cases: dict[str, Any]) -> None:
    prompts = prompts_of(cases)
    for k, found in enumerate(prompt_logprobs(llm, prompts)):
        assert found == pytest.approx(logprobs_of(cases[f"prompt{k}.logits_f64"], prompts[k]), abs=1e-4), k


def assert_zero_variant(llm: Any, cases: dict[str, Any]) -> None:
    ids = cases["prompt2.input_ids"].tolist()
    (found,) = prompt_logprobs(llm, [ids])
    assert found == pytest.approx(logprobs_of(cases["zero_variant.logits_zero"], ids), abs=1e-4)
    other = logprobs_of(cases["zero_variant.logits_tiny"], ids)
    assert max(abs(a - b) for a, b in zip(found, other, strict=True)) > 0.1  # so the zeros are seen to matter


def reload(llm: Any, folder: Path) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
    llm.reset_prefix_cache()


def test_mixed_batch_then_the_same_from_the_prefix_cache(latent: Any, cases: dict[str, Any]) -> None:
    prompts = prompts_of(cases)
    first = greedy(latent, prompts, STEPS)
    assert first[CONTINUED] == CONTINUATION
    again = generate(latent, prompts, STEPS)
    assert sum(output.num_cached_tokens for output in again) >= 48
    assert [list(output.outputs[0].token_ids) for output in again] == first


def test_prompts_of_several_blocks_in_one_step(start: Callable[..., Any], folders: dict[str, Path]) -> None:
    """With prefix caching vLLM would take the states at block ends from within the step, which no CPU scan gives."""
    import torch
    from transformers import AutoModelForCausalLM

    llm = start(folders["plain"], enable_prefix_caching=True, max_num_batched_tokens=256)
    model: Any = AutoModelForCausalLM.from_pretrained(folders["plain"], dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 240, (n,), generator=generator).tolist() for n in (70, 35, 52)]
    for _ in range(2):  # together, then from the cache
        for ids, output in zip(prompts, generate(llm, prompts, 8, logprobs=0), strict=True):
            tokens = list(output.outputs[0].token_ids)
            with torch.no_grad():
                rows = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
            told = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
            assert told == pytest.approx(rows.max(-1).values.tolist(), abs=3e-4)


def test_each_prompt_alone_equals_transformers(latent: Any, cases: dict[str, Any], folders: dict[str, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    latent.reset_prefix_cache()
    model: Any = AutoModelForCausalLM.from_pretrained(folders["plain"], dtype=torch.float32)
    model.generation_config.eos_token_id = None
    for ids in prompts_of(cases):
        expected = model.generate(torch.tensor([ids]), max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
        assert greedy(latent, [ids], STEPS)[0] == expected[0, len(ids) :].tolist()


def test_prompt_logprobs_of_chunked_prompts(latent: Any, cases: dict[str, Any]) -> None:
    assert_golden_logprobs(latent, cases)


def test_packed_weights_with_zeros_and_reload_from_latent_ones(
    packed: Any, cases: dict[str, Any], folders: dict[str, Path]
) -> None:
    assert_zero_variant(packed, cases)
    for name in ("plain", "plain_packed"):  # a trainer's latent weights go into a packed engine
        reload(packed, folders[name])
        assert_golden_logprobs(packed, cases)
        assert greedy(packed, prompts_of(cases), STEPS)[CONTINUED] == CONTINUATION
        reload(packed, folders["zeros" if name == "plain" else "zeros_packed"])
        assert_zero_variant(packed, cases)


def test_products_from_bits_and_their_reload(by_bits: Any, cases: dict[str, Any], folders: dict[str, Path]) -> None:
    assert_zero_variant(by_bits, cases)
    reload(by_bits, folders["plain"])
    assert greedy(by_bits, prompts_of(cases), STEPS)[CONTINUED] == CONTINUATION
    reload(by_bits, folders["zeros_packed"])
    assert_zero_variant(by_bits, cases)


@pytest.mark.full
def test_norms_gate_and_residual_within_the_products_from_bits(
    start: Callable[..., Any], folders: dict[str, Path], cases: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs on one GPU without adapters, on the kernel's torch reference."""
    from nlrl_backbones.bimamba import vllm_linear

    monkeypatch.setattr(vllm_linear, "dense_on_this_device", lambda: False)
    calls, product = [], vllm_linear.normed_binary_linear
    counted = lambda *args, **kwargs: calls.append(None) or product(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(vllm_linear, "normed_binary_linear", counted)
    llm = start(folders["zeros_packed"])
    assert_zero_variant(llm, cases)
    assert calls
    reload(llm, folders["plain"])
    assert_golden_logprobs(llm, cases)
    assert greedy(llm, prompts_of(cases), STEPS)[CONTINUED] == CONTINUATION


def test_a_latent_engine_reloads_everything_its_tied_head_too(
    latent: Any, cases: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    shutil.copytree(folders["plain"], tmp_path / "moved")
    weights = {name: tensor.flip(0).contiguous() for name, tensor in load_file(_weights(folders["plain"])).items()}
    save_file(weights, _weights(tmp_path / "moved"), metadata={"format": "pt"})
    reload(latent, tmp_path / "moved")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "moved", dtype=torch.float32)
    for ids, found in zip(prompts_of(cases), prompt_logprobs(latent, prompts_of(cases)), strict=True):
        with torch.no_grad():
            expected = logprobs_of(model(torch.tensor([ids])).logits[0], ids)
        assert found == pytest.approx(expected, abs=1e-4)
    reload(latent, folders["plain"])
    assert_golden_logprobs(latent, cases)


def _weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def test_a_latent_engine_refuses_packed_weights(latent: Any, folders: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    tensors = load_file(folders["plain_packed"] / "model.safetensors")
    model = latent.llm_engine.engine_core.engine_core.model_executor.driver_worker.model_runner.model
    with pytest.raises(ValueError, match="cannot load packed weights"):
        list(model._binarised(tensors.items()))


def test_lora_adds_to_the_effective_matrix(
    by_bits: Any, folders: dict[str, Path], cases: dict[str, Any], tmp_path: Path
) -> None:
    """Equal to a transformers model whose projections have the adapter's product added."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    from vllm.lora.request import LoRARequest

    model: Any = AutoModelForCausalLM.from_pretrained(folders["zeros_packed"], dtype=torch.float32)
    generator, adapter = torch.Generator().manual_seed(3), {}
    for name, module in model.named_modules():
        if not name.endswith(("in_proj", "out_proj")):
            continue
        inputs, outputs = module.wscale.shape[1], module.weight_packed.shape[0]
        down = torch.randn(4, inputs, generator=generator) * inputs**-0.5
        up = torch.randn(outputs, 4, generator=generator) * 0.3
        adapter |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
        module.register_forward_hook(lambda _, args, y, down=down, up=up: y + 2.0 * args[0] @ down.T @ up.T)
    save_file(adapter, tmp_path / "adapter_model.safetensors")
    description = {"r": 4, "lora_alpha": 8, "target_modules": ["in_proj", "out_proj"], "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(description))
    prompts = prompts_of(cases)
    found = prompt_logprobs(by_bits, prompts, lora_request=LoRARequest("random", 1, str(tmp_path)))
    for ids, logprobs in zip(prompts, found, strict=True):
        with torch.no_grad():
            expected = logprobs_of(model(torch.tensor([ids])).logits[0], ids)
        assert logprobs == pytest.approx(expected, abs=3e-4)
    assert_zero_variant(by_bits, cases)  # without it the base is as it was


def test_bfloat16_by_mean_logprob(start: Callable[..., Any], cases: dict[str, Any], folders: dict[str, Path]) -> None:
    llm, prompts = start(folders["plain"], dtype="bfloat16"), prompts_of(cases)
    differences = [
        abs(a - b)
        for k, found in enumerate(prompt_logprobs(llm, prompts))
        for a, b in zip(found, logprobs_of(cases[f"prompt{k}.logits_f64"], prompts[k]), strict=True)
    ]
    assert 0 < sum(differences) / len(differences) < 0.1


@pytest.mark.parametrize(
    ("sizes", "lora", "sentence"),
    [
        ({"tensor_parallel_size": 3}, None, "8 heads cannot be split over 3 devices"),
        ({"pipeline_parallel_size": 2}, None, "not split over pipeline stages"),
        ({"tensor_parallel_size": 2}, object(), "LoRA on one device only"),
    ],
)
def test_what_cannot_be_combined_is_refused(sizes: dict[str, int], lora: Any, sentence: str) -> None:
    from nlrl_backbones.bimamba.config import BiMambaConfig
    from nlrl_backbones.bimamba.vllm_settings import BiMambaSettings

    config = BiMambaConfig(**json.loads((GOLDEN / "config.json").read_text()))
    parallel = SimpleNamespace(**({"tensor_parallel_size": 1, "pipeline_parallel_size": 1} | sizes))
    settings: Any = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=config), parallel_config=parallel, lora_config=lora
    )
    with pytest.raises(ValueError, match=sentence):
        BiMambaSettings.verify_and_update_config(settings)


@pytest.mark.parametrize("projection", ["in_proj", "out_proj"])
@pytest.mark.parametrize("format_", ["latent", "packed"])
def test_shards_of_a_projection_add_up(
    projection: str, format_: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two devices, played one after the other: rows of in_proj come together, columns of out_proj add up."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from transformers import AutoConfig

    from nlrl_backbones.bimamba import vllm_linear
    from nlrl_kernels.binary.straight_through import binary_weight

    monkeypatch.setattr(vllm_linear, "dense_on_this_device", lambda: False)
    monkeypatch.setattr(vllm_linear, "get_tensor_model_parallel_world_size", lambda: 2)
    name = f"backbone.layers.3.mixer.{projection}"
    stored = load_file(folders["zeros" if format_ == "latent" else "zeros_packed"] / "model.safetensors")
    latent = load_file(folders["zeros"] / "model.safetensors")
    whole = binary_weight(*(latent[f"{name}.{part}"] for part in ("weight", "wscale", "wbias")))
    config: Any = AutoConfig.from_pretrained(folders["zeros" if format_ == "latent" else "zeros_packed"])
    x, parts = torch.randn(5, whole.shape[1], generator=torch.Generator().manual_seed(0)), []
    for rank in range(2):
        monkeypatch.setattr(vllm_linear, "get_tensor_model_parallel_rank", lambda rank=rank: rank)
        method, layer = vllm_linear.BinaryLinearMethod(config, name), torch.nn.Module()
        rows = vllm_linear.local_rows(config, 2, rank)
        inputs = whole.shape[1] // 2 if projection == "out_proj" else whole.shape[1]
        outputs = len(rows) if projection == "in_proj" else len(whole)
        method.create_weights(layer, inputs, [outputs], whole.shape[1], len(whole), torch.float32)
        parameters: Any = layer.named_parameters()
        for part, parameter in parameters:
            tensor = stored[f"{name}.{part}"]
            parameter.weight_loader(parameter, tensor.sign() if part == "weight" else tensor)
        method.process_weights_after_loading(layer)
        mine = x.chunk(2, dim=1)[rank].contiguous() if projection == "out_proj" else x
        parts.append(method.apply(layer, mine))
        if projection == "in_proj":
            torch.testing.assert_close(parts[-1], F.linear(x, whole)[:, rows], atol=1e-5, rtol=1e-5)
    if projection == "out_proj":
        torch.testing.assert_close(parts[0] + parts[1], F.linear(x, whole), atol=1e-5, rtol=1e-5)
