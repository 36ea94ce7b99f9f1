"""Examples as the token sequences that a student is trained on.

A sequence is the prompt's ids as the engine builds them (`nlrl.engine.local.encode_messages`, so the begin token stands
where it stands when the student is asked, once), then the reply's ids as the teacher's engine drew them, then an end
token. The loss is on the reply and the end alone. Nothing is cut: a sequence that is too long is an error.

Rows of a batch are padded on the right and carry no attention mask. In a causal model no token sees what stands behind
it, so a row's numbers are those it has alone, in every architecture; and a mask made by comparing with the padding
token, as in the authors' code, would hide end tokens where both are one.

Axes: B rows, T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrl.engine.base import Message
from nlrl.engine.local import encode_messages
from nlrl.errors import ConfigError
from nlrl.types import Example

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of what carries no loss: prompts and padding."""
MULTIPLE = 16
"""Lengths are padded to a multiple of this, so that few shapes occur."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """What is trained on, as ids."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    """Ends with an end token."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)


def encode_examples(
    examples: Sequence[Example], tokenizer: Any, *, context: int, end_ids: Sequence[int], as_drawn: bool = True
) -> list[TokenPair]:
    """The sequences of the examples, in order.

    Args:
        examples: prompts as messages, replies as text and, where known, as ids.
        tokenizer: the student's.
        context: tokens that the student can read.
        end_ids: tokens that end a reply; the first is put behind a reply that was drawn without one.
        as_drawn: whether `target_token_ids` are ids of the student's own tokenizer. If not, or where there are none,
            the reply's text is tokenised.

    Raises:
        ConfigError: a sequence is longer than the context, or an example has a weight other than 1.
    """
    if (odd := next((one for one in examples if one.weight != 1.0), None)) is not None:
        raise ConfigError(f"Example '{odd.id}' has weight {odd.weight:g}; only examples of weight 1 can be trained on.")
    prompts: dict[tuple[tuple[str, str], ...], tuple[int, ...]] = {}
    pairs = []
    for one in examples:
        if one.messages not in prompts:
            messages = [Message(role, content) for role, content in one.messages]  # type: ignore[arg-type]
            prompts[one.messages] = tuple(encode_messages(tokenizer, messages))
        pair = TokenPair(prompts[one.messages], _reply_ids(one, tokenizer, end_ids, as_drawn))
        if len(pair) > context:
            raise ConfigError(
                f"Example '{one.id}' has {len(pair)} tokens and the student reads {context}: shorten the history, or "
                "take a student with a longer context; nothing is cut off."
            )
        pairs.append(pair)
    return pairs


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two models' folders hold the same vocabulary and the same rules of splitting; templates may differ."""
    return _tokenizer_sha256(one) == _tokenizer_sha256(other)


def _tokenizer_sha256(folder: Path) -> str:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    parts = {key: content.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def end_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a reply of the model in `folder`: the tokenizer's own first, then those of its settings."""
    settings = folder / "generation_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")).get("eos_token_id") if settings.is_file() else None
    more = said if isinstance(said, list) else [] if said is None else [said]
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not own and not more:
        raise ConfigError(f"The model in '{folder}' has no end token, so it could not learn to stop.")
    return tuple(dict.fromkeys((*own, *more)))


def _reply_ids(example: Example, tokenizer: Any, end_ids: Sequence[int], as_drawn: bool) -> tuple[int, ...]:
    ids = example.target_token_ids if as_drawn else ()
    if not ids:
        ids = tuple(tokenizer.encode(example.target, add_special_tokens=False))
    return ids if ids[-1] in end_ids else (*ids, end_ids[0])


def pad(rows: Sequence[TokenPair], padding: int) -> dict[str, torch.Tensor]:
    """Right-padded `input_ids` and `labels` [B, T], T a multiple of `MULTIPLE`; labels stand at their own tokens."""
    import torch

    width = -(-max(map(len, rows)) // MULTIPLE) * MULTIPLE
    ids_BT = torch.full((len(rows), width), padding)
    labels_BT = torch.full((len(rows), width), IGNORED)
    for row, pair in enumerate(rows):
        ids_BT[row, : len(pair)] = torch.tensor((*pair.prompt, *pair.reply))
        labels_BT[row, len(pair.prompt) : len(pair)] = torch.tensor(pair.reply)
    return {"input_ids": ids_BT, "labels": labels_BT}
