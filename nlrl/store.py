"""The record of a run: one SQLite file `<root>/<run id>/run.sqlite`, written as the run goes.

Every answer, event and figure is a transaction of its own, committed before anyone acts on it. So a run that is killed
at any moment has lost nothing it had used, and resuming it is running it again with the recorded answers at hand. A row
that is recorded again must be the row that is there: `StoreError` tells that a resumed run took another course.

What is committed outlives the death of the process. A loss of power may take the last moments, but not what is marked
as complete (checkpoints, the end of a run), and never leaves a broken file.

`RunReader` gives back the very records that were written, also while the run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from nlrl import codec, store_rows
from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.errors import StoreError
from nlrl.store_file import RunFile
from nlrl.store_packing import to_column
from nlrl.store_reader import CallRecord, RunReader, RunSummary, find_answer, list_runs
from nlrl.store_schema import check_run_id
from nlrl.types import (
    CallId,
    Estimated,
    Example,
    Failure,
    GameEnd,
    GameStart,
    Improved,
    LoopEvent,
    PhaseStart,
    Step,
    Trained,
)

__all__ = ["CallRecord", "Manifest", "RunReader", "RunStore", "RunSummary", "Totals", "list_runs", "new_run_id"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known about a run before it begins."""

    config: Mapping[str, Any]
    """The whole configuration as JSON types, without secrets."""
    seed: int
    versions: Mapping[str, str]
    """Of Python and of the packages that matter."""
    engine: EngineInfo
    identity: Mapping[str, str] = field(default_factory=dict)
    """What decides the answers, see `nlrl.manifest.identity`."""


@dataclass(slots=True)
class Totals:
    """What a run has used since it began, over all its resumptions."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """Time in which earlier processes worked on the run."""
    failures: dict[str, int] = field(default_factory=dict)
    """Bad replies by `nlrl.types.FailureKind`."""
    unconstrained: int = 0
    """Replies that were not held to the constraint they were asked under."""


def new_run_id(root: Path | str, *parts: str) -> str:
    """An unused id such as "maze-hymba-20261124-041500": the parts, then the time in UTC, numbered if taken."""
    words = ("".join(c if c.isascii() and c.isalnum() else "-" for c in part.lower()) for part in parts)
    name = "-".join(word for word in ("-".join(filter(None, w.split("-"))) for w in words) if word)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    base = f"{name[:40].strip('-')}-{stamp}" if name else f"run-{stamp}"
    taken = (base, *(f"{base}-{number}" for number in range(2, 1000)))
    return next(run_id for run_id in taken if not (Path(root) / run_id).exists())


class RunStore:
    """Writes one run: `create` or `resume` it, hand records over, `finish` or `close` at the end. For one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The run's folder."""
        self._file = RunFile(path)
        self.totals = self._read_totals()
        """What the run has used so far."""
        self.phase = -1
        """Number of the phase that is going on, from 0; the same again when a run is resumed and goes through them."""
        self._stage = ""

    @classmethod
    def create(cls, root: Path | str, run_id: str, manifest: Manifest) -> RunStore:
        """Begin the record of a new run in `<root>/<run_id>`; an existing one is never overwritten.

        Raises:
            ConfigError: the run id is no plain name.
            StoreError: the folder exists already, or cannot be written.
        """
        path = Path(root).resolve() / check_run_id(run_id)
        row = (run_id, _json(manifest.config), manifest.seed, _json(manifest.versions), codec.dumps(manifest.engine))
        RunFile.make(path, (*row, _now(), None, "running", _json(manifest.identity), 0.0))
        return cls(path)

    @classmethod
    def resume(cls, root: Path | str, run_id: str) -> RunStore:
        """Go on with a recorded run.

        Raises:
            NoSuchRunError: there is no such run.
            StoreError: another process is writing it, another version of nlrl wrote it, or it cannot be written.
        """
        path = Path(root).resolve() / check_run_id(run_id)
        with RunReader.open(path) as reader:
            if not reader.is_current:
                raise StoreError(f"Run '{run_id}' was recorded by an older nlrl; it can be read, but not gone on with.")
        store = cls(path)
        try:
            with store._file.transaction() as db:
                db.execute("UPDATE run SET status = 'running', finished = NULL")
        except BaseException:
            store.close()
            raise
        return store

    def answer(self, key: str, call: CallId | None) -> Completion | None:
        """The recorded answer to a question, by its `nlrl.store_schema.call_key` and its place in the run."""
        return find_answer(key, call, self._file.read)

    def record_prompts(self, prompts: Iterable[tuple[str, str, str, str]]) -> None:
        """Store the prompts the run uses, as (set, name, hash, text)."""
        with self._file.transaction() as db:
            rows = [(prompt_set, name, digest, to_column(text)) for prompt_set, name, digest, text in prompts]
            db.executemany("INSERT OR IGNORE INTO main.prompts VALUES (?, ?, ?, ?)", rows)

    def record_call(self, key: str, request: Request, completion: Completion, seconds: float) -> None:
        """Store an answer of the language model; when this returns it is safe."""
        with self._file.transaction():
            new = store_rows.insert_call(self._file, key, request, completion, seconds)
        if new:
            self.totals.calls += 1
            self.totals.prompt_tokens += completion.prompt_tokens
            self.totals.completion_tokens += completion.completion_tokens
            self.totals.unconstrained += completion.constrained is False

    def record_failure(self, key: str, failure: Failure) -> None:
        """Note why the answer with this key could not be used."""
        with self._file.transaction():
            new = store_rows.insert_failure(self._file, key, failure)
        if new:
            self.totals.failures[failure.kind] = self.totals.failures.get(failure.kind, 0) + 1

    def begin_stage(self, name: str) -> None:
        """What is recorded from here on belongs to this stretch of the run ("policy iteration", "baseline: random")."""
        self._stage = name

    def record_event(self, event: LoopEvent) -> None:
        """Store what a loop yielded; what was recorded before the run was resumed must be what is there."""
        file = self._file
        with file.transaction():
            match event:
                case PhaseStart():
                    self.phase += 1
                    row = (self.phase, self._stage, event.iteration, event.phase, event.total)
                    file.insert_once("phases", row, key=1)
                case GameStart():
                    store_rows.insert_game(file, event, self.phase)
                case Step():
                    store_rows.insert_step(file, event)
                case GameEnd():
                    store_rows.end_game(file, event)
                case Estimated():
                    store_rows.insert_estimates(file, event, self.phase)
                case Improved():
                    store_rows.insert_improvements(file, event, self.phase)
                case Trained():
                    store_rows.insert_training(file, event)

    def record_lessons(self, examples: Sequence[Example], iteration: int, student: str) -> None:
        """Store what a student is about to be trained on, in order."""
        with self._file.transaction():
            store_rows.insert_lessons(self._file, examples, iteration, student)

    def record_metric(self, name: str, step: int, value: float) -> None:
        """Store the figure that the series `name` has at `step`."""
        with self._file.transaction():
            self._file.insert_once("metrics", (name, step, value), key=2)

    def record_example(self, example: Example) -> None:
        """Store a pair that a model is to be trained on."""
        with self._file.transaction():
            store_rows.insert_example(self._file, example)

    def record_checkpoint(self, name: str, files: Mapping[str, str]) -> None:
        """Mark a checkpoint as complete, with the SHA-256 of each of its files; flushed to the disk."""
        with self._file.transaction(durable=True):
            row = (name, _json(dict(sorted(files.items()))), _now())
            self._file.insert_once("checkpoints", row, key=1, fixed=2)

    def finish(
        self,
        status: Literal["finished", "interrupted", "failed"] = "finished",
        results: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> None:
        """State how the run ended, with its results as JSON types and the time this process worked, and close."""
        try:
            with self._file.transaction(durable=True) as db:
                rows = [(name, _json(value)) for name, value in (results or {}).items()]
                db.executemany("INSERT OR REPLACE INTO results VALUES (?, ?)", rows)
                db.execute(
                    "UPDATE run SET status = ?, finished = ?, seconds = seconds + ?", (status, _now(), float(seconds))
                )
            self._file.settle()
        finally:
            self.close()

    def close(self) -> None:
        """Close the file and let go of the lock; safe to call twice."""
        self._file.close()

    def _read_totals(self) -> Totals:
        sums = "count(*), total(prompt_tokens), total(completion_tokens), total(constrained = 0)"
        ((calls, prompt, completion, loose),) = self._file.read(f"SELECT {sums} FROM main.calls")
        ((seconds,),) = self._file.read("SELECT seconds FROM run")
        kinds = self._file.read("SELECT kind, count(*) FROM failures GROUP BY kind")
        return Totals(calls, int(prompt), int(completion), seconds, dict(kinds), int(loose))


def _json(value: Any) -> str:
    return json.dumps(codec.encode(value), ensure_ascii=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
