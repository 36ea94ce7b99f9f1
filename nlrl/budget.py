"""What a run may use, and the gate that each request passes: nothing is sent that could not be paid for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from nlrl.config import BudgetConfig
from nlrl.engine.base import Request
from nlrl.errors import BudgetError
from nlrl.store import Totals


@dataclass(frozen=True, slots=True)
class Use:
    """What something uses or may use."""

    calls: int = 0
    read: int = 0
    """Tokens of prompts."""
    written: int = 0
    """Tokens of replies."""

    def __add__(self, other: Use) -> Use:
        return Use(self.calls + other.calls, self.read + other.read, self.written + other.written)

    def __sub__(self, other: Use) -> Use:
        return Use(self.calls - other.calls, self.read - other.read, self.written - other.written)

    def money(self, limits: BudgetConfig) -> float:
        """Its price."""
        return (self.read * limits.price_read + self.written * limits.price_written) / 1e6


TEMPLATE_TOKENS = 128
"""Room for what a chat template adds to the messages."""


def most_of(request: Request) -> Use:
    """The most a request can use: a token is at least one byte of the prompt, and the reply has a limit."""
    read = TEMPLATE_TOKENS + sum(len(m.content.encode("utf-8", "surrogatepass")) for m in request.messages)
    return Use(1, read, request.sampling.max_tokens)


class Gate:
    """Lets requests through while the budget holds out.

    A request is sent when, with the most that those in flight can use, some of each budget is left; else it waits for
    them to land. So the first limit that is reached is passed by less than one request, however many run at once.

    Args:
        limits: the budget.
        totals: what the run has used, kept up to date by its record.
        clock: seconds, monotonic.
    """

    def __init__(self, limits: BudgetConfig, totals: Totals, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._totals = totals
        self._clock = clock
        self._begun = clock()
        self._flying = Use()
        self._landed = asyncio.Event()

    @asynccontextmanager
    async def place(self, request: Request) -> AsyncIterator[None]:
        """Hold the right to send `request` and record its answer; raises `BudgetError` when the budget is used up."""
        most = most_of(request)
        while True:
            used = Use(self._totals.calls, self._totals.prompt_tokens, self._totals.completion_tokens)
            if spent := self._reached(used):
                raise BudgetError(f"The budget is used up ({spent}); resume the run with a greater one.")
            if not self._flying.calls or not self._reached(used + self._flying):
                break
            self._landed.clear()
            await self._landed.wait()
        self._flying += most
        try:
            yield
        finally:
            self._flying -= most
            self._landed.set()

    def _reached(self, use: Use) -> str:
        """The first budget that `use` exhausts, in words; empty when none."""
        limits = self._limits
        seconds = self._totals.seconds + self._clock() - self._begun
        table = (
            ("calls", use.calls, limits.calls),
            ("tokens", use.read + use.written, limits.tokens),
            ("seconds", seconds, limits.seconds),
            ("money", use.money(limits), limits.money),
        )
        full = ((name, n, most) for name, n, most in table if most is not None and n >= most)
        return next((f"{name}: {_plain(n)} of {_plain(most)}" for name, n, most in full), "")


def is_limited(limits: BudgetConfig) -> bool:
    """Whether anything is limited at all."""
    return any(limit is not None for limit in (limits.calls, limits.tokens, limits.seconds, limits.money))


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.2f}"
