"""Where a training stands, on disk, so that a machine lent for minutes can train for an hour.

A snapshot of a model is a folder `snapshot` beside the finished model's files: its weights in float32, AdamW's moments
(`optimizer.safetensors`) and `state.json` with the steps done and the config it belongs to. The moments may be left
behind when space is short: training then goes on from the weights with fresh moments and another warm-up.

A training that goes on reads a corpus stream of its own, so no example is seen twice and none of the old one's is
repeated; its batches are others than those an unbroken training would have seen.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from nlrl.errors import ConfigError

FOLDER = "snapshot"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Stand:
    """How far a training is."""

    step: int = 0
    tokens: int = 0
    """Padding included."""
    seconds: float = 0.0
    """Spent in training, over all its sittings."""
    sittings: int = 0
    """How often it was taken up; each reads a corpus stream of its own."""
    warm_from: int = 0
    """Step from which the warm-up counts: that of the last sitting which had to begin with fresh moments."""


BEGINNING = Stand()


def save(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, stand: Stand, config: Mapping[str, Any]
) -> None:
    """Write the snapshot of a model below `folder`; the one that was there is replaced file by file."""
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    moments: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if state := optimizer.state.get(parameter):
            moments[f"{name}.step"] = torch.as_tensor(state["step"], dtype=torch.float32).reshape(1)
            moments |= {f"{name}.{key}": state[key].contiguous() for key in _MOMENTS}
    weights = {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}
    _replace(place / "model.safetensors", weights)
    _replace(place / "optimizer.safetensors", moments)
    said = {"step": stand.step, "tokens": stand.tokens, "seconds": stand.seconds, "sittings": stand.sittings}
    draft = place / "state.json.new"
    draft.write_text(json.dumps({**said, "warm_from": stand.warm_from, "config": _plain(config)}, indent=2) + "\n")
    draft.replace(place / "state.json")


def load(
    folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]
) -> Stand | None:
    """Take up the snapshot below `folder` into `model` and `optimizer`; None when there is none.

    Raises:
        ConfigError: the snapshot is of another training; the sentence names what differs.
    """
    place = folder / FOLDER
    if not (place / "state.json").is_file():
        return None
    state = json.loads((place / "state.json").read_text())
    then, now = state["config"], _plain(config)
    if different := sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key)):
        raise ConfigError(
            f"The snapshot in '{folder}' is of a training with another {', '.join(different)}; "
            "repeat that, or choose another --out."
        )
    weights = load_file(place / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    warm_from = state["warm_from"]
    if (place / "optimizer.safetensors").is_file():
        moments = load_file(place / "optimizer.safetensors")
        for name, parameter in model.named_parameters():
            if f"{name}.step" in moments:
                optimizer.state[parameter] = {
                    "step": moments[f"{name}.step"].reshape(()).to(_step_device(optimizer, parameter)),
                    **{key: moments[f"{name}.{key}"].to(parameter.device) for key in _MOMENTS},
                }
    else:
        warm_from = state["step"]
    return Stand(state["step"], state["tokens"], state["seconds"], state["sittings"] + 1, warm_from)


def remove(folder: Path) -> None:
    """Take the snapshot away when the model is finished."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _step_device(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> torch.device:
    """A fused optimizer counts its steps on the device, an ordinary one on the processor."""
    return parameter.device if optimizer.defaults.get("fused") else torch.device("cpu")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as it comes back from JSON."""
    return json.loads(json.dumps(dict(config)))


def _replace(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    draft = path.with_suffix(".new")
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, draft)
    draft.replace(path)
