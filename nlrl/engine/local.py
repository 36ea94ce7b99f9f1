"""What engines share that hold the model themselves: prompts as token ids, and waiting until everyone has asked."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nlrl.engine.base import Message, Request
from nlrl.errors import ContextLengthError
from nlrl.model_files import check_model_folder, fingerprint
from nlrl.registry import ResolvedModel, resolve_model

SETTLE_TURNS = 12
"""Turns of the event loop in which a coroutine whose reply came asks its next question: the reply's future, the tasks
that wait and record, the operators between them, the game's next event and the new request each take one or two, and
none of them waits for anything else."""


async def settle() -> None:
    """Return when every coroutine that was ready to ask has asked."""
    for _ in range(SETTLE_TURNS):
        await asyncio.sleep(0)


def opened(model: ResolvedModel | str) -> tuple[ResolvedModel, str]:
    """A model with its files on this machine, looked at (`nlrl.model_files`), and the fingerprint of its files.

    Raises:
        UnsafeFileError: a file could do harm.
        EngineError: the model cannot be fetched.
    """
    resolved = (resolve_model(model) if isinstance(model, str) else model).fetch()
    assert resolved.path is not None
    if resolved.source != "boxed":
        check_model_folder(resolved.path)
    return resolved, fingerprint(resolved.path)


def renewed(before: str, source: Path | str | Iterable[tuple[str, Any]]) -> str:
    """The fingerprint once the weights were replaced: of the new folder, or no longer to be known from outside."""
    if isinstance(source, str | Path):
        return f"{before[:16]} with {fingerprint(Path(source))}"
    return f"{before[:16]} with weights {uuid.uuid4()}"


def encode_messages(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The token ids of a conversation, by the model's own chat template.

    A model without a template continues text: it reads the contents one under the other.
    """
    if tokenizer.chat_template is None:
        return list(tokenizer.encode("\n".join(message.content for message in messages)))
    chat = [{"role": message.role, "content": message.content} for message in messages]
    return list(tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False))


def encode_request(tokenizer: Any, request: Request, context: int, model: str) -> list[int]:
    """The token ids of a request's prompt; `ContextLengthError` when prompt and reply exceed `context` tokens."""
    ids = encode_messages(tokenizer, request.messages)
    check_fits(len(ids), request, context, model)
    return ids


def check_fits(length: int, request: Request, context: int, model: str) -> None:
    """Raise `ContextLengthError` when a prompt of `length` tokens and its reply exceed `context` tokens."""
    limit = request.sampling.max_tokens
    if length + limit > context:
        raise ContextLengthError(
            f"A prompt of {length} tokens and a reply of up to {limit} do not fit into the {context} tokens of "
            f"'{model}'; shorten the history or the look-ahead, or take a model with a longer context."
        )
