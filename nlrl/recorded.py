"""An engine whose answers are in the run's record before anyone sees them, and are never asked for twice.

This is the one place that a question passes on its way to a model. It is answered from the record when it was asked
before (in this run before it was resumed, or in another run that is reused); else it is paid for from the budget,
asked, and recorded the moment its own answer comes, whatever becomes of the others of its batch and of those who wait
for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from nlrl.budget import Gate
from nlrl.engine.base import Completion, Engine, EngineInfo, Request
from nlrl.errors import EngineError
from nlrl.store import RunStore
from nlrl.store_schema import call_key
from nlrl.types import CallId, Failure

Answers = Callable[[str, CallId | None], Completion | None]
"""Looks an answer up by its key and its place in the run."""


class RecordedEngine:
    """A model as a run asks it.

    Args:
        engine: answers what is not recorded.
        store: the run's record.
        gate: the budget, when there is one.
        reused: further answers, looked up after the run's own; they count as the run's calls but cost nothing.
        require_constraints: whether a reply that was not held to its constraint ends the run.
    """

    def __init__(
        self,
        engine: Engine,
        store: RunStore,
        *,
        gate: Gate | None = None,
        reused: Answers | None = None,
        require_constraints: bool = False,
    ) -> None:
        self.prompt_set = engine.prompt_set
        self.asked = 0
        """Requests that went to the engine itself."""
        self._engine = engine
        self._store = store
        self._gate = gate
        self._reused = reused
        self._require = require_constraints
        self.reloaded()
        # A new record has nothing to look up, and a run of a million calls would look for each of them.
        self._look_up = store.totals.calls > 0
        self._flying: set[asyncio.Task[Completion]] = set()
        self._by_key: dict[str, asyncio.Task[Completion]] = {}

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer all requests, in order.

        A caller that gives up waiting does not take its questions back: their answers are recorded (see `drain`).

        Raises:
            EngineError: no request can be answered, or a constraint that is required was ignored.
            BudgetError: the budget is used up.
            StoreError: an answer cannot be recorded.
        """
        answers = [self._known(request) or self._start(request) for request in requests]
        tasks = {answer for answer in answers if isinstance(answer, asyncio.Task)}
        if tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        return [answer.result() if isinstance(answer, asyncio.Task) else answer for answer in answers]

    def record_failure(self, request: Request, failure: Failure) -> None:
        """A `nlrl.ask.RecordFailure`: the answer to `request` could not be used."""
        self._store.record_failure(self._key(request), failure)

    @property
    def under_way(self) -> int:
        """Questions that are being answered, or wait to be sent."""
        return len(self._flying)

    def reloaded(self) -> None:
        """The engine's weights were replaced: from now on it is another model that answers."""
        info = self._engine.describe()
        self._model = "\n".join((info.kind, info.model, info.fingerprint))

    async def drain(self) -> None:
        """Wait for the answers that are being paid for, and take back the questions that were not sent yet."""
        if (hold := getattr(self._engine, "hold", None)) is not None:
            hold()
        else:  # an engine in this process: its answers cost time only, and go with it
            for task in self._flying:
                task.cancel()
        while self._flying:
            await asyncio.wait(set(self._flying))

    def describe(self) -> EngineInfo:
        """What runs, for the record."""
        return self._engine.describe()

    async def close(self) -> None:
        """Wait for the answers that are being paid for, then close the engine; safe to call twice."""
        try:
            await self.drain()
        finally:
            await self._engine.close()

    def _key(self, request: Request) -> str:
        return call_key(request, self._model)

    def _known(self, request: Request) -> Completion | None:
        if not self._look_up and self._reused is None:
            return None
        key = self._key(request)
        known = self._store.answer(key, request.call) if self._look_up else None
        if known is None and self._reused is not None and (known := self._reused(key, request.call)) is not None:
            self._store.record_call(key, request, known, 0.0)
        if known is not None:
            self._check(known)
        return known

    def _start(self, request: Request) -> asyncio.Task[Completion]:
        key = self._key(request)
        if (same := self._by_key.get(key)) is not None:
            return same
        task = asyncio.create_task(self._ask(key, request))
        self._flying.add(task)
        self._by_key[key] = task
        task.add_done_callback(lambda done: self._landed(key, done))
        return task

    def _landed(self, key: str, task: asyncio.Task[Completion]) -> None:
        self._flying.discard(task)
        self._by_key.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody need have waited

    async def _ask(self, key: str, request: Request) -> Completion:
        if self._gate is None:
            return await self._ask_now(key, request)
        async with self._gate.place(request):
            return await self._ask_now(key, request)

    async def _ask_now(self, key: str, request: Request) -> Completion:
        begun = time.perf_counter()
        self.asked += 1
        (completion,) = await self._engine.generate([request])
        self._store.record_call(key, request, completion, time.perf_counter() - begun)
        self._check(completion)
        return completion

    def _check(self, completion: Completion) -> None:
        if self._require and completion.constrained is False and completion.finish_reason == "stop":
            raise EngineError(
                "The engine did not hold a reply to the form it was asked in; take a server that enforces structured "
                "outputs, or let replies be checked and asked again with -s engine.constraints=prefer."
            )
