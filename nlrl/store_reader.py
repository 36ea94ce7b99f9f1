"""Reading a run's record: the same records that were written, from a file that may come from a stranger.

The file is opened as `nlrl.store_open` says, and only known columns are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from nlrl import codec
from nlrl.engine.base import Completion, Constraint, EngineInfo, Message, Request, Sampling
from nlrl.errors import NoSuchRunError, StoreError
from nlrl.store_open import open_record, readable, record_file
from nlrl.store_packing import from_column, unpack_floats, unpack_ids
from nlrl.store_schema import FILE_NAME, RUN_ID, SCHEMA_VERSION
from nlrl.store_views import CALL_COLUMNS, spelled_out
from nlrl.types import CallId, Decision, Event, Example, Failure, GameEnd, GameStart, Step

Read = Callable[..., list[tuple[Any, ...]]]
"""(query, values...) -> rows."""

Status = Literal["running", "finished", "interrupted", "failed"]

EXAMPLE_COLUMNS = "id, role, messages, target, target_token_ids, weight, games"


def text_of(column: str) -> str:
    """A text in a SELECT, by the column that holds its id."""
    return f"(SELECT text FROM texts WHERE id = {column}) AS {column}"


_GAME_COLUMNS = (
    f"game, start, {text_of('observation')}, {text_of('picture')}, optimal_return, outcome, ending, total_return, steps"
)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A recorded call of the language model."""

    request: Request
    completion: Completion
    failure: Failure | None
    seconds: float
    key: str = ""
    """What makes the question this one, see `nlrl.store_schema.call_key`."""


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
    does: str = ""
    """What it does: its loop and its game."""
    phase: str = ""
    """The last phase that began, of a loop that learns."""


class RunReader:
    """A run's record, read-only. Use as a context manager or call `close`."""

    def __init__(self, path: Path | str) -> None:
        """Open a run by its folder or its SQLite file.

        Raises:
            NoSuchRunError: there is no such run.
            StoreError: the file is damaged, is no record, or a later version of nlrl wrote it.
        """
        self._path = record_file(path)
        self.path = self._path.parent
        """The run's folder."""
        self._connection, self._version = open_record(self._path)
        self._text = lru_cache(maxsize=4096)(self._read_text)

    @classmethod
    def open(cls, path: Path | str) -> RunReader:
        """The same as calling the class."""
        return cls(path)

    @property
    def is_current(self) -> bool:
        """Whether this version of nlrl wrote the record, so that it may go on with it."""
        return self._version == SCHEMA_VERSION

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
    def identity(self) -> dict[str, str]:
        """What decided the run's answers, see `nlrl.manifest.identity`."""
        return json.loads(self._run("identity"))

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
        return {name: json.loads(value) for name, value in self.rows("SELECT name, value FROM results")}

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Each recorded series, in order."""
        series: dict[str, list[float]] = {}
        for name, value in self.rows("SELECT name, value FROM metrics ORDER BY name, step"):
            series.setdefault(name, []).append(value)
        return series

    def prompts(self) -> list[tuple[str, str, str, str]]:
        """The prompts that were used, as (set, name, hash, text)."""
        rows = self.rows("SELECT prompt_set, name, hash, text FROM prompts ORDER BY prompt_set, name, hash")
        return [(prompt_set, name, digest, from_column(text)) for prompt_set, name, digest, text in rows]

    def games(self) -> list[tuple[GameStart, GameEnd | None]]:
        """Every game with its end, which is None for a game that was cut off."""
        return [self._game(row) for row in self.rows(f"SELECT {_GAME_COLUMNS} FROM games ORDER BY game")]

    def game(self, game: int) -> tuple[GameStart, GameEnd | None] | None:
        """One game, as `games` gives it; None when there is no such game."""
        rows = self.rows(f"SELECT {_GAME_COLUMNS} FROM games WHERE game = ?", game)
        return self._game(rows[0]) if rows else None

    def ended(self, first: int, last: int) -> Iterator[tuple[GameStart, GameEnd]]:
        """The games numbered from `first` to before `last` that ended."""
        where = "game >= ? AND game < ? AND outcome IS NOT NULL"
        for row in self.rows(f"SELECT {_GAME_COLUMNS} FROM games WHERE {where} ORDER BY game", first, last):
            start, end = self._game(row)
            if end is not None:
                yield start, end

    def answer(self, key: str, call: CallId | None) -> Completion | None:
        """The recorded answer to a question, by its `nlrl.store_schema.call_key` and its place in the run."""
        with readable(self._path):
            return find_answer(key, call, self.rows)

    def counts(self) -> tuple[int, int]:
        """How many games there are, and how many of them ended."""
        ((games, ended),) = self.rows("SELECT count(*), count(outcome) FROM games")
        return games, ended

    def events(self, game: int) -> list[Event]:
        """What happened in a game, as it was recorded: its start, its steps, its end if it has one."""
        found = self.game(game)
        if found is None:
            raise NoSuchRunError(f"The run in '{self.path}' has no game {game}.")
        columns = f"step, decision, action, reward, total_return, {text_of('observation')}, {text_of('picture')}, legal"
        rows = self.rows(f"SELECT {columns} FROM steps WHERE game = ? ORDER BY step", game)
        steps = [self._step(game, row) for row in rows]
        start, end = found
        return [start, *steps] if end is None else [start, *steps, end]

    def calls(self) -> Iterator[CallRecord]:
        """Every call of the language model, in the order of recording."""
        page, last = f"SELECT number, {CALL_COLUMNS} FROM calls WHERE number > ? ORDER BY number LIMIT 500", 0
        while rows := self.rows(page, last):
            yield from (self._call(row[1:]) for row in rows)
            last = rows[-1][0]

    def examples(self) -> Iterator[Example]:
        """Every pair that a model is to be trained on."""
        for row in self.rows(f"SELECT {EXAMPLE_COLUMNS} FROM examples ORDER BY id"):
            yield self.example(row)

    def example(self, row: tuple[Any, ...]) -> Example:
        """The pair in a row of `examples` with the columns `EXAMPLE_COLUMNS`."""
        name, role, messages, target, ids, weight, games = row
        prompt = tuple((m.role, m.content) for m in self._messages(messages))
        with readable(self._path):
            return Example(name, role, prompt, self.text(target), unpack_ids(ids), weight, tuple(json.loads(games)))

    def checkpoints(self) -> dict[str, dict[str, str]]:
        """Each complete checkpoint with the SHA-256 of its files."""
        return {name: json.loads(files) for name, files in self.rows("SELECT name, files FROM checkpoints")}

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._connection.close()

    def __enter__(self) -> RunReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the record as `nlrl.store_views` shows it."""
        with readable(self._path):
            return self._connection.execute(query, values).fetchall()

    def stream(self, query: str, size: int = 2000) -> Iterator[list[tuple[Any, ...]]]:
        """The same, in lists of at most `size` rows, for tables of any length."""
        with readable(self._path):
            cursor = self._connection.execute(query)
            while rows := cursor.fetchmany(size):
                yield rows

    def text(self, number: int) -> str:
        """A text by its id."""
        return self._text(number)

    def _read_text(self, number: int) -> str:
        return from_column(self._one("SELECT text FROM texts WHERE id = ?", number)[0])

    def _call(self, row: tuple[Any, ...]) -> CallRecord:
        key, place, (messages, form), drawn = row[0], row[1:8], row[8:10], row[10:15]
        with readable(self._path):
            completion = completion_of(row, self.rows)
        kind, reason, blamed = row[25:28]
        game, step, role, action, variation, ply, attempt = place
        call = None if role is None else CallId(game, step, role, action, variation, ply, attempt)
        request = Request(
            self._messages(messages),
            Sampling(drawn[0], drawn[1], drawn[2], drawn[3], bool(drawn[4])),
            None if form is None else self._form(self.text(form)),
            call,
        )
        failure = None if kind is None or call is None else Failure(call, kind, from_column(reason), self.text(blamed))
        return CallRecord(request, completion, failure, row[24], key)

    def _messages(self, listed: str) -> tuple[Message, ...]:
        with readable(self._path):
            return tuple(Message(role, self.text(one)) for role, one in json.loads(listed))

    def _form(self, text: str) -> Constraint:
        with readable(self._path):
            return codec.loads(text, Constraint)

    def _step(self, game: int, row: tuple[Any, ...]) -> Step:
        number, told, action, reward, total, observation, picture, legal = row
        try:
            decision = codec.loads(spelled_out(told, self.text), Decision)
        except (ValueError, TypeError) as error:
            raise StoreError(f"A recorded decision in '{self._path}' cannot be read: {error}") from error
        texts = self._seen(observation, picture)
        return Step(game, number, decision, from_column(action), reward, total, *texts, legal=bool(legal))

    def _seen(self, *texts: str | bytes | None) -> tuple[str, ...]:
        if None in texts:
            raise StoreError(f"The record in '{self.path}' is damaged: a row that another one names is missing.")
        return tuple(from_column(text) for text in texts if text is not None)

    def _game(self, row: tuple[Any, ...]) -> tuple[GameStart, GameEnd | None]:
        game, start, observation, picture, optimum, outcome, ending, total, steps = row
        seen, drawn = self._seen(observation, picture)
        begun = GameStart(game, from_column(start), seen, drawn, optimum)
        ended = None if outcome is None else GameEnd(game, total, steps, outcome, from_column(ending or ""))
        return begun, ended

    def _run(self, column: str) -> Any:
        return self._one(f"SELECT {column} FROM run")[0]

    def _one(self, query: str, *values: Any) -> tuple[Any, ...]:
        rows = self.rows(query, *values)
        if len(rows) != 1:
            raise StoreError(f"The record in '{self.path}' is damaged: a row that another one names is missing.")
        return rows[0]


def find_answer(key: str, call: CallId | None, read: Read) -> Completion | None:
    """The answer to a question, by its key, among the calls of its decision."""
    place = (None, None) if call is None else (call.game, call.step)
    rows = read(f"SELECT {CALL_COLUMNS} FROM calls WHERE game IS ? AND step IS ? AND key = ?", *place, key)
    return completion_of(rows[0], read) if rows else None


def completion_of(row: tuple[Any, ...], read: Read) -> Completion:
    """The answer in a row of `calls` with the columns `CALL_COLUMNS`."""
    reply, finish, error, constrained, prompt_ids, ids, logprobs, prompt_count, count = row[15:24]
    texts = read("SELECT text FROM texts WHERE id = ?", reply)
    if len(texts) != 1:
        raise StoreError("The record is damaged: the text of a reply is missing.")
    return Completion(
        from_column(texts[0][0]), unpack_ids(ids), unpack_ids(prompt_ids), finish,
        None if error is None else from_column(error), prompt_count, count, unpack_floats(logprobs),
        None if constrained is None else bool(constrained),
    )  # fmt: skip


def list_runs(root: Path | str) -> list[RunSummary]:
    """The runs in a folder of runs, newest first; [] when there is none."""
    folder = Path(root)
    found = folder.iterdir() if folder.is_dir() else ()
    runs = (_summary(p) for p in found if RUN_ID.fullmatch(p.name) and not p.is_symlink() and (p / FILE_NAME).is_file())
    return sorted(runs, key=lambda run: (run.started, run.id), reverse=True)


def _summary(path: Path) -> RunSummary:
    try:
        with RunReader.open(path) as run:
            return RunSummary(path.name, run.status, run.started, *run.counts(), *_does(run))
    except StoreError:
        return RunSummary(path.name, "unreadable", "")


def _does(run: RunReader) -> tuple[str, str]:
    """What a run does, and the phase it got to."""
    env = run.config.get("env")
    game = str(env.get("id", "")) if isinstance(env, dict) else ""
    loop = str(run.config.get("loop", "policy_iteration")).replace("_", " ")
    last = run.rows("SELECT iteration, name FROM phases WHERE iteration > 0 ORDER BY number DESC LIMIT 1")
    return f"{loop} on {game}" if game else loop, f"iteration {last[0][0]}, {last[0][1]}" if last else ""
