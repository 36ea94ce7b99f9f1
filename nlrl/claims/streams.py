"""Batches of rows of exactly one length: the game corpus as one text without end, cut into contexts.

Axes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from nlrl.claims.needles import Log, logs, named
from nlrl.pretrain.corpus import examples
from nlrl.pretrain.data import encode

Batch = dict[str, torch.Tensor]
Row = tuple[list[int], list[bool]]
"""Token ids, and which of them are an answer's."""
CHUNK = 512
"""Examples that are tokenised together."""
LOG_WEIGHT = 0.05
"""Weight of a token of a log in the loss, beside 1 for a token of an answer."""


class Packed(IterableDataset):
    """`input_ids` and `weights` [B, T] of examples one after the other; a row may begin within one."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, rows: int, context: int, games: Sequence[str]
    ) -> None:
        self.tokenizer, self.seed, self.rows, self.context, self.games = tokenizer, seed, rows, context, tuple(games)

    def __iter__(self) -> Iterator[Batch]:
        stream = examples(seed=_own(self.seed), games=self.games)
        kept: list[int] = []
        while True:
            for ids, _ in encode(self.tokenizer, list(islice(stream, CHUNK))):
                kept += ids
            size = self.rows * self.context
            while len(kept) >= size:
                ids_BT = torch.tensor(kept[:size]).view(self.rows, self.context)
                yield {"input_ids": ids_BT, "weights": torch.ones(ids_BT.shape)}
                del kept[:size]


class Needles(IterableDataset):
    """Logs with questions: `input_ids`, `weights` and `answers` [B, T], the last true at the tokens of answers."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seed: int, rows: int, context: int, needles: Sequence[int]
    ) -> None:
        self.tokenizer, self.seed, self.rows, self.context = tokenizer, seed, rows, context
        self.needles = tuple(needles)

    def __iter__(self) -> Iterator[Batch]:
        reader = Reader(self.tokenizer)
        stream = logs(_own(self.seed), self.context, self.needles, reader.count)
        while True:
            yield batch_of([reader.row(next(stream)) for _ in range(self.rows)], self.context)


class Reader:
    """Logs as token ids, each line tokenised on its own, so that their number is the sum of the lines'."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._ids = lru_cache(maxsize=65_536)(self._encoded)

    def count(self, text: str) -> int:
        """Tokens of a line."""
        return len(self._ids(text))

    def row(self, log: Log) -> Row:
        """Token ids of a log with its questions, and which of them are answers."""
        ids = [i for line in log.text.splitlines(keepends=True) for i in self._ids(line)]
        answers = [False] * len(ids)
        for question, answer in log.asked:
            ids += [*self._ids(question), *self._ids(answer)]
            answers += [False] * self.count(question) + [True] * self.count(answer)
        return ids, answers

    def remarks(self, log: Log) -> list[slice]:
        """Where the remark stands that each question is about, in the order of asking."""
        places, begin = {}, 0
        for line in log.text.splitlines(keepends=True):
            end = begin + self.count(line)
            if (name := named(line)) is not None:
                places[name] = slice(begin, end)
            begin = end
        return [places[named(question)] for question, _ in log.asked]

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def batch_of(rows: Sequence[Row], length: int) -> Batch:
    """Rows as tensors of one length; before a shorter one stands its own beginning, so that nothing is padding."""
    ids_BT = torch.tensor([ids[: length - len(ids)] + ids if len(ids) < length else ids for ids, _ in rows])
    answers_BT = torch.tensor([[False] * (length - len(answers)) + answers for _, answers in rows])
    return {"input_ids": ids_BT, "answers": answers_BT, "weights": torch.where(answers_BT, 1.0, LOG_WEIGHT)}


def _own(seed: int) -> int:
    """Each worker reads a stream of its own."""
    worker = get_worker_info()
    return seed * 1000 + (worker.id if worker else 0)
