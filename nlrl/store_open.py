"""Opening a record that may come from a stranger: read-only, checked before anything of it is used.

Every table, index, view and trigger must be stated exactly as nlrl states it, so a file cannot bring a view, a trigger
or a computed column of its own; schema expressions run untrusted, and no value longer than `MOST_BYTES` is handed out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from nlrl.errors import NoSuchRunError, StoreError
from nlrl.store_migrate import expected_rows, migrated, schema_rows, tables_of
from nlrl.store_schema import FILE_NAME, SCHEMA_VERSION
from nlrl.store_views import show

MOST_BYTES = 1 << 27
"""Longest text or blob of a record; SQLite itself would allow 1 GB."""


def record_file(path: Path | str) -> Path:
    """The SQLite file of a run's folder, or the file itself; raises `NoSuchRunError` when there is none."""
    file = Path(path)
    file = file / FILE_NAME if file.is_dir() else file
    if not file.is_file() or file.is_symlink():
        raise NoSuchRunError(f"There is no recorded run at '{path}'.")
    return file


def open_record(file: Path) -> tuple[sqlite3.Connection, int]:
    """A read-only connection that shows the record as `nlrl.store_views` says, and the version the file was written in.

    Raises:
        StoreError: the file is damaged, is no record, or is of a version this nlrl does not know.
    """
    with readable(file):
        connection = _connect(file)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if tables_of(version) is None:
                raise StoreError(
                    f"'{file}' has record version {version}; this nlrl reads versions 1 to {SCHEMA_VERSION}."
                )
            if schema_rows(connection) != expected_rows(version):
                raise StoreError(f"'{file}' is no record of a run: its tables are not those that nlrl makes.")
            if version == SCHEMA_VERSION:
                show(connection)
                return connection, version
            copy = migrated(connection, version)
            show(copy)
        except BaseException:
            connection.close()
            raise
        connection.close()
        return copy, version


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Whatever goes wrong while a record is read, as one sentence."""
    try:
        yield
    except (sqlite3.Error, ValueError, OSError, OverflowError) as error:
        if isinstance(error, StoreError):
            raise
        # SQLite keeps what a function of ours raised to itself; those in a view only unpack.
        damaged = "user-defined function" in str(error)
        reason = "a packed text is damaged, too long or cut off" if damaged else error
        raise StoreError(f"The record '{file}' cannot be read ({reason}).") from error


def _connect(file: Path) -> sqlite3.Connection:
    """A read-only connection. A finished run in a folder that cannot be written is opened as immutable,
    because SQLite would want to create the shared-memory file beside it.
    """
    uri = f"file:{quote(str(file.resolve()))}?mode=ro"
    connection = _limited(uri)
    try:
        connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        log = file.with_name(f"{file.name}-wal")
        if log.is_file() and log.stat().st_size:
            raise
        connection = _limited(f"{uri}&immutable=1")
    return connection


def _limited(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_BYTES)
    return connection
