"""What a model does with a long log: which answers are right, where it looks, how large its numbers grow.

Axes: B rows, H heads, T tokens, S keys, Q the places where the first token of an answer is predicted, E model width.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nlrl.claims.needles import Log, logs, reordered
from nlrl.claims.streams import Reader, batch_of
from nlrl_backbones.diff_transformer.heads import lambda_of
from nlrl_backbones.diff_transformer.weights import LAMBDAS

LOOKING = "nlrl_claims_looking"
"""Name of the attention below among transformers' implementations."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Logs of one length and number of needles, `count` of them, from a seed of their own."""

    context: int
    needles: int
    count: int = 64
    seed: int = 987


@dataclass(frozen=True, slots=True)
class Findings:
    """Of one model on one probe; shares from 0 to 1."""

    right: float
    """Answers given exactly, token by token, the true text before them."""
    moved: float
    """Answers that turn from right to wrong or back when the same remarks stand at each other's places."""
    looked: float | None
    """Share of the attention, over heads and layers, that falls on the remark that is asked for; None without any."""
    largest: float
    """Largest magnitude in the layers' outputs, in medians of the magnitudes."""


def probe(model: PreTrainedModel, reader: Reader, asked: Probe, device: str) -> Findings:
    """Read a probe's logs with a model, one at a time."""
    rng = random.Random(asked.seed + 1)
    right, again, looks, sizes = [], [], [], []
    with magnitudes(model) as seen:
        for log in islice(logs(asked.seed, asked.context, (asked.needles,), reader.count), asked.count):
            right += answered(model, reader, log, device)
            sizes.append(seen())
            looks += [] if (share := looked_at(model, reader, log, device)) is None else [share]
            again += answered(model, reader, reordered(log, rng), device)
    moved = sum(a != b for a, b in zip(right, again, strict=True)) / len(right)
    looked = sum(looks) / len(looks) if looks else None
    return Findings(sum(right) / len(right), moved, looked, max(sizes))


@torch.no_grad()
def answered(model: PreTrainedModel, reader: Reader, log: Log, device: str) -> list[bool]:
    """For each question, whether every token of its answer is the most likely one."""
    ids, answers = reader.row(log)
    batch = batch_of([(ids, answers)], len(ids))
    guessed = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[0, :-1].argmax(-1).tolist()
    return [all(guessed[t - 1] == ids[t] for t in places) for places in runs(answers)]


def runs(answers: Sequence[bool]) -> list[list[int]]:
    """The places of each answer: true entries that stand together."""
    found: list[list[int]] = []
    for place, is_answer in enumerate(answers):
        if is_answer and place and answers[place - 1] and found:
            found[-1].append(place)
        elif is_answer:
            found.append([place])
    return found


@torch.no_grad()
def looked_at(model: PreTrainedModel, reader: Reader, log: Log, device: str) -> float | None:
    """Share of the attention's absolute weight that is on the remark asked for, where its answer begins.

    Differential heads count as they act: the difference of their two maps (V2's lambda is a matter of each token, so
    its maps count by themselves). None for a model whose layers do not go through transformers' attention functions.
    """
    ids, answers = reader.row(log)
    places = [run[0] - 1 for run in runs(answers)]
    spans = reader.remarks(log)
    shares: list[torch.Tensor] = []

    def attend(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **settings: Any) -> Any:
        groups = q.shape[1] // k.shape[1]
        keys = k.repeat_interleave(groups, dim=1)
        scores_BHQS = q[:, :, places].float() @ keys.float().mT * settings["scaling"]
        later_QS = torch.arange(k.shape[2], device=q.device) > torch.tensor(places, device=q.device)[:, None]
        maps = _as_they_act(module, scores_BHQS.masked_fill(later_QS, -torch.inf).softmax(-1)).abs()
        whole = maps.sum(-1)
        shares.append(
            torch.stack([(maps[..., i, span].sum(-1) / whole[..., i]).mean() for i, span in enumerate(spans)])
        )
        return plain(module, q, k, v, mask, **settings)

    before = model.config._attn_implementation
    if before not in ("sdpa", "eager") or not getattr(model, "_supports_attention_backend", False):
        return None
    plain: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
    ALL_ATTENTION_FUNCTIONS[LOOKING] = attend
    ALL_MASK_ATTENTION_FUNCTIONS[LOOKING] = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    model.config._attn_implementation = LOOKING
    try:
        model(input_ids=torch.tensor([ids], device=device), use_cache=False)
    finally:
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[LOOKING], ALL_MASK_ATTENTION_FUNCTIONS[LOOKING]
    return torch.stack(shares).mean().item() if shares else None


def _as_they_act(module: Any, maps_BHQS: torch.Tensor) -> torch.Tensor:
    """The maps of plain heads as they are; of Diff-Transformer's V1, A1 - lambda A2."""
    if getattr(module, "constant", None) is None:
        return maps_BHQS
    lam = lambda_of([getattr(module, name) for name in LAMBDAS], module.constant, torch.float32)
    return maps_BHQS[:, 0::2] - lam * maps_BHQS[:, 1::2]


@contextmanager
def magnitudes(model: PreTrainedModel) -> Iterator[Any]:
    """A function that gives the largest magnitude of any layer's output since it was last asked, in medians."""
    seen: list[float] = []

    def watch(_module: Any, _inputs: Any, output: Any) -> None:
        x = (output[0] if isinstance(output, tuple) else output).detach().abs().float()
        seen.append((x.max() / x.median()).item())

    def largest() -> float:
        most = max(seen, default=0.0)
        seen.clear()
        return most

    layers = max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    handles = [layer.register_forward_hook(watch) for layer in layers]
    try:
        yield largest
    finally:
        for handle in handles:
            handle.remove()
