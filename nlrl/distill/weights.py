"""A student's weights: read for a training, written for the engine and for the training that follows.

What is trained is float32 and is stored so, under `training/` of a checkpoint. What the engine reads beside it is
rounded, tensor by tensor, to the dtype that the model's first folder has there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import nlrl_backbones  # noqa: F401  registers the architectures with transformers
from nlrl.checkpoints import STATE
from nlrl.distill.knobs import Job, TrainingKnobs
from nlrl.errors import ConfigError

PARAMETERS, _MOMENTS = "parameters.safetensors", "optimizer.safetensors"


def load_model(job: Job) -> Any:
    """The model's first weights in float32, with new adapters when they are asked for."""
    config = AutoConfig.from_pretrained(job.base, trust_remote_code=False)
    if job.knobs.lora_rank and hasattr(config, "adapt_meta_tokens"):
        config.adapt_meta_tokens = True  # else merging would give another model, see Hymba's README
    model: Any = AutoModelForCausalLM.from_pretrained(
        job.base, config=config, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    )
    return _adapted(model, job.knobs) if job.knobs.lora_rank else model


def _adapted(model: Any, knobs: TrainingKnobs) -> Any:
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    linear = [n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head]
    # Without a task_type, else peft passes arguments that not every architecture has.
    shape = LoraConfig(r=knobs.lora_rank, lora_alpha=knobs.lora_alpha, target_modules=linear)
    return get_peft_model(model, shape)


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def restore(model: Any, state: Path | None) -> None:
    """Put the trained parameters of an earlier training in their places.

    Raises:
        ConfigError: that training was of other parameters.
    """
    if state is None:
        return
    from safetensors.torch import load_file

    kept, trained = load_file(state / PARAMETERS), _trained(model)
    if kept.keys() != trained.keys():
        raise ConfigError(
            f"The training state in '{state}' is of other parameters; go on with the lora_rank it was begun with."
        )
    for name, parameter in trained.items():
        parameter.copy_(kept[name])


def make_optimizer(model: Any, job: Job) -> torch.optim.Optimizer:
    """AdamW, with the moments of the training before."""
    from safetensors.torch import load_file

    knobs, trained = job.knobs, _trained(model)
    own = getattr(model, "parameter_groups", None)
    groups = own(knobs.weight_decay) if own is not None else _groups(trained, knobs.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=knobs.learning_rate)
    if knobs.carry and job.state is not None and (job.state / _MOMENTS).is_file():
        kept = load_file(job.state / _MOMENTS)
        for name, parameter in trained.items():
            if f"{name}:step" in kept:
                parts = ("step", "exp_avg", "exp_avg_sq")
                optimizer.state[parameter] = {part: kept[f"{name}:{part}"] for part in parts}
    return optimizer


def _groups(trained: Mapping[str, torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices only, if at all: never on norms, biases, scales and what a scan decays by."""
    matrices = [p for name, p in trained.items() if p.ndim == 2 and "A_log" not in name and "memory" not in name]
    ids = {id(p) for p in matrices}
    rest = [p for p in trained.values() if id(p) not in ids]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


@torch.no_grad()
def write_model(model: Any, job: Job, out: Path, optimizer: Any, sharded: Mapping[str, torch.Tensor] | None) -> None:
    """The engine's folder, and `training/` in it. `sharded` is the whole state where `model` lies in parts."""
    from safetensors.torch import save_file

    (out / STATE).mkdir(parents=True, exist_ok=True)
    names = list(_trained(model))
    trained = sharded if sharded is not None else _trained(model)
    save_file({name: trained[name].detach().float().cpu().contiguous() for name in names}, out / STATE / PARAMETERS)
    if optimizer is not None and job.knobs.carry:
        moments = {
            f"{name}:{part}": value.detach().cpu().contiguous()
            for name, parameter in _trained(model).items()
            for part, value in optimizer.state.get(parameter, {}).items()
        }
        save_file(moments, out / STATE / _MOMENTS)
    if job.knobs.lora_rank:
        model = model.merge_and_unload()
        if hasattr(model.config, "adapt_meta_tokens"):
            model.config.adapt_meta_tokens = False
    state = model.state_dict() if sharded is None or job.knobs.lora_rank else dict(sharded)
    model.save_pretrained(out, state_dict=_rounded(state, _dtypes(job.base)))
    for path in job.base.iterdir():
        if path.suffix in (".json", ".jinja", ".model", ".txt") and path.name not in _OWN:
            shutil.copyfile(path, out / path.name)


_OWN = ("model.safetensors.index.json", "nlrl_card.json")
"""Files of the first folder that speak of its weights."""


def _rounded(state: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, torch.Tensor]:
    """The tensors that the first folder has, in its dtypes (a float32 lambda among bfloat16); a tied head is not twice.

    From a folder of another layout, whose names transformers translates: all of them, in its commonest dtype.
    """
    if dtypes.keys() <= state.keys():
        return {name: state[name].to(dtype) for name, dtype in dtypes.items()}
    usual = max(set(dtypes.values()), key=list(dtypes.values()).count)
    return {name: tensor.to(usual) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _dtypes(folder: Path) -> dict[str, torch.dtype]:
    from safetensors import safe_open

    found: dict[str, torch.dtype] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_slice(name)[:0].dtype for name in file.keys()}  # noqa: SIM118
    return found
