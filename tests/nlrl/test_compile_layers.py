"""Layers compiled one by one for a training compute what they compute as they stand, at every length."""

import pytest
import torch

from nlrl.pretrain.models import compile_layers, new_model
from nlrl.pretrain.shapes import SHAPES
from nlrl.pretrain.tokenizer import train_tokenizer


@pytest.mark.full
@pytest.mark.parametrize("backbone", SHAPES)
def test_compiled_layers_give_the_same_loss_and_gradients(backbone):
    tokenizer = train_tokenizer(["up down left right"] * 9, 300)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(new_model(backbone, 300, tokenizer).train())
    compile_layers(models[1])
    for shape in [(3, 24), (2, 40), (5, 16)]:
        ids = torch.randint(0, 300, shape)
        for model in models:
            model.zero_grad()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        for (name, plain), compiled in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(compiled.grad, plain.grad, rtol=1e-3, atol=1e-5, msg=name)
