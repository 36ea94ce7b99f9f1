"""Reading a run's record: the same records that were written, from a file that may come from a stranger.

The file is opened read-only and with trusted_schema off, and only known columns are read.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

from nlrl import codec
from nlrl.engine.base import Completion, Constraint, EngineInfo, Message, Request, Sampling
from nlrl.errors import StoreError
from nlrl.store_schema import CALL_COLUMNS, FILE_NAME, RUN_ID, SCHEMA_VERSION, from_column, unpack_ids
from nlrl.types import CallId, Decision, Event, Failure, GameEnd, GameStart, Step

Status = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A recorded call of the language model."""

    request: Request
    completion: Completion
    failure: Failure | None
    seconds: float


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line about a run."""

    id: str
    status: Status | Literal["unreadable"]
    """A killed run keeps saying "running"."""
    started: str
    """ISO 8601, UTC; empty when unreadable."""
    games: int = 0
    finished_games: int = 0


class RunReader:
    """A run's record, read-only. Use as a context manager or call `close`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        """The run's folder."""
        self._connection = connection

    @classmethod
    def open(cls, path: Path | str) -> RunReader:
        """Open a run by its folder or its SQLite file.

        Raises:
            StoreError: there is no such run, the file is damaged, or another version of nlrl wrote it.
        """
        file = Path(path)
        file = file / FILE_NAME if file.is_dir() else file
        if not file.is_file():
            raise StoreError(f"There is no recorded run at '{path}'.")
        with _readable(file):
            connection = _connect(file)
            try:
                connection.execute("PRAGMA trusted_schema = OFF")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version == SCHEMA_VERSION:
                    connection.execute("SELECT id FROM run").fetchone()
            except BaseException:
                connection.close()
                raise
        if version != SCHEMA_VERSION:
            connection.close()
            raise StoreError(f"'{file}' has record version {version}; this nlrl reads version {SCHEMA_VERSION}.")
        return cls(connection, file.parent)

    @property
    def id(self) -> str:
        """The run's id."""
        return self._run("id")

    @property
    def config(self) -> dict[str, Any]:
        """The run's whole configuration."""
        return json.loads(self._run("config"))

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self._run("seed")

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages that ran."""
        return json.loads(self._run("versions"))

    @property
    def engine(self) -> EngineInfo:
        """What the engine said about itself."""
        return codec.loads(self._run("engine"), EngineInfo)

    @property
    def status(self) -> Status:
        """How the run ended; a killed run keeps saying "running"."""
        return self._run("status")

    @property
    def started(self) -> str:
        """When it began (ISO 8601, UTC)."""
        return self._run("started")

    @property
    def finished(self) -> str | None:
        """When it ended (ISO 8601, UTC); None while it runs or when it was killed."""
        return self._run("finished")

    @property
    def results(self) -> dict[str, Any]:
        """The results handed to `RunStore.finish`."""
        return {name: json.loads(value) for name, value in self._rows("SELECT name, value FROM results")}

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Each recorded series, in order."""
        series: dict[str, list[float]] = {}
        for name, value in self._rows("SELECT name, value FROM metrics ORDER BY number"):
            series.setdefault(name, []).append(value)
        return series

    def prompts(self) -> list[tuple[str, str, str, str]]:
        """The prompts that were used, as (set, name, hash, text)."""
        rows = self._rows("SELECT prompt_set, name, hash, text FROM prompts ORDER BY prompt_set, name, hash")
        return [(prompt_set, name, digest, from_column(text)) for prompt_set, name, digest, text in rows]

    def games(self) -> list[tuple[GameStart, GameEnd | None]]:
        """Every game with its end, which is None for a game that was cut off."""
        columns = "game, start, observation, picture, optimal_return, outcome, total_return, steps"
        return [
            (
                GameStart(game, from_column(start), from_column(observation), from_column(picture), optimum),
                None if outcome is None else GameEnd(game, total, steps, outcome),
            )
            for game, start, observation, picture, optimum, outcome, total, steps in self._rows(
                f"SELECT {columns} FROM games ORDER BY game"
            )
        ]

    def events(self, game: int) -> list[Event]:
        """What happened in a game, as it was recorded: its start, its steps, its end if it has one."""
        found = next(((start, end) for start, end in self.games() if start.game == game), None)
        if found is None:
            raise StoreError(f"The run in '{self.path}' has no game {game}.")
        columns = "step, decision, action, reward, total_return, observation, picture, legal"
        rows = self._rows(f"SELECT {columns} FROM steps WHERE game = ? ORDER BY step", game)
        steps = [_step(game, row) for row in rows]
        start, end = found
        return [start, *steps] if end is None else [start, *steps, end]

    def calls(self) -> Iterator[CallRecord]:
        """Every call of the language model, in the order of recording."""
        text = lru_cache(maxsize=4096)(self._text)
        page, last = f"SELECT number, {CALL_COLUMNS} FROM calls WHERE number > ? ORDER BY number LIMIT 500", 0
        while rows := self._rows(page, last):
            yield from (self._call(row[1:], text) for row in rows)
            last = rows[-1][0]

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._connection.close()

    def __enter__(self) -> RunReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, row: tuple[Any, ...], text: Callable[[str], str]) -> CallRecord:
        place, (messages, form), drawn = row[:6], row[6:8], row[8:12]
        reply, finish, error, prompt_ids, ids, prompt_count, count, seconds = row[12:20]
        kind, reason, blamed = row[20:23]
        call = None if place[2] is None else CallId(*place)
        (listed,) = self._one("SELECT messages FROM message_lists WHERE hash = ?", messages)
        request = Request(
            tuple(Message(role, text(digest)) for role, digest in json.loads(listed)),
            Sampling(*drawn),
            None if form is None else codec.loads(text(form), Constraint),
            call,
        )
        completion = Completion(
            text(reply), unpack_ids(ids), unpack_ids(prompt_ids), finish,
            None if error is None else from_column(error), prompt_count, count,
        )  # fmt: skip
        failure = None
        if kind is not None and call is not None:
            failure = Failure(call, kind, from_column(reason), completion.text if blamed is None else text(blamed))
        return CallRecord(request, completion, failure, seconds)

    def _text(self, digest: str) -> str:
        return from_column(self._one("SELECT text FROM texts WHERE hash = ?", digest)[0])

    def _run(self, column: str) -> Any:
        return self._one(f"SELECT {column} FROM run")[0]

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        rows = self._rows(query, *values)
        if len(rows) != 1:
            raise StoreError(f"The record in '{self.path}' is damaged: a row that another one names is missing.")
        return rows[0]

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with _readable(self.path / FILE_NAME):
            return self._connection.execute(query, values).fetchall()


def list_runs(root: Path | str) -> list[RunSummary]:
    """The runs in a folder of runs, newest first; [] when there is none."""
    folder = Path(root)
    found = folder.iterdir() if folder.is_dir() else ()
    runs = (_summary(p) for p in found if RUN_ID.fullmatch(p.name) and (p / FILE_NAME).is_file())
    return sorted(runs, key=lambda run: (run.started, run.id), reverse=True)


def _summary(path: Path) -> RunSummary:
    try:
        with RunReader.open(path) as run:
            games = run.games()
            done = sum(end is not None for _, end in games)
            return RunSummary(path.name, run.status, run.started, len(games), done)
    except StoreError:
        return RunSummary(path.name, "unreadable", "")


def _step(game: int, row: tuple[Any, ...]) -> Step:
    number, decision, action, reward, total, observation, picture, legal = row
    texts = from_column(observation), from_column(picture)
    return Step(game, number, _decision(decision), from_column(action), reward, total, *texts, legal=bool(legal))


def _decision(text: str) -> Decision:
    try:
        return codec.loads(text, Decision)
    except codec.CodecError as error:
        raise StoreError(f"A recorded decision cannot be read: {error}") from error


def _connect(file: Path) -> sqlite3.Connection:
    """A read-only connection. A finished run in a folder that cannot be written is opened as immutable,
    because SQLite would want to create the shared-memory file beside it.
    """
    uri = f"file:{quote(str(file.resolve()))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None)
    try:
        connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        log = file.with_name(f"{file.name}-wal")
        if log.is_file() and log.stat().st_size:
            raise
        connection = sqlite3.connect(f"{uri}&immutable=1", uri=True, isolation_level=None)
    return connection


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, ValueError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"The record '{file}' cannot be read ({error}).") from error
