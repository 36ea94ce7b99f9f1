"""How fast a server may be asked: what it takes at once, what it permits a minute, and a clock that tests can turn."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the engine sees it."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep


REAL = Clock()


class Pace:
    """How many requests may be in flight: cut by a fifth on a 429, once a second; one more after a full round."""

    CUT = 0.8
    COOL_DOWN_S = 1.0

    def __init__(self, limit: int, clock: Clock = REAL) -> None:
        if limit < 1:
            raise ValueError("At least one request must be allowed in flight.")
        self._most = limit
        self._clock = clock
        self._limiter: anyio.CapacityLimiter | None = None
        self._allowed = limit
        self._successes = 0
        self._cut_at = -math.inf

    @property
    def allowed(self) -> int:
        """Requests allowed in flight now."""
        return self._allowed

    @property
    def waiting(self) -> float:
        """How full it is: requests in flight and in line, as a share of those allowed."""
        if self._limiter is None:
            return 0.0
        statistics = self._limiter.statistics()
        return (statistics.borrowed_tokens + statistics.tasks_waiting) / self._allowed

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the places."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._allowed)
        async with self._limiter:
            yield

    def slow_down(self) -> None:
        """The server had too much. Answers to requests sent before the last cut say nothing new."""
        now = self._clock.now()
        self._successes = 0
        if now - self._cut_at >= self.COOL_DOWN_S:
            self._cut_at = now
            self._set(max(1, int(self._allowed * self.CUT)))

    def speed_up(self) -> None:
        """An answer came."""
        self._successes += 1
        if self._successes >= self._allowed and self._allowed < self._most:
            self._successes = 0
            self._set(self._allowed + 1)

    def _set(self, allowed: int) -> None:
        self._allowed = allowed
        if self._limiter is not None:
            self._limiter.total_tokens = allowed


@dataclass(slots=True)
class Spent:
    """An amount that was taken at a time; it is corrected once the true amount is known."""

    at: float
    amount: float


@dataclass(slots=True)
class PerMinute:
    """At most `limit` in any sixty seconds, in the order of asking. An amount above the limit goes alone."""

    limit: float
    clock: Clock = REAL
    _log: deque[Spent] = field(default_factory=deque)
    _line: anyio.Lock = field(default_factory=anyio.Lock)

    async def take(self, amount: float) -> Spent:
        """Wait until `amount` may be used, and use it."""
        async with self._line:
            while True:
                now = self.clock.now()
                while self._log and now - self._log[0].at >= 60:
                    self._log.popleft()
                if not self._log or sum(spent.amount for spent in self._log) + amount <= self.limit:
                    self._log.append(Spent(now, amount))
                    return self._log[-1]
                await self.clock.sleep(max(self._log[0].at + 60 - now, 0.001))
