"""Checkpoints of weights that are whole or not there: written apart, flushed, moved into place, then marked.

The mark in the run's record comes last and lists every file with its SHA-256, so it never points at missing parts; what
has no mark is left over from a crash and is written again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from nlrl.errors import ConfigError, StoreError
from nlrl.store import RunReader, RunStore

FOLDER = "checkpoints"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def save_checkpoint(store: RunStore, name: str, write: Callable[[Path], None]) -> Path:
    """Write a checkpoint with `write(folder)` and mark it as complete; a complete one of that name is kept as it is.

    Raises:
        ConfigError: the name is no plain name.
        StoreError: it cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"The checkpoint name {name[:80]!r} cannot be used: a-z, 0-9 and '-', beginning plainly.")
    root = store.path / FOLDER
    place = root / name
    with RunReader.open(store.path) as reader:
        if name in reader.checkpoints():
            return place
    try:
        root.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        for left_over in root.glob(f".new-{name}-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".new-{name}-", dir=root))
        write(draft)
        files = {path.relative_to(draft).as_posix(): _flushed(path) for path in _files(draft)}
        for folder in (*(path for path in draft.rglob("*") if path.is_dir()), draft):
            _flush(folder)
        draft.rename(place)
        _flush(root)
    except OSError as error:
        raise StoreError(f"The checkpoint '{name}' cannot be written in '{root}': {error.strerror}.") from error
    store.record_checkpoint(name, files)
    return place


def complete_checkpoints(reader: RunReader) -> dict[str, Path]:
    """The complete checkpoints by name, in the order of their names.

    Raises:
        StoreError: a file of one has changed or gone since it was marked.
    """
    found: dict[str, Path] = {}
    for name, files in sorted(reader.checkpoints().items()):
        place = reader.path / FOLDER / name
        for file, wanted in files.items():
            path = place / file
            if not path.is_file() or path.is_symlink() or _sha256(path) != wanted:
                raise StoreError(f"The checkpoint '{name}' is not what was written: '{file}' is gone or changed.")
        found[name] = place
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flushed(path: Path) -> str:
    _flush(path)
    return _sha256(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
