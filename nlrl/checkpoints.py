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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nlrl.errors import ConfigError, StoreError
from nlrl.store import RunReader, RunStore

FOLDER = "checkpoints"
STATE = "training"
"""Subfolder of a checkpoint that only the training after it reads; its tensors may be pruned (`prune_states`)."""
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def save_checkpoint(store: RunStore, name: str, write: Callable[[Path], None]) -> Path:
    """Write a checkpoint with `write(folder)` and mark it as complete; a complete one of that name is kept as it is.

    Raises:
        ConfigError: the name is no plain name.
        StoreError: it cannot be written.
    """
    with RunReader.open(store.path) as reader:
        if name in reader.checkpoints():
            return store.path / FOLDER / name
    store.record_checkpoint(name, write_checkpoint(store.path, name, write))
    return store.path / FOLDER / name


def write_checkpoint(run: Path, name: str, write: Callable[[Path], None]) -> dict[str, str]:
    """Write a checkpoint of the run in folder `run` with `write(folder)`; the caller marks it with what is returned,
    the SHA-256 of each file. It touches no database, so that a thread may do it.

    Raises:
        ConfigError: the name is no plain name.
        StoreError: it cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"The checkpoint name {name[:80]!r} cannot be used: a-z, 0-9 and '-', beginning plainly.")
    root = run / FOLDER
    place = root / name
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
        reason = error.strerror or str(error)
        raise StoreError(f"The checkpoint '{name}' cannot be written in '{root}': {reason}.") from error
    return files


def prune_states(run: Path, names: Sequence[str]) -> None:
    """Delete what trainings would go on from in the named checkpoints; the weights stay.

    For checkpoints that a later, complete one goes on from: then nothing reads it again. What a crash leaves of it is
    deleted the next time.

    Raises:
        StoreError: it cannot be deleted.
    """
    for name in names:
        for path in sorted((run / FOLDER / name / STATE).glob("*.safetensors")):
            try:
                path.unlink()
            except OSError as error:
                raise StoreError(f"The training state '{path}' cannot be deleted: {error.strerror}.") from error


def complete_checkpoint(store: RunStore, name: str) -> Path | None:
    """The folder of a complete checkpoint; None when the run has none of that name.

    Raises:
        StoreError: a file of it has changed or gone since it was marked.
    """
    with RunReader.open(store.path) as reader:
        files = reader.checkpoints().get(name)
    return None if files is None else _checked(store.path, name, files)


def complete_checkpoints(reader: RunReader) -> dict[str, Path]:
    """The complete checkpoints by name, in the order of their names.

    Raises:
        StoreError: a file of one has changed or gone since it was marked.
    """
    return {name: _checked(reader.path, name, files) for name, files in sorted(reader.checkpoints().items())}


def _checked(run: Path, name: str, files: Mapping[str, str]) -> Path:
    place = run / FOLDER / name
    for file, wanted in files.items():
        path = place / file
        may_be_pruned = file.startswith(f"{STATE}/") and file.endswith(".safetensors")
        if may_be_pruned and not path.is_symlink() and not path.exists():
            continue  # whoever needs it will say that it is gone
        if not path.is_file() or path.is_symlink() or _sha256(path) != wanted:
            raise StoreError(f"The checkpoint '{name}' is not what was written: '{file}' is gone or changed.")
    return place


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
