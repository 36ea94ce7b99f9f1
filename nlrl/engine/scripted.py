"""An engine that says what it is told: for tests, documentation and recipes that run without a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.errors import EngineError

Reply = str | Completion
_TOKEN = re.compile(r"\S+\s*|\s+")


class ScriptedEngine:
    """Answers from a script: a sequence of replies, used up in the order of the requests, or a function.

    A "token" is a word with the space behind it. A text longer than `max_tokens` is cut and its reason is
    "length", as a model's would be; a `Completion` is given out as it is. Constraints are not enforced: a
    script may lie, which is what the checks above the engine are tested with.
    """

    def __init__(self, replies: Iterable[Reply] | Callable[[Request], Reply], prompt_set: str = "compact") -> None:
        self.prompt_set = prompt_set
        self.requests: list[Request] = []
        """Every request so far, in order, so that a test can look at what was asked."""
        self._function = replies if callable(replies) else None
        self._script = () if callable(replies) else tuple(replies)
        self._used = 0

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """The next replies of the script, in order.

        Raises:
            EngineError: the script has fewer replies left than there are requests.
        """
        self.requests.extend(requests)
        return [_completion(request, self._reply(request)) for request in requests]

    def describe(self) -> EngineInfo:
        """What runs, for the record."""
        return EngineInfo("scripted", "script", "none", notes=("Replies are scripted; constraints are not enforced.",))

    async def close(self) -> None:
        """Nothing is held."""

    def _reply(self, request: Request) -> Reply:
        if self._function is not None:
            return self._function(request)
        if self._used == len(self._script):
            raise EngineError(f"The script has ended: it holds {self._used} replies, and more were asked for.")
        self._used += 1
        return self._script[self._used - 1]


def _completion(request: Request, reply: Reply) -> Completion:
    if isinstance(reply, Completion):
        return reply
    words = _TOKEN.findall(reply)
    kept = words[: request.sampling.max_tokens]
    return Completion(
        text="".join(kept),
        finish_reason="stop" if len(kept) == len(words) else "length",
        prompt_tokens=sum(len(_TOKEN.findall(message.content)) for message in request.messages),
        completion_tokens=len(kept),
    )
