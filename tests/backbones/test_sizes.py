"""Sizes from configurations alone, against models that are built without storage, and what `nlrl backbones` says."""

from typing import Any

import pytest
import torch

import nlrl_backbones  # noqa: F401  registers the architectures
from nlrl_backbones.shapes import SHAPES
from nlrl_backbones.sizes import cache_size, parameter_count


def configuration(shape: str) -> Any:
    from transformers import AutoConfig

    keys = {key: value for key, value in SHAPES[shape].items() if key not in ("model_type", "architectures")}
    return AutoConfig.for_model(SHAPES[shape]["model_type"], **keys)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_model(shape):
    from transformers import AutoModelForCausalLM

    config = configuration(shape)
    if config.model_type == "bimamba":
        config.weight_format = "latent"  # packed, a byte holds eight of the weights that are counted
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    assert parameter_count(config) == sum(parameter.numel() for parameter in model.parameters())


def test_a_kind_that_is_not_known_is_said():
    with pytest.raises(ValueError, match="size of model type 'gpt2' is not known"):
        parameter_count(type("Config", (), {"model_type": "gpt2"})())


def test_the_list_of_backbones_shows_every_shape(capsys, monkeypatch):
    from nlrl.convert import print_backbones

    monkeypatch.setenv("COLUMNS", "400")
    print_backbones()
    said = capsys.readouterr().out
    for shape in SHAPES:
        config = configuration(shape)
        bytes_ = cache_size(config).per_token or cache_size(config).per_sequence
        assert f"as {shape}: {parameter_count(config):,} parameters; cache: {bytes_:,}" in said
