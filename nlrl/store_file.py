"""The SQLite file under a run's record: made whole or not at all, one writer, every change a transaction.

WAL mode, synchronous=NORMAL, and exactly one writing connection, which alone checkpoints (SQLite before 3.51.3 can
corrupt a WAL that two connections reset at once); a lock that dies with the process keeps a second writer out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nlrl.engine.base import Sampling
from nlrl.errors import StoreError
from nlrl.store_packing import SHORTEST, Bases, as_bytes, from_bytes, inflate, to_column
from nlrl.store_schema import FILE_NAME, LOCK_NAME, SCHEMA_VERSION, TABLES, compact_json, short_hash, text_hash
from nlrl.store_views import show

KNOWN_TEXTS = 4096
"""Texts, and blobs, whose rows need not be looked for again; bounded, for runs of any length."""


class RunFile:
    """The open file of a run. One thread, one writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The run's folder."""
        self._lock = take_lock(path)
        self._known: dict[bytes, int] = {}
        self._known_blobs: dict[bytes, int] = {}
        self._kinds: dict[tuple[Any, ...], int] = {}
        self._texts, self._blobs = Bases(), Bases()
        try:
            self._db = _connect(path / FILE_NAME, "WAL")
            show(self._db)
        except sqlite3.Error as error:
            os.close(self._lock)
            raise store_error(path, error) from error
        self._open = True

    @staticmethod
    def make(path: Path, run_row: Sequence[Any]) -> None:
        """Put a new record at `path`: the folder appears with its tables and its row in `run`, or not at all."""
        if path.exists() or path.is_symlink():
            raise StoreError(
                f"A run named '{path.name}' exists already; go on with it by 'nlrl resume {path.name}', or choose "
                "another id."
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".new-{path.name}-", dir=path.parent))
            try:
                draft.chmod(0o755)
                db = _connect(draft / FILE_NAME, "DELETE")
                db.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {SCHEMA_VERSION};")
                db.execute(f"INSERT INTO run VALUES (?{', ?' * (len(run_row) - 1)})", run_row)
                db.execute("COMMIT")
                db.close()
                draft.rename(path)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StoreError(
                f"The run folder '{path}' cannot be made ({reason}); free space, permit writing, or choose another "
                "folder with --runs."
            ) from error

    def read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the record as `nlrl.store_views` shows it."""
        with self.errors():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """All of it is in the file when the block ends, or nothing; `durable` outlives a loss of power too.

        Raises:
            StoreError: the file cannot be written, or is closed.
        """
        if not self._open:
            raise StoreError(f"The record of the run in '{self.path}' is closed already.")
        db = self._db
        with self.errors():
            if durable:
                db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                for remembered in (self._known, self._known_blobs, self._kinds, self._texts, self._blobs):
                    remembered.clear()  # what they speak of is taken back
                with suppress(sqlite3.Error):  # SQLite rolls back by itself when the disk is full
                    db.execute("ROLLBACK")
                raise
            if durable:
                db.execute("PRAGMA synchronous = NORMAL")

    def text(self, text: str, kind: str = "") -> int:
        """The id of a text, which is in the file from now on, packed against the first of its `kind`; within a
        transaction.
        """
        digest = text_hash(text)
        if (known := self._known.get(digest)) is not None:
            return known
        number = self._find(digest, text)
        if number is None:
            content, base, body = text.encode("utf-8", "surrogatepass"), None, to_column(text)
            is_base = self._texts.suits(content, kind)
            if len(content) >= SHORTEST and not is_base:
                against, small = self._texts.packed(content, kind)
                base, body = (against, small) if len(small) < len(content) else (base, body)
            number = self._insert("texts (base, body)", base, body)
            self._db.execute("INSERT INTO main.text_ids VALUES (?, ?)", (short_hash(digest), number))
            if is_base:
                self._texts.add(content, kind, number)
        _remember(self._known, digest, number)
        return number

    def _find(self, digest: bytes, text: str) -> int | None:
        """The id of a text that is there; several may have its short hash."""
        base = "(SELECT b.body FROM main.texts b WHERE b.id = t.base)"
        like = "main.text_ids i JOIN main.texts t ON t.id = i.id WHERE i.hash = ?"
        query = f"SELECT t.id, t.base, t.body, {base} FROM {like}"
        for number, packed, body, base in self._db.execute(query, (short_hash(digest),)):
            if to_column(text) == (body if packed is None else from_bytes(inflate(body, as_bytes(base or b"")))):
                return number
        return None

    def blob(self, content: bytes, kind: str) -> int:
        """The same for bytes, which however are looked for only among the latest."""
        digest = hashlib.sha256(content).digest()
        if (known := self._known_blobs.get(digest)) is not None:
            return known
        base, body, is_base = None, content, self._blobs.suits(content, kind)
        if len(content) >= SHORTEST and not is_base:
            against, small = self._blobs.packed(content, kind)
            base, body = (against, small) if len(small) < len(content) else (base, body)
        number = self._insert("blobs (base, body)", base, body)
        if is_base:
            self._blobs.add(content, kind, number)
        _remember(self._known_blobs, digest, number)
        return number

    def packed(self, content: bytes, kind: str) -> tuple[bytes, int]:
        """Bytes packed against the blob whose id comes with them: the first of their kind, which becomes a blob."""
        if self._blobs.suits(content, kind):
            self.blob(content, kind)
        base, body = self._blobs.packed(content, kind)
        return body, base

    def kind(self, role: str | None, sampling: Sampling) -> int:
        """The id of what the calls of a role have in common, which is in the file from now on; within a transaction."""
        row = (role, sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.logprobs)
        if (known := self._kinds.get(row)) is None:
            same = " AND ".join(f"{c} IS ?" for c in ("role", "temperature", "top_p", "max_tokens", "with_logprobs"))
            found = self._db.execute(f"SELECT id FROM main.kinds WHERE {same}", row).fetchone()
            columns = "kinds (role, temperature, top_p, max_tokens, with_logprobs)"
            known = self._kinds[row] = found[0] if found else self._insert(columns, *row)
        return known

    def insert(self, table: str, row: Sequence[Any]) -> None:
        """Insert a row of a table that numbers its rows by itself, within a transaction."""
        self._db.execute(f"INSERT INTO main.{table} VALUES (NULL{', ?' * len(row)})", row)

    def _insert(self, place: str, *row: Any) -> int:
        done = self._db.execute(f"INSERT INTO main.{place} VALUES (?{', ?' * (len(row) - 1)})", row)
        assert done.lastrowid is not None
        return done.lastrowid

    def texts(self, texts: Iterable[str], kind: str = "") -> str:
        """The ids of texts as a column has them, see `text`."""
        return compact_json([self.text(text, kind) for text in texts])

    def messages(self, messages: Iterable[tuple[str, str]], kind: str = "") -> str:
        """A list of (role, content) as a column has it, see `text`."""
        return compact_json([[role, self.text(content, f"{role} {kind}")] for role, content in messages])

    def insert_once(self, table: str, row: Sequence[Any], *, key: int, fixed: int | None = None) -> bool:
        """Insert a row whose first `key` columns name it, within a transaction; returns whether it is new.

        Raises:
            StoreError: there is such a row, and it differs in its first `fixed` columns (all by default).
        """
        done = self._db.execute(f"INSERT OR IGNORE INTO main.{table} VALUES (?{', ?' * (len(row) - 1)})", row)
        if done.rowcount:
            return True
        columns = [name for _, name, *_ in self._db.execute(f"PRAGMA main.table_info({table})")]
        where = " AND ".join(f"{name} = ?" for name in columns[:key])
        there = self._db.execute(f"SELECT * FROM main.{table} WHERE {where}", row[:key]).fetchone()
        if there is None or tuple(there[:fixed]) != tuple(row[:fixed]):
            place = ", ".join(f"{name} {value}" for name, value in zip(columns[:key], row[:key], strict=True))
            raise self.other_course(f"{table}, {place}")
        return False

    def update_once(self, table: str, columns: str, row: Sequence[Any], key: str, value: Any) -> None:
        """Fill columns of a row that were NULL, within a transaction.

        Raises:
            StoreError: they hold other values already.
        """
        (there,) = self._db.execute(f"SELECT {columns} FROM main.{table} WHERE {key} = ?", (value,)).fetchall() or ((),)
        if any(found is not None for found in there):
            if tuple(there) != tuple(row):
                raise self.other_course(f"{table}, {key} {value}")
            return
        named = ", ".join(f"{column} = ?" for column in columns.split(", "))
        self._db.execute(f"UPDATE main.{table} SET {named} WHERE {key} = ?", (*row, value))

    def other_course(self, place: str) -> StoreError:
        """The sentence for what differs from what is recorded at a place."""
        return StoreError(
            f"The run in '{self.path}' took another course than recorded ({place}): its game or engine does not "
            "repeat itself; begin a new run with --force-new."
        )

    def settle(self) -> None:
        """Make the record one plain file, which needs no log beside it to be read; not while somebody reads it."""
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout = 0")
            self._db.execute("PRAGMA journal_mode = DELETE")

    def close(self) -> None:
        """Close the file and let go of the lock; safe to call twice."""
        if self._open:
            self._open = False
            try:
                with self.errors():
                    self._db.close()
            finally:
                os.close(self._lock)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """SQLite's complaints as one sentence."""
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:  # OverflowError: an integer of more than 64 bits
            raise store_error(self.path, error) from error


def store_error(path: Path, error: Exception) -> StoreError:
    """The sentence for a record that cannot be written."""
    return StoreError(
        f"The run's record in '{path}' cannot be written ({error}); free space or permit writing, then go on with "
        f"'nlrl resume {path.name}'. What was recorded before is intact."
    )


def _remember(known: dict[bytes, int], name: bytes, number: int) -> None:
    known[name] = number
    if len(known) > KNOWN_TEXTS:
        del known[next(iter(known))]


def _connect(file: Path, journal: str) -> sqlite3.Connection:
    connection = sqlite3.connect(file, timeout=10, isolation_level=None)
    try:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if journal == 'WAL' else 'FULL'}")
    except BaseException:
        connection.close()
        raise
    return connection


def take_lock(path: Path) -> int:
    """The open lock file of a run; the system lets go of it when the process ends, however it ends."""
    try:
        handle = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise store_error(path, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StoreError(f"Another process is writing the run in '{path}'; wait for it or stop it.") from error
    return handle
