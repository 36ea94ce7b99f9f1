"""A training as data: how, on what, and what came of it. The defaults are the paper's (arXiv 2411.14251, appendix)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nlrl.distill.dataset import TokenPair
from nlrl.errors import ConfigError

TOKENS_PER_PASS = 8192
LOGITS_PER_PASS = 2**27
"""Half a GiB in float32; a training holds several such tensors at once."""


@dataclass(frozen=True, slots=True)
class TrainingKnobs:
    """AdamW at a constant learning rate on whole batches; a model in the box wants about a hundred times the rate."""

    learning_rate: float = 1e-5
    epochs: int = 2
    """Of one iteration's examples."""
    batch: int = 64
    """Examples an optimizer step, over all processes."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest norm of a step's gradient; 0 for no limit."""
    carry: bool = True
    """Whether the optimizer's moments go on from iteration to iteration; they take twice the float32 weights."""
    keep_states: int | None = 1
    """Of how many of the latest checkpoints what a training goes on from is kept; None of all."""
    lora_rank: int = 0
    """0 trains every weight; else adapters of this rank on every projection, merged into what the engine gets."""
    lora_alpha: int = 32
    teacher: Path | None = None
    """A model of the same vocabulary whose distributions are learned (see `soft`); None to learn replies alone."""
    soft: Literal["teacher", "both"] = "teacher"
    """Learn the teacher's distribution instead of the reply's tokens, or the mean of both losses."""
    tokens_per_pass: int | None = None
    """Most tokens, padding included, in one forward pass of a process: what bounds the memory. None for 8,192, or for
    fewer where a vocabulary is large: the logits of a pass are then `LOGITS_PER_PASS` numbers at most.
    """
    processes: int = 1
    """Of training; above 1 they are started by torchrun, one a GPU, or on a CPU as many as this."""
    sharded: bool = False
    """Divide weights, gradients and moments among the processes (FSDP)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """On a CPU; 0 for one a core."""

    def __post_init__(self) -> None:
        low = {"epochs": 1, "batch": 1, "keep_states": 1, "tokens_per_pass": 1, "processes": 1, "lora_alpha": 1}
        for name, least in {**low, "lora_rank": 0, "threads": 0, "weight_decay": 0, "clip": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} of a training is {least} or more, not {value}.")
        if not self.learning_rate > 0:
            raise ConfigError(f"The learning rate of a training is above 0, not {self.learning_rate}.")
        if self.sharded and self.carry:
            raise ConfigError("The optimizer of a sharded training is made anew each time: set carry = false.")


class Stopped(Exception):
    """The training was told to stop; nothing of it is kept."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a training is made of."""

    base: Path
    """The model's first folder: architecture, dtypes, tokenizer, and the weights that are not trained."""
    state: Path | None
    """`training/` of the checkpoint to go on from; None to begin with the weights of `base`."""
    pairs: tuple[TokenPair, ...]
    knobs: TrainingKnobs
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training says of itself."""

    losses_T: tuple[float, ...]
    """Mean loss a target token, one an optimizer step."""
    seconds: float
    peak_bytes: int
    """Most memory of the accelerator that tensors of this process held at once, an engine's beside it included; 0 on a
    CPU."""
