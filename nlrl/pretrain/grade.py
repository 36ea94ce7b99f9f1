"""How well a model in training answers examples that it has not seen, by game and role."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nlrl.pretrain.corpus import Example, choices
from nlrl.pretrain.data import IGNORED, encode, pad


@torch.no_grad()
def grade(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, held_out: Sequence[Example], device: str
) -> dict[str, dict[str, float]]:
    """How well held-out examples are answered, by "game role".

    "exact_reply_rate" is the share whose whole reply is the most likely one, token by token; for "policy" the mean
    entropy of the reply less that of a uniformly drawn move, in nats: 0 is right. "reply_loss" is the mean
    cross-entropy of a reply in nats; for "policy" the best is the mean logarithm of the number of legal moves.
    """
    model.eval()
    right, lost = defaultdict(list), defaultdict(list)
    for start in range(0, len(held_out), 256):
        part = held_out[start : start + 256]
        batch = pad(encode(tokenizer, part))
        logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[:, :-1].float()
        labels = batch["labels"][:, 1:].to(device)
        exact = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(-1).tolist()
        entropy = torch.distributions.Categorical(logits=logits).entropy() * (labels != IGNORED)
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(-1)
        for example, hit, nats, loss in zip(part, exact, entropy.sum(-1).tolist(), losses.tolist(), strict=True):
            name = f"{example.game} {example.skill}"
            right[name].append(nats - math.log(choices(example)) if example.skill == "policy" else float(hit))
            lost[name].append(loss)
    measures = {"exact_reply_rate": right, "reply_loss": lost}
    return {name: {k: round(sum(v) / len(v), 4) for k, v in sorted(found.items())} for name, found in measures.items()}
