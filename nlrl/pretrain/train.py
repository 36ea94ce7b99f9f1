"""Train models in the box from scratch: `nlrl pretrain --backbone hymba --out DIR`.

One GPU, under ten minutes; one file read top to bottom. Steps:

1. train the tokenizer on a sample of the corpus;
2. worker processes generate and tokenise the corpus as it is consumed, no example is seen twice;
3. AdamW on the cross-entropy of the replies, and with a small weight of the prompts: predicting a random walk's next
   observation teaches where moves lead, when they bump and what a place looked like before;
4. weights rounded to bfloat16, graded on examples of another seed, written with tokenizer and card.

A training may be done in several sittings (`pause_seconds`): the same call on the same folder goes on from the snapshot
of the last one.

Several backbones train side by side on the same batches in the same order, each with an optimizer of its own: what
differs between them is the architecture alone.

The same seed, number of workers and library versions give the same corpus; the weights then agree up to the
non-determinism of the GPU's atomics.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nlrl.errors import ConfigError, UnknownNameError
from nlrl.pretrain import snapshot
from nlrl.pretrain.corpus import SHARES, Example, examples
from nlrl.pretrain.data import Corpus
from nlrl.pretrain.grade import grade
from nlrl.pretrain.models import compile_layers, decay_groups, new_model, normalize
from nlrl.pretrain.shapes import SHAPES
from nlrl.pretrain.snapshot import BEGINNING, Stand
from nlrl.pretrain.tokenizer import save_tokenizer, train_tokenizer

SNAPSHOT_EVERY = 60.0
"""Seconds of training that a crash may cost."""
HELD_OUT = 8_192
"""Examples that a finished model is graded on."""


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """A training run; the shapes of the models stand in `SHAPES`."""

    backbones: tuple[str, ...] = ("hymba",)
    games: tuple[str, ...] = ("maze",)
    """Whose texts the models learn: names of `nlrl.pretrain.corpus.SHARES`."""
    seed: int = 0
    steps: int = 4640
    """Optimizer steps of each model: 304 million tokens, padding included."""
    batch_tokens: int = 65536
    peak_lr: float = 3e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    workers: int = 14
    vocab_size: int | None = None
    """Rows of the embedding; None for 640 with the maze alone and 768 with other games, whose worths are tokens."""
    max_seconds: float = 500.0
    """The schedule is cut to what fits: the learning rate reaches its end by then even if `steps` was not reached."""
    pause_seconds: float | None = None
    """Stop after so many seconds of this sitting, with a snapshot and without hurrying the schedule."""
    compiled: bool = False
    """Compile the models' layers, each kind of layer once for lengths of any size."""

    @property
    def entries(self) -> int:
        """`vocab_size`, or what it is for these games."""
        return self.vocab_size or (640 if self.games == ("maze",) else 768)


Objective = Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]


@dataclass(slots=True)
class Learner:
    """A model in training with what is its own."""

    backbone: str
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    objective: Objective | None = None
    """Its loss from logits and batch; None: `weighted_loss` of the text."""
    losses: list[torch.Tensor] = field(default_factory=list)

    def recent_loss(self) -> float:
        """Mean loss of the last 100 steps."""
        return torch.stack(self.losses[-100:]).mean().item()


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands: `tokens` include padding, `losses` are means of the last 100 steps by backbone."""

    step: int
    tokens: int
    seconds: float
    lr: float
    losses: dict[str, float]
    done: float
    """Share of the schedule, 1 at its end."""
    snapshot: bool = False
    """Whether it is time to keep what was learned."""


def pretrain(config: PretrainConfig, out: Path) -> list[dict[str, Any]]:
    """Train, grade and write the models; returns their cards (also written as `nlrl_card.json`).

    One backbone goes to `out` itself, several to a folder each below it. A training that was paused or killed goes on
    from its snapshot; one that pauses returns no cards.

    Raises:
        UnknownNameError: a backbone without an entry in `SHAPES`, or a game without texts.
        ConfigError: `out` holds the snapshot of another training.
    """
    for backbone in config.backbones:
        if backbone not in SHAPES:
            raise UnknownNameError("shape of a boxed model", backbone, SHAPES)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape, which takes longer than a step
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = tokenizer_for(config)
    learners = [_learner(backbone, config, tokenizer, device) for backbone in config.backbones]
    folders = {one.backbone: out / one.backbone if len(learners) > 1 else out for one in learners}
    stand = _taken_up(learners, folders, config)
    loader = DataLoader(
        Corpus(tokenizer, config.seed + 2 + 1_000_003 * stand.sittings, config.batch_tokens, config.games),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        pin_memory=device == "cuda",
    )
    progress: Progress | None = None
    for progress in train(learners, loader, config, device, stand):
        shown = " ".join(f"{name} {loss:.4f}" for name, loss in progress.losses.items())
        rate = progress.tokens / progress.seconds
        print(f"step {progress.step} loss {shown} {rate:,.0f} tokens/s each {progress.seconds:.0f} s", flush=True)
        if progress.snapshot:
            now = replace(stand, step=progress.step, tokens=progress.tokens, seconds=progress.seconds)
            for one in learners:
                snapshot.save(folders[one.backbone], one.model, one.optimizer, now, _identity(config))
    assert progress is not None
    if progress.done < 1:
        print(f"paused at step {progress.step} of {config.steps}; the same command goes on", flush=True)
        return []
    held_out = list(islice(examples(seed=config.seed + 900_001, games=config.games), HELD_OUT))
    return [_finished(one, folders[one.backbone], progress, config, tokenizer, held_out) for one in learners]


def _finished(
    learner: Learner,
    folder: Path,
    progress: Progress,
    config: PretrainConfig,
    tokenizer: PreTrainedTokenizerFast,
    held_out: Sequence[Example],
) -> dict[str, Any]:
    """Round, grade and write a model; its card."""
    for module in learner.model.modules():  # what was compiled for training knows no cache
        module._compiled_call_impl = None
    model = _to(_to(learner.model, torch.bfloat16), torch.float32)
    device = next(model.parameters()).device.type
    card = {
        "backbone": learner.backbone,
        "prompts": "compact",
        "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(progress.seconds, 1),
        **grade(model, tokenizer, held_out, device),
        "steps": progress.step,
        "tokens": progress.tokens,
        "loss": progress.losses[learner.backbone],
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    folder.mkdir(parents=True, exist_ok=True)
    _to(model, torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    (folder / "nlrl_card.json").write_text(json.dumps(card, indent=2) + "\n")
    snapshot.remove(folder)
    return card


def _taken_up(learners: Sequence[Learner], folders: Mapping[str, Path], config: PretrainConfig) -> Stand:
    """Where the training stands: at its beginning, or where the snapshots of all its models were made."""
    stands = {
        snapshot.load(folders[one.backbone], one.model, one.optimizer, _identity(config)) or BEGINNING
        for one in learners
    }
    if len(stands) > 1:
        raise ConfigError(
            "The snapshots of these backbones are of different moments; train each in a folder of its own."
        )
    return stands.pop()


def _identity(config: PretrainConfig) -> dict[str, Any]:
    """What must be the same in every sitting."""
    free = ("backbones", "workers", "pause_seconds", "max_seconds", "compiled")
    return {key: value for key, value in asdict(config).items() if key not in free}


def tokenizer_for(config: PretrainConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of a training: one for the maze alone, and one for all games, whichever of them are learned."""
    alone = config.games == ("maze",)
    sample = islice(examples(seed=config.seed + 1, games=config.games if alone else tuple(SHARES)), 20_000)
    return train_tokenizer((f"{e.prompt}\n{e.reply}" for e in sample), config.entries, lexicon=not alone)


def _learner(backbone: str, config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, device: str) -> Learner:
    torch.manual_seed(config.seed)
    model = _to(new_model(backbone, config.entries, tokenizer), device)
    count = sum(p.numel() for p in model.parameters())
    print(f"{backbone}: {count:,} parameters, vocabulary {len(tokenizer)}, {device}", flush=True)
    optimizer = torch.optim.AdamW(decay_groups(model, config.weight_decay), betas=(0.9, 0.95), fused=device == "cuda")
    if config.compiled:
        compile_layers(model)
    return Learner(backbone, model.train(), optimizer)


def _to(model: PreTrainedModel, target: str | torch.dtype) -> PreTrainedModel:
    """`model.to`, whose annotation in transformers loses the type."""
    return torch.nn.Module.to(model, target)  # type: ignore[return-value,arg-type]


def train(
    learners: Sequence[Learner],
    loader: Iterable[dict[str, torch.Tensor]],
    config: PretrainConfig,
    device: str,
    stand: Stand = BEGINNING,
) -> Iterator[Progress]:
    """Every model takes one step on each batch; says every 100 steps, and at the end or pause, where it stands."""
    begun, tokens, seconds = time.perf_counter() - stand.seconds, stand.tokens, stand.seconds
    done = max(stand.step / config.steps, stand.seconds / config.max_seconds)
    kept = stand.seconds
    pause = math.inf if config.pause_seconds is None else stand.seconds + config.pause_seconds
    for step, batch in enumerate(loader, start=stand.step + 1):
        lr = config.peak_lr * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        for learner in learners:
            warm = min(1.0, (step - stand.warm_from) / config.warmup)
            rise = warm if getattr(learner.model, "wants_warmup", True) else 1.0
            learner.losses.append(_step(learner, batch, lr * rise, config.clip))
        tokens += batch["input_ids"].numel()
        seconds = time.perf_counter() - begun
        done = min(1.0, max(step / config.steps, seconds / config.max_seconds))
        if step % 100 == 0 or done >= 1.0 or seconds >= pause:
            due = done < 1.0 and (seconds >= pause or seconds - kept > SNAPSHOT_EVERY)
            kept = seconds if due else kept
            losses = {one.backbone: one.recent_loss() for one in learners}
            yield Progress(step, tokens, seconds, lr, losses, done, due)
        if done >= 1.0 or seconds >= pause:
            return


def _step(learner: Learner, batch: dict[str, torch.Tensor], lr: float, clip: float) -> torch.Tensor:
    device = batch["input_ids"].device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        logits_BTV = learner.model(input_ids=batch["input_ids"], use_cache=False).logits
    if learner.objective is None:
        loss = weighted_loss(logits_BTV, batch["input_ids"], batch["weights"])
    else:
        loss = learner.objective(logits_BTV, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.model.parameters(), clip)
    for group in learner.optimizer.param_groups:
        group["lr"] = lr
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    normalize(learner.model)
    return loss.detach()


def weighted_loss(logits_BTV: torch.Tensor, input_ids_BT: torch.Tensor, weights_BT: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token, in float32."""
    flat = logits_BTV[:, :-1].flatten(0, 1).float()
    losses = F.cross_entropy(flat, input_ids_BT[:, 1:].flatten(), reduction="none")
    weights = weights_BT[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()
