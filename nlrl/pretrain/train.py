"""Train a model in the box from scratch: `nlrl pretrain --backbone hymba --out DIR`.

One GPU, under ten minutes; one file read top to bottom. Steps:

1. train the tokenizer on a sample of the corpus;
2. worker processes generate and tokenise the corpus as it is consumed, no example is seen twice;
3. AdamW on the cross-entropy of the replies, and with a small weight of the prompts: predicting a random walk's next
   observation teaches where moves lead, when they bump and what a place looked like before;
4. weights rounded to bfloat16, graded on examples of another seed, written with tokenizer and card.

The same seed, number of workers and library versions give the same corpus; the weights then agree up to the
non-determinism of the GPU's atomics.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import nlrl_backbones  # noqa: F401  registers the architectures with transformers
from nlrl.pretrain.corpus import SHARES, Example, examples
from nlrl.pretrain.tokenizer import save_tokenizer, train_tokenizer

IGNORED = -100
"""Label of positions that are not graded: prompts and padding."""
PROMPT_WEIGHT = 0.15
"""Weight of a prompt's token in the loss; a reply's token has weight 1."""


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """A training run; the shape of the model stands in `SHAPES`."""

    backbone: str = "hymba"
    seed: int = 0
    steps: int = 12000
    batch_tokens: int = 65536
    peak_lr: float = 3e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    workers: int = 14
    vocab_size: int = 640
    max_seconds: float = 500.0
    """The schedule is cut to what fits: the learning rate reaches its end by then even if `steps` was not reached."""


SHAPES: dict[str, dict[str, Any]] = {
    "hymba": {
        "model_type": "hymba",
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_memory_tokens": 16,
        "sliding_window": 64,
        "global_attn_idx": [0, 3, 5],
        "kv_reuse_group": [[1, 2]],
        "mamba_d_state": 16,
        "mamba_dt_rank": 8,
        "mamba_expand": 2,
        "mamba_d_conv": 4,
        "max_position_embeddings": 4096,
        "orig_max_position_embeddings": 2048,
        "rope_type": "ntk",
    },
}


class Corpus(IterableDataset):
    """Batches of about `batch_tokens` tokens, examples of like length together; one stream a worker."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_tokens = batch_tokens

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        stream = examples(seed=self.seed * 1000 + (worker.id if worker else 0))
        generator = torch.Generator().manual_seed(self.seed + 7919 * (worker.id if worker else 0))
        while True:
            encoded = sorted(encode(self.tokenizer, list(islice(stream, 4096))), key=lambda pair: len(pair[0]))
            batches = list(_cut(encoded, self.batch_tokens))
            for i in torch.randperm(len(batches), generator=generator).tolist():
                yield pad(batches[i])


def encode(tokenizer: PreTrainedTokenizerFast, batch: Sequence[Example]) -> list[tuple[list[int], int]]:
    """(ids, length of the prompt) of each example: chat template around the prompt, then reply and end."""
    texts = [f"{tokenizer.bos_token}{e.prompt}\n<reply>" for e in batch]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    replies = tokenizer([f"{e.reply}{tokenizer.eos_token}" for e in batch], add_special_tokens=False)["input_ids"]
    return [(p + r, len(p)) for p, r in zip(prompts, replies, strict=True)]


def pad(rows: Sequence[tuple[list[int], int]], multiple: int = 16) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `labels` and `weights` [B, T], T rounded up so that few shapes occur."""
    length = math.ceil(max(len(ids) for ids, _ in rows) / multiple) * multiple
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    weights = torch.zeros(len(rows), length)
    for row, (ids, prompt) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt : len(ids)] = torch.tensor(ids[prompt:])
        weights[row, :prompt], weights[row, prompt : len(ids)] = PROMPT_WEIGHT, 1.0
    return {"input_ids": input_ids, "labels": labels, "weights": weights}


def pretrain(config: PretrainConfig, out: Path) -> dict[str, Any]:
    """Train, grade and write a model; returns its card (also written as `nlrl_card.json`)."""
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    started = time.perf_counter()
    sample = islice(examples(seed=config.seed + 1), 20_000)
    tokenizer = train_tokenizer((f"{e.prompt}\n{e.reply}" for e in sample), config.vocab_size)
    model = _to(new_model(config, tokenizer), device)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}, {device}", flush=True
    )
    loader = DataLoader(
        Corpus(tokenizer, config.seed + 2, config.batch_tokens),
        batch_size=None,
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        pin_memory=device == "cuda",
    )
    seen = _train(model, loader, config, device)
    model = _to(_to(model, torch.bfloat16), torch.float32)
    graded = grade(model, tokenizer, list(islice(examples(seed=config.seed + 900_001), 8_192)), device)
    card = {
        "backbone": config.backbone,
        "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
        "exact_reply_rate": graded,
        **seen,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    out.mkdir(parents=True, exist_ok=True)
    _to(model, torch.bfloat16).save_pretrained(out)
    save_tokenizer(tokenizer, out)
    (out / "nlrl_card.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def new_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model of the boxed shape with fresh weights."""
    if config.backbone not in SHAPES:
        from nlrl.errors import UnknownNameError

        raise UnknownNameError("shape of a boxed model", config.backbone, SHAPES)
    shape = dict(SHAPES[config.backbone])
    ids = {
        "vocab_size": config.vocab_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type"), **shape, **ids))
    _spread_time_scales(model)
    return model


@torch.no_grad()
def _spread_time_scales(model: PreTrainedModel, shortest: float = 1e-3, longest: float = 0.5) -> None:
    """Step-size biases such that softplus of them is log-uniform, as in Mamba (arXiv 2312.00752, section 3.6).

    Hymba's own initialisation leaves them at zero, which forgets within a few tokens; a small model with little data
    does not find its way out of that.
    """
    for name, bias in model.named_parameters():
        if "dt_proj" in name and name.endswith("bias"):
            steps = torch.exp(torch.empty_like(bias).uniform_(math.log(shortest), math.log(longest)))
            bias.copy_(steps + torch.log(-torch.expm1(-steps)))


def _to(model: PreTrainedModel, target: str | torch.dtype) -> PreTrainedModel:
    """`model.to`, whose annotation in transformers loses the type."""
    return torch.nn.Module.to(model, target)  # type: ignore[return-value,arg-type]


def _train(model: PreTrainedModel, loader: DataLoader, config: PretrainConfig, device: str) -> dict[str, Any]:
    """The loop; prints a line every 100 steps and returns what was consumed."""
    optimizer = torch.optim.AdamW(_groups(model, config.weight_decay), betas=(0.9, 0.95), fused=device == "cuda")
    model.train()
    begun, tokens, progress, step = time.perf_counter(), 0, 0.0, 0
    losses: list[torch.Tensor] = []
    batches = iter(loader)
    while progress < 1.0:
        lr = (
            config.peak_lr
            * min(1.0, (step + 1) / config.warmup)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(batches).items()}
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits_BTV = model(input_ids=batch["input_ids"], use_cache=False).logits
        loss = weighted_loss(logits_BTV, batch["input_ids"], batch["weights"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        tokens += batch["input_ids"].numel()
        step += 1
        elapsed = time.perf_counter() - begun
        progress = max(step / config.steps, elapsed / config.max_seconds)
        if step % 100 == 0 or progress >= 1.0:
            mean = torch.stack(losses[-100:]).mean().item()
            print(
                f"step {step} loss {mean:.4f} lr {lr:.2e} {tokens / elapsed:,.0f} tokens/s {elapsed:.0f} s", flush=True
            )
    return {"steps": step, "tokens": tokens, "loss": torch.stack(losses[-100:]).mean().item()}


def weighted_loss(logits_BTV: torch.Tensor, input_ids_BT: torch.Tensor, weights_BT: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross-entropy of the next token."""
    losses = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), input_ids_BT[:, 1:].flatten(), reduction="none")
    weights = weights_BT[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Decay on matrices only; never on norms, biases, the scan's A and D, or the meta tokens."""
    decayed = [p for n, p in model.named_parameters() if p.ndim == 2 and "A_log" not in n and "memory_tokens" not in n]
    ids = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in ids]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


@torch.no_grad()
def grade(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, held_out: Sequence[Example], device: str
) -> dict[str, float]:
    """Share of examples whose whole reply is the most likely one, token by token; for "policy" the mean entropy in
    nats of the move (uniform over four is 1.386).
    """
    model.eval()
    right: dict[str, list[float]] = {skill: [] for skill in SHARES}
    for start in range(0, len(held_out), 256):
        part = held_out[start : start + 256]
        batch = pad(encode(tokenizer, part))
        logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[:, :-1].float()
        labels = batch["labels"][:, 1:].to(device)
        exact = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(-1).tolist()
        entropy = torch.distributions.Categorical(logits=logits).entropy() * (labels != IGNORED)
        for example, hit, nats in zip(part, exact, entropy.sum(-1).tolist(), strict=True):
            right[example.skill].append(nats if example.skill == "policy" else float(hit))
    return {skill: round(sum(hits) / max(len(hits), 1), 4) for skill, hits in right.items()}


def _cut(encoded: Sequence[tuple[list[int], int]], batch_tokens: int) -> Iterator[list[tuple[list[int], int]]]:
    rows: list[tuple[list[int], int]] = []
    for pair in encoded:
        if rows and len(pair[0]) * (len(rows) + 1) > batch_tokens:
            yield rows
            rows = []
        rows.append(pair)
    if rows:
        yield rows
