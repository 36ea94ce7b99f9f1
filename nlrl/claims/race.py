"""A race: models of one size learn from the same batches in the same order, each with the rate that suits it.

Every contestant is trained with every learning rate of the grid for the shortest budget; the rate with the least loss
on the tuning batches is kept for the longer budgets. A budget is a training of its own with a whole schedule (linear
warm-up, cosine to 2 % of the peak): a loss in the middle of a schedule does not say what so many steps can do. Losses
are reported on held-out batches of a third stream.

A finished training is a line of `finishes.jsonl` and is not done again; the last weights of a contestant are kept.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from nlrl.claims.contestants import Contestant
from nlrl.claims.streams import Batch
from nlrl.pretrain.models import compile_layers, decay_groups, model_of
from nlrl.pretrain.train import Learner, PretrainConfig, train, weighted_loss
from nlrl_backbones.bimamba.distill import IGNORED, distillation_loss

TUNING, REPORTED = 1, 2
"""Added to ten times a race's seed: the streams that rates are chosen by, and that losses are reported on."""


@dataclass(frozen=True, slots=True)
class Race:
    """What is trained on what, how long, and how it is tuned."""

    contestants: tuple[Contestant, ...]
    stream: Callable[[int], IterableDataset]
    """Seed -> batches without end."""
    tokenizer: PreTrainedTokenizerFast
    folder: Path
    """Of this race and seed alone."""
    budgets: tuple[int, ...] = (250, 500, 1000, 2000)
    """Steps of each training, the shortest first."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    warmup: int = 50
    vocab_size: int = 640
    seed: int = 0
    measured: int = 8
    """Batches that a loss is the mean over."""
    workers: int = 0
    compiled: bool = False
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True, slots=True)
class Finish:
    """A training that is done; losses are mean cross-entropies of a weighted token, in nats."""

    contestant: str
    steps: int
    rate: float
    seed: int
    tokens: int
    seconds: float
    tuning_loss: float
    loss: float
    parameters: int


def race(rules: Race) -> Iterator[Finish]:
    """Every training of a race as it ends, contestant by contestant; teachers must stand before their pupils."""
    for contestant in rules.contestants:
        trials = []
        for rate in rules.rates:
            trials.append(_training(rules, contestant, rules.budgets[0], rate))
            yield trials[-1]
        best = min(trials, key=lambda trial: trial.tuning_loss)
        for steps in rules.budgets[1:]:
            yield _training(rules, contestant, steps, best.rate)


def finishes(folder: Path) -> list[Finish]:
    """What is done of the race in a folder."""
    path = folder / "finishes.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [Finish(**json.loads(line)) for line in lines]


def last_model(rules: Race, contestant: str) -> PreTrainedModel:
    """What a contestant has learned in the longest budget, for probes and pupils."""
    model: Any = AutoModelForCausalLM.from_pretrained(_place(rules, contestant), dtype=torch.float32)
    torch.nn.Module.to(model, rules.device)
    return model.eval()


def _training(rules: Race, contestant: Contestant, steps: int, rate: float) -> Finish:
    for done in finishes(rules.folder):
        if (done.contestant, done.steps, done.rate) == (contestant.name, steps, rate):
            return done
    torch.manual_seed(rules.seed)
    model: Any = model_of(contestant.shape, rules.vocab_size, rules.tokenizer)
    torch.nn.Module.to(model, rules.device)
    if rules.compiled:
        compile_layers(model)
    config = PretrainConfig(
        steps=steps, peak_lr=rate, warmup=max(1, min(rules.warmup, steps // 4)), max_seconds=math.inf
    )
    optimizer = torch.optim.AdamW(decay_groups(model, config.weight_decay), betas=(0.9, 0.95))
    objective = partial(_as_taught, last_model(rules, contestant.teacher)) if contestant.teacher else None
    begun, tokens = time.perf_counter(), 0
    loader = DataLoader(rules.stream(10 * rules.seed), batch_size=None, num_workers=rules.workers)
    for progress in train(
        [Learner(contestant.name, model.train(), optimizer, objective)], loader, config, rules.device
    ):
        tokens = progress.tokens
    seconds = time.perf_counter() - begun
    model.eval()
    tuning, loss = (loss_on(model, batches(rules, which), rules.device) for which in (TUNING, REPORTED))
    count = sum(parameter.numel() for parameter in model.parameters())
    done = Finish(contestant.name, steps, rate, rules.seed, tokens, seconds, tuning, loss, count)
    if steps == rules.budgets[-1]:
        model.save_pretrained(_place(rules, contestant.name))
    rules.folder.mkdir(parents=True, exist_ok=True)
    with (rules.folder / "finishes.jsonl").open("a") as file:
        file.write(json.dumps(asdict(done)) + "\n")
    return done


def _place(rules: Race, contestant: str) -> Path:
    return rules.folder / contestant.replace(" ", "-")


def _as_taught(teacher: PreTrainedModel, logits_BTV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Bi-Mamba's autoregressive distillation; tokens of no weight do not count."""
    ids_BT = batch["input_ids"]
    with torch.no_grad(), torch.autocast(ids_BT.device.type, dtype=torch.bfloat16, enabled=ids_BT.is_cuda):
        taught_BTV = teacher(input_ids=ids_BT, use_cache=False).logits
    following = F.pad(ids_BT[:, 1:], (0, 1), value=IGNORED).masked_fill(batch["weights"] == 0, IGNORED)
    return distillation_loss(logits_BTV, taught_BTV, following)


def batches(rules: Race, which: int) -> Iterator[Batch]:
    """The first batches of a stream that no training reads: `TUNING` or `REPORTED`."""
    return islice(iter(rules.stream(10 * rules.seed + which)), rules.measured)


@torch.no_grad()
def loss_on(model: PreTrainedModel, batches: Iterable[Batch], device: str) -> float:
    """Mean weighted loss of the next token over batches, in nats."""
    found = []
    for batch in batches:
        ids, weights = batch["input_ids"].to(device), batch["weights"].to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=ids, use_cache=False).logits
        found.append(weighted_loss(logits, ids, weights))
    return torch.stack(found).mean().item()


def steps_to(loss: float, curve: Sequence[tuple[int, float]]) -> float:
    """Steps after which a contestant's budgets reach a loss; between two of them, log(steps) is linear in the loss.

    inf when none reaches it. When even the shortest budget is better, its steps: an upper bound.
    """
    curve = sorted(curve)
    if not curve or curve[0][1] <= loss:
        return float(curve[0][0]) if curve else math.inf
    for (steps, above), (more, below) in pairwise(curve):
        if below <= loss:
            return steps * (more / steps) ** ((above - loss) / (above - below))
    return math.inf
