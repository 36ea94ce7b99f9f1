"""The corpus as batches of token ids, written, tokenised and padded in worker processes as they are consumed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from nlrl.pretrain.corpus import Example, examples

MULTIPLE = 16
"""Lengths are padded to a multiple of this, so that few shapes occur and memory is used again."""
SHORT = 8
"""The same with other games than the maze, whose texts are half as long."""
SORTED = 4096
"""Examples that are sorted by length together."""
IGNORED = -100
"""Label of positions that are not graded: prompts and padding."""
PROMPT_WEIGHT = 0.15
"""Weight of a prompt's token in the loss; a reply's token has weight 1."""

Encoded = tuple[list[int], int]
"""Token ids of an example, and how many of them are the prompt."""


class Corpus(IterableDataset):
    """Batches of about `batch_tokens` tokens, examples of like length together; one stream a worker."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, batch_tokens: int, games: Sequence[str] = ("maze",)
    ) -> None:
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_tokens = batch_tokens
        self.games = tuple(games)
        self.multiple = MULTIPLE if self.games == ("maze",) else SHORT

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        stream = examples(seed=self.seed * 1000 + (worker.id if worker else 0), games=self.games)
        generator = torch.Generator().manual_seed(self.seed + 7919 * (worker.id if worker else 0))
        while True:
            encoded = sorted(encode(self.tokenizer, list(islice(stream, SORTED))), key=lambda pair: len(pair[0]))
            batches = list(_cut(encoded, self.batch_tokens, self.multiple))
            for i in torch.randperm(len(batches), generator=generator).tolist():
                yield pad(batches[i], self.multiple)


def encode(tokenizer: PreTrainedTokenizerFast, batch: Sequence[Example]) -> list[Encoded]:
    """(ids, length of the prompt) of each example: chat template around the prompt, then reply and end."""
    texts = [f"{tokenizer.bos_token}{e.prompt}\n<reply>" for e in batch]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    replies = tokenizer([f"{e.reply}{tokenizer.eos_token}" for e in batch], add_special_tokens=False)["input_ids"]
    return [(p + r, len(p)) for p, r in zip(prompts, replies, strict=True)]


def pad(rows: Sequence[Encoded], multiple: int = MULTIPLE) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids`, `labels` and `weights` [B, T], T a multiple of `multiple`."""
    length = max(_padded(row, multiple) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    weights = torch.zeros(len(rows), length)
    for row, (ids, prompt) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt : len(ids)] = torch.tensor(ids[prompt:])
        weights[row, :prompt], weights[row, prompt : len(ids)] = PROMPT_WEIGHT, 1.0
    return {"input_ids": input_ids, "labels": labels, "weights": weights}


def _padded(row: Encoded, multiple: int) -> int:
    return math.ceil(len(row[0]) / multiple) * multiple


def _cut(encoded: Sequence[Encoded], batch_tokens: int, multiple: int) -> Iterator[list[Encoded]]:
    """Batches of rows sorted by length, each as many as `batch_tokens` tokens hold with their padding."""
    rows: list[Encoded] = []
    for row in encoded:
        if rows and _padded(row, multiple) * (len(rows) + 1) > batch_tokens:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
