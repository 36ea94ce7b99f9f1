"""Small random models of every family: all ways of running one agree, and all ways of storing one are lossless.

`make fuzz` draws 50 of each; the ordinary run two, and one to serve, for an engine takes seconds to start.
"""

import itertools
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from random_models import FAMILIES, VOCABULARY, build
from safetensors.torch import load_file
from served import engines, greedy, prompt_logprobs

from nlrl_backbones.check import check_backbone
from nlrl_backbones.convert import convert, family_module

LENGTHS = (1, 2, 9, 33, 47)
STEPS = 6
TOLERANCE = 2e-3
"""On log-probabilities in float32: other orders of summation, no more."""
_numbers = itertools.count()
pytestmark = [pytest.mark.slow]


def drawn(ordinary: int) -> settings:
    """The same examples in every run, ``ordinary`` of them where no number is set; failing ones are not shrunk."""
    return settings(
        max_examples=int(os.environ.get("NLRL_EXAMPLES", ordinary)),
        print_blob=True,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


def prompts(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_passes_agree_and_storage_is_lossless(family, tmp_path):
    @drawn(ordinary=2)
    @given(keys=FAMILIES[family])
    def agree(keys):
        number = next(_numbers)
        folder = build(keys, number, tmp_path / str(number))
        check_backbone(folder, length=40)
        there_and_back(family, folder, tmp_path / f"{number}-converted")

    agree()


def there_and_back(family: str, folder: Path, target: Path) -> None:
    """Our folder to the official layout, that converted, and the result compared byte by byte."""
    from safetensors.torch import save_file
    from transformers import AutoConfig

    weights, config = family_module(family), AutoConfig.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    official = weights.to_official(config, tensors)
    source = target.with_name(target.name + "-official")
    source.mkdir()
    save_file({name: tensor.contiguous().clone() for name, tensor in official.items()}, source / "model.safetensors")
    if family == "diffllama":
        config = weights.config_to_diffllama(config)
    config.save_pretrained(source)
    written = load_file(convert(family, source, target).folder / "model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == written[name].dtype
        assert tensor.numpy().tobytes() == written[name].numpy().tobytes(), name


@pytest.mark.vllm
@pytest.mark.full
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_served_model_is_the_trained_one(family, tmp_path):
    pytest.importorskip("vllm")
    from transformers import AutoModelForCausalLM

    @drawn(ordinary=1)
    @given(keys=FAMILIES[family])
    def agree(keys):
        number = next(_numbers)
        folder = build(keys, number, tmp_path / str(number))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        asked = prompts(number)
        with engines() as start:
            llm = start(folder, max_num_batched_tokens=16, num_gpu_blocks_override=256)
            continued, logprobs = greedy(llm, asked, STEPS), prompt_logprobs(llm, asked)
        for ids, found, told in zip(asked, continued, logprobs, strict=True):
            with torch.no_grad():
                expected = model(torch.tensor([ids + found])).logits[0].log_softmax(-1)
            own = torch.tensor([expected[i, token].item() for i, token in enumerate(ids[1:])])
            assert torch.allclose(torch.tensor(told), own, atol=TOLERANCE, rtol=TOLERANCE), (keys, len(ids))
            for position, token in enumerate(found, start=len(ids) - 1):
                assert expected[position, token] > expected[position].max() - TOLERANCE, (keys, len(ids), position)

    agree()
