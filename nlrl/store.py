"""The record of a run: one SQLite file `<root>/<run id>/run.sqlite`, written as the run goes.

WAL mode, synchronous=NORMAL, and exactly one writing connection, which alone checkpoints (SQLite before
3.51.3 can corrupt a WAL that two connections reset at once). The writer is a thread: rows handed to
`RunStore` are committed in batches, at the latest 0.2 s after the first of them, also while the engine
keeps the main thread busy. A killed process therefore loses at most those 0.2 s, and never more than whole
rows.

`RunReader` gives back the very records that were written. It opens the file read-only, also while the run
goes on.
"""

from __future__ import annotations

import json
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nlrl import codec
from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.errors import StoreError
from nlrl.store_reader import CallRecord, RunReader, RunSummary, list_runs
from nlrl.store_schema import (
    CALL_COLUMNS,
    FILE_NAME,
    SCHEMA_VERSION,
    TABLES,
    check_run_id,
    pack_ids,
    sha256_text,
    to_column,
)
from nlrl.types import Event, Failure, GameEnd, GameStart, Step

__all__ = ["CallRecord", "RunReader", "RunStore", "RunSummary", "list_runs", "new_run_id"]

BATCH_SECONDS = 0.2
BATCH_ROWS = 200

Statement = tuple[str, Sequence[Any]]


def new_run_id(root: Path | str, *parts: str) -> str:
    """An unused id such as "maze-hymba-20261124-041500": the parts, then the time in UTC, numbered if taken."""
    words = ("".join(c if c.isascii() and c.isalnum() else "-" for c in part.lower()) for part in parts)
    name = "-".join(word for word in ("-".join(filter(None, w.split("-"))) for w in words) if word)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    base = f"{name[:40].strip('-')}-{stamp}" if name else f"run-{stamp}"
    taken = (base, *(f"{base}-{number}" for number in range(2, 1000)))
    return next(run_id for run_id in taken if not (Path(root) / run_id).exists())


class Manifest(NamedTuple):
    """What is known about a run before it begins."""

    config: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str]
    engine: EngineInfo


class RunStore:
    """Writes one run. Use `create`, hand records over from any thread, and `finish` or `close` at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The run's folder."""
        self._queue: queue.SimpleQueue[Statement | threading.Event | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def create(
        cls,
        root: Path | str,
        run_id: str,
        *,
        config: Mapping[str, Any],
        seed: int,
        versions: Mapping[str, str],
        engine: EngineInfo,
    ) -> RunStore:
        """Begin the record of a new run; an existing one is never overwritten.

        Args:
            root: folder of all runs ("runs/out"); made when absent.
            run_id: name of the run's folder, see `new_run_id`.
            config: the whole configuration as JSON types, without secrets.
            seed: the run's seed.
            versions: of Python and of the packages that matter.
            engine: what `Engine.describe` says.

        Raises:
            ConfigError: the run id is no plain name.
            StoreError: the folder exists already, or cannot be written.
        """
        path = Path(root).resolve() / check_run_id(run_id)
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            raise StoreError(f"A run named '{run_id}' exists already; choose another id or remove it.") from error
        except OSError as error:
            raise StoreError(f"The run folder '{path}' cannot be made: {error.strerror}.") from error
        store = cls(path)
        store._begin(run_id, Manifest(config, seed, versions, engine))
        return store

    def record_prompts(self, prompts: Iterable[tuple[str, str, str, str]]) -> None:
        """Store the prompts the run uses, as (set, name, hash, text)."""
        for prompt_set, name, digest, text in prompts:
            row = (prompt_set, name, digest, to_column(text))
            self._put("INSERT OR IGNORE INTO prompts VALUES (?, ?, ?, ?)", row)

    def record_event(self, event: Event) -> None:
        """Store what a loop yielded."""
        match event:
            case GameStart():
                texts = map(to_column, (event.start, event.observation, event.picture))
                self._put(
                    "INSERT INTO games (game, start, observation, picture, optimal_return) VALUES (?, ?, ?, ?, ?)",
                    (event.game, *texts, event.optimal_return),
                )
            case Step():
                seen = (to_column(event.observation), to_column(event.picture), event.legal)
                move = (event.game, event.step, to_column(event.action), event.reward, event.total_return)
                self._put(
                    "INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*move, *seen, codec.dumps(event.decision)),
                )
            case GameEnd():
                self._put(
                    "UPDATE games SET outcome = ?, total_return = ?, steps = ? WHERE game = ?",
                    (event.outcome, event.total_return, event.steps, event.game),
                )

    def record_call(self, request: Request, completion: Completion, failure: Failure | None, seconds: float) -> None:
        """Store a call of the language model: what was asked, what came, and why it was unusable if it was."""
        call = request.call or (failure.call if failure else None)
        sampling = request.sampling
        place = (call.game, call.step, call.role, call.action, call.variation, call.attempt) if call else (None,) * 6
        form = None if request.constraint is None else self._text(codec.dumps(request.constraint))
        reply = self._text(completion.text)
        blamed = None if failure is None or failure.reply == completion.text else self._text(failure.reply)
        error = None if completion.error is None else to_column(completion.error)
        self._put(
            f"INSERT INTO calls ({CALL_COLUMNS}) VALUES (?{', ?' * 22})",
            (*place, self._messages(request), form)
            + (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.seed)
            + (reply, completion.finish_reason, error)
            + (pack_ids(completion.prompt_token_ids), pack_ids(completion.token_ids))
            + (completion.prompt_tokens, completion.completion_tokens, seconds)
            + ((failure.kind, to_column(failure.reason), blamed) if failure else (None, None, None)),
        )

    def record_metric(self, name: str, value: float) -> None:
        """Append one figure to the series `name`."""
        self._put("INSERT INTO metrics (name, value) VALUES (?, ?)", (name, value))

    def flush(self) -> None:
        """Return when everything handed over so far is committed; raises `StoreError` when it could not be."""
        if self._thread is not None and self._thread.is_alive():
            done = threading.Event()
            self._queue.put(done)
            while not done.wait(0.5) and self._thread.is_alive():
                pass
        self._raise_error()

    def finish(
        self,
        status: Literal["finished", "interrupted", "failed"] = "finished",
        results: Mapping[str, Any] | None = None,
    ) -> None:
        """State how the run ended, with its results as JSON types, and close."""
        for name, value in (results or {}).items():
            self._put("INSERT OR REPLACE INTO results VALUES (?, ?)", (name, _json(value)))
        self._put("UPDATE run SET status = ?, finished = ?", (status, _now()))
        self.close()

    def close(self) -> None:
        """Commit what is left and close the file; safe to call twice. Raises `StoreError` if a row was not written."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
            self._raise_error()

    def _begin(self, run_id: str, manifest: Manifest) -> None:
        row = (run_id, _json(manifest.config), manifest.seed, _json(manifest.versions))
        try:
            connection = sqlite3.connect(
                self.path / FILE_NAME, timeout=10, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            connection.execute(
                "INSERT INTO run VALUES (?, ?, ?, ?, ?, ?, NULL, 'running')",
                (*row, codec.dumps(manifest.engine), _now()),
            )
        except sqlite3.Error as error:
            raise self._store_error(error) from error
        self._thread = threading.Thread(target=self._write, args=(connection,), name="run-store", daemon=True)
        self._thread.start()

    def _put(self, statement: str, row: Sequence[Any]) -> None:
        self._raise_error()
        if self._thread is None:
            raise StoreError(f"The record of the run in '{self.path}' is closed already.")
        self._queue.put((statement, row))

    def _text(self, text: str) -> str:
        digest = sha256_text(text)
        self._put("INSERT OR IGNORE INTO texts VALUES (?, ?)", (digest, to_column(text)))
        return digest

    def _messages(self, request: Request) -> str:
        listed = json.dumps([[m.role, self._text(m.content)] for m in request.messages], separators=(",", ":"))
        digest = sha256_text(listed)
        self._put("INSERT OR IGNORE INTO message_lists VALUES (?, ?)", (digest, listed))
        return digest

    def _write(self, connection: sqlite3.Connection) -> None:
        """The writer thread: one transaction a batch, until None comes or a write fails."""
        try:
            more = True
            while more:
                batch, waiting, more = self._next_batch()
                if batch:
                    connection.execute("BEGIN")
                    for statement, row in batch:
                        connection.execute(statement, row)
                    connection.execute("COMMIT")
                for event in waiting:
                    event.set()
        except (sqlite3.Error, OverflowError) as error:  # OverflowError: an integer of more than 64 bits
            self._error = error
        finally:
            connection.close()

    def _next_batch(self) -> tuple[list[Statement], list[threading.Event], bool]:
        """Rows to write together, who waits for them, and whether the store is still open."""
        batch: list[Statement] = []
        waiting: list[threading.Event] = []
        item, deadline = self._queue.get(), time.monotonic() + BATCH_SECONDS
        while True:
            if item is None:
                return batch, waiting, False
            if isinstance(item, threading.Event):
                return batch, [item], True
            batch.append(item)
            if len(batch) >= BATCH_ROWS:
                return batch, waiting, True
            try:
                item = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return batch, waiting, True

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._store_error(self._error) from self._error

    def _store_error(self, error: Exception) -> StoreError:
        return StoreError(
            f"The run's record in '{self.path}' cannot be written ({error}); "
            "free space or give another folder. What was recorded before is intact."
        )


def _json(value: Any) -> str:
    return json.dumps(codec.encode(value), ensure_ascii=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
