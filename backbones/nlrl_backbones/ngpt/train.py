"""Training nGPT: its matrices are made of unit vectors again after every optimizer step.

Source: Loshchilov et al. 2024, arXiv 2410.01131, section 2.6, and the published ``train.py`` (NVIDIA/ngpt): clip the
gradient, step, normalise; no weight decay, no warm-up. The GPT baseline has nothing to normalise, a weight decay on its
matrices, and a warm-up.

    trainer = Trainer(model=model, ..., callbacks=[NormalizeMatrices()])   # or any trainer of TRL
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from nlrl_backbones.ngpt.config import NGPTConfig
from nlrl_backbones.ngpt.weights import COLUMNS, ROWS
from nlrl_kernels import normalize_vectors_


@torch.no_grad()
def normalize_matrices(model: nn.Module) -> None:
    """Give every vector of the model's width in every matrix unit length, in place; scales and norms stay.

    Along the last axis for the embeddings, the head, ``query``, ``key``, ``value`` and ``c_fc``; along the first for
    ``att_c_proj`` and ``mlp_c_proj``. Computed in float32 or wider and rounded to the parameter's dtype: 16-bit weights
    have unit length to about 1e-3, as in official checkpoints. A zero vector becomes NaN, there being no epsilon.

    The model may be wrapped (by data parallelism, torch.compile or peft). Frozen matrices are left as they are, and of
    the baseline everything.

    Raises:
        ValueError: there is no nGPT model in ``model``, or its matrices are not whole on this device.
    """
    trained = [(matrix, axis) for matrix, axis in _matrices(_find(model)) if matrix.requires_grad]
    normalize_vectors_([matrix for matrix, _ in trained], [axis for _, axis in trained])


class NormalizeMatrices(TrainerCallback):
    """For the trainers of transformers and TRL: normalises before the first and after every optimizer step.

    transformers clips the gradient before, and asks for logs, evaluation and checkpoints after ``on_optimizer_step``;
    so nothing ever sees weights that a step has moved off the sphere.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Normalise the weights that training starts from."""
        normalize_matrices(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, *, model: nn.Module, **_: Any) -> None:
        """Normalise what the optimizer has just changed."""
        normalize_matrices(model)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW by the published recipe: no weight decay at all in nGPT; in the baseline on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if _find(model).config.use_nGPT:
        return [{"params": trained, "weight_decay": 0.0}]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _find(model: nn.Module) -> Any:
    """The NGPTForCausalLM in a possibly wrapped model."""
    for module in model.modules():
        if isinstance(getattr(module, "config", None), NGPTConfig) and hasattr(module, "lm_head"):
            return module
    raise ValueError(f"There is no nGPT model in this {type(model).__name__}: give an NGPTForCausalLM.")


def _matrices(model: Any) -> Iterator[tuple[torch.Tensor, int]]:
    """Each matrix to normalise, and the axis along which it has the model's width."""
    config: NGPTConfig = model.config
    if not config.use_nGPT:
        return
    rows = [model.transformer.wte, model.lm_head, *(getattr(b, name) for b in model.transformer.h for name in ROWS)]
    columns = [getattr(b, name) for b in model.transformer.h for name in COLUMNS]
    for modules, axis in ((rows, -1), (columns, 0)):
        for module in modules:
            if module.weight.ndim != 2 or module.weight.shape[axis] != config.n_embd:
                raise ValueError(
                    f"A matrix of shape {list(module.weight.shape)} is not whole on this device: "
                    "normalise with the parameters gathered, or train without sharding them."
                )
            yield module.weight, axis
