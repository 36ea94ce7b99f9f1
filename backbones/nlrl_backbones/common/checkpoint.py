"""Reading checkpoints as data: safetensors, or pickles that torch's restricted reader accepts; nothing that could run.

A pickle is a program. ``torch.load(weights_only=True)`` runs only those that build tensors and plain containers; any
other is refused before its first instruction.
"""

import json
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
_LFS = b"version https://git-lfs"
_SHOWN = 3
"""Names in a sentence; a checkpoint of another kind would name thousands."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one sentence that says what to do."""


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is absent, or holds no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}); give a folder that holds it.") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error}); fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object; fetch it again.")
    return content


def read_pickle(file: Path) -> Any:
    """What a .pt or .bin file holds, by torch's reader that runs no code.

    Raises:
        CheckpointError: the file holds anything but tensors and plain containers, or is damaged.
    """
    import torch

    _refuse_pointer(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's reader raises the same for bytes that are no pickle at all; a refused callable it calls a GLOBAL.
        if "GLOBAL" not in str(error):
            raise CheckpointError(f"{file} is damaged or no checkpoint of tensors; fetch it again.") from error
        raise CheckpointError(
            f"{file} would run code when it is read, so it was not read: "
            "ask its authors for a file of tensors alone, or for safetensors."
        ) from error
    except Exception as error:  # a damaged file can trip torch's reader anywhere
        raise CheckpointError(f"{file} is damaged or no checkpoint ({_first_line(error)}); fetch it again.") from error


def read_tensors(folder: Path, pattern: str | None = None) -> "dict[str, torch.Tensor]":
    """All tensors of a folder, under their names: of its safetensors files, else of its .bin, else of its .pt files.

    Args:
        folder: where the files lie; parts of a sharded checkpoint are put together.
        pattern: a glob, when only some files are meant.

    Raises:
        CheckpointError: there is no such file, one is damaged or unsafe, or two hold different tensors of one name.
    """
    files = _files(folder, pattern)
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        for name, tensor in _tensors_of(file).items():
            if name in tensors and not tensors[name].equal(tensor):
                raise CheckpointError(f"{file.name} and another file of {folder} disagree about {name}; keep one.")
            tensors[name] = tensor
    return tensors


def tensor_names(folder: Path) -> list[str]:
    """Names of all tensors of a folder, those that a training checkpoint nests under "model" included.

    Raises:
        CheckpointError: as ``read_tensors``.
    """
    import torch

    names: list[str] = []
    for file in _files(folder, None):
        content = _tensors_of(file) if file.suffix == ".safetensors" else read_pickle(file)
        parts = [content, content.get("model")] if isinstance(content, Mapping) else []
        for part in parts:
            if isinstance(part, Mapping):
                names += [str(name) for name, value in part.items() if isinstance(value, torch.Tensor)]
    return names


def _files(folder: Path, pattern: str | None) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(f"There is no folder '{folder}'; give the folder of a checkpoint.")
    for glob in [pattern] if pattern else ["*.safetensors", "*.bin", "*.pt"]:
        if files := sorted(folder.glob(glob)):
            return files
    wanted = pattern or "*.safetensors, *.bin or *.pt"
    raise CheckpointError(f"The folder '{folder}' holds no weights: no file is named {wanted}.")


def _tensors_of(file: Path) -> "dict[str, torch.Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix == ".safetensors":
        _refuse_pointer(file)
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is no safetensors file ({_first_line(error)}); fetch it again.") from error
    content = read_pickle(file)
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{file} holds something other than a dictionary of tensors; give the model's weights.")
    return dict(content)


def _refuse_pointer(file: Path) -> None:
    """A clone without Git LFS has small texts in the place of weights."""
    try:
        with file.open("rb") as stream:
            is_pointer = stream.read(len(_LFS)) == _LFS
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}).") from error
    if is_pointer:
        raise CheckpointError(f"{file} is a pointer of Git LFS, not the file itself: run `git lfs pull` beside it.")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Gives a folder beside ``target`` to write to, and renames it at the end: a folder that is there is whole.

    Raises:
        CheckpointError: ``target`` holds something already, or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"'{target}' is there already and is kept: name a folder that does not exist.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield scratch
            scratch.chmod(0o755)
            if target.is_dir():
                target.rmdir()  # empty, or it would have been refused
            scratch.rename(target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(
            f"'{target}' cannot be written ({error.strerror or error}): name another place."
        ) from error


def check_tensors(family: str, found: Shapes, wanted: Shapes) -> None:
    """Whether these are the tensors that the configuration asks for.

    Raises:
        CheckpointError: naming the first missing, unknown and misshapen ones, with expected and found shapes.
    """
    complaints = []
    for word, names in (("missing", wanted.keys() - found.keys()), ("unknown", found.keys() - wanted.keys())):
        if names:
            shapes = wanted if word == "missing" else found
            complaints.append(f"{word} " + _list([f"{name} {list(shapes[name])}" for name in sorted(names)]))
    wrong = sorted(name for name in wanted.keys() & found.keys() if tuple(wanted[name]) != tuple(found[name]))
    if wrong:
        shown = [f"{name} has shape {list(found[name])} where {list(wanted[name])} was expected" for name in wrong]
        complaints.append(_list(shown))
    if complaints:
        raise CheckpointError(
            f"These are not the tensors of the {family} model in config.json: {'; '.join(complaints)}."
        )


def looks_like(names: Iterable[str], signatures: Mapping[str, tuple[str, ...]]) -> str | None:
    """The family all of whose patterns occur among the names; the one with the most patterns when several do."""
    joined = "\n".join(names)
    matching = {
        family: len(patterns)
        for family, patterns in signatures.items()
        if all(re.search(pattern, joined, re.MULTILINE) for pattern in patterns)
    }
    return max(matching, key=lambda family: matching[family]) if matching else None


def _list(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
