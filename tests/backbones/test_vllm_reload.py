"""Reloads in place, on a CPU, of what vLLM keeps packed copies of: all of it follows the new weights."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from random_models import build
from served import engines, generate, prompt_logprobs

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

PROMPTS, STEPS = [[5, 9, 60, 33, 2, 71, 8], [90, 4, 4, 17]], 6
SMALL = {"kv_cache_memory_bytes": 16 << 20, "max_model_len": 64}


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Any]]:
    with engines() as make:
        yield lambda folder, **settings: make(folder, **(SMALL | settings))


def reload(llm: Any, folder: Path) -> None:
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
    llm.reset_prefix_cache()


def assert_follows(llm: Any, folder: Path, tolerance: float = 2e-4) -> None:
    """The greedy continuations and their log-probabilities are those of transformers in float32 with these weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for ids, output in zip(PROMPTS, generate(llm, PROMPTS, STEPS, logprobs=0), strict=True):
        tokens = list(output.outputs[0].token_ids)
        found = [step[token].logprob for step, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
        with torch.no_grad():
            rows_TV = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        assert found == pytest.approx(rows_TV.max(-1).values.tolist(), abs=tolerance)


def write_llama(folder: Path, seed: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=True, max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapters", [False, True])
def test_a_tied_head_of_vllms_own_llama_follows(start: Callable[..., Any], tmp_path: Path, adapters: bool) -> None:
    old, new = write_llama(tmp_path / "old", 0), write_llama(tmp_path / "new", 1)
    llm = start(old, enable_lora=adapters, max_lora_rank=8)
    assert_follows(llm, old)
    for folder in (new, old):
        reload(llm, folder)
        assert_follows(llm, folder)


BIMAMBA = {
    "model_type": "bimamba", "d_model": 64, "n_layer": 2, "tie_embeddings": True,
    "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 16, "chunk_size": 16},
}  # fmt: skip


def moved(folder: Path, target: Path, kind: str) -> Path:
    """A copy of a model whose tensors of one kind are others."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(kind):
            weights[name] = weights[name].flip(0).contiguous() * 1.5
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.fixture(scope="module")
def bimamba(start: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """An engine in bfloat16 and the folder it was started on."""
    folder = build(BIMAMBA, 0, tmp_path_factory.mktemp("bimamba") / "old")
    return start(folder, dtype="bfloat16", max_num_seqs=4), folder


def test_bimambas_convolution_follows_in_bfloat16(
    start: Callable[..., Any], bimamba: tuple[Any, Path], tmp_path: Path
) -> None:
    """Where vLLM packs convolutions for a CPU, it is the mixer's own view of them that multiplies."""
    llm, old = bimamba
    new = moved(old, tmp_path / "new", "conv1d.weight")
    before = prompt_logprobs(llm, PROMPTS)
    reload(llm, new)
    found = prompt_logprobs(llm, PROMPTS)
    assert found == prompt_logprobs(start(new, dtype="bfloat16", max_num_seqs=4), PROMPTS)
    assert max(abs(a - b) for a, b in zip(found[0], before[0], strict=True)) > 0.1  # so the convolution matters
    reload(llm, old)
    assert prompt_logprobs(llm, PROMPTS) == before


def test_a_part_of_a_projection_is_refused_and_a_whole_reload_mends(bimamba: tuple[Any, Path]) -> None:
    """The engine keeps what matrix and scales come to: scales alone would multiply whatever memory holds."""
    from safetensors.torch import load_file

    llm, folder = bimamba
    before = prompt_logprobs(llm, PROMPTS)
    scales = [(name, t) for name, t in load_file(folder / "model.safetensors").items() if name.endswith("wscale")]
    with pytest.raises(ValueError, match=r"mixer\.in_proj came without its matrix or one of its scales"):
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(scales)})
    reload(llm, folder)
    assert prompt_logprobs(llm, PROMPTS) == before


def test_a_convolution_of_any_width_is_served_in_bfloat16(start: Callable[..., Any], tmp_path: Path) -> None:
    """78 channels, which vLLM's packing of convolutions for a CPU refuses; within twice bfloat16's own noise."""
    import torch
    from transformers import AutoModelForCausalLM

    sizes = {"layer": "Mamba2", "d_state": 3, "headdim": 4, "chunk_size": 16}
    folder = build(BIMAMBA | {"d_model": 36, "ssm_cfg": sizes}, 0, tmp_path / "narrow")
    ids = PROMPTS[0]
    exact, rounded = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        for dtype in (torch.float32, torch.bfloat16)
    )
    wanted, noisy = ([rows[i, token].item() for i, token in enumerate(ids[1:])] for rows in (exact, rounded))
    (found,) = prompt_logprobs(start(folder, dtype="bfloat16", max_num_seqs=4), [ids])
    noise = sum(abs(a - b) for a, b in zip(noisy, wanted, strict=True))
    assert sum(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 2 * noise
