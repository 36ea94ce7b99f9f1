"""`nlrl convert` and `nlrl backbones`: checkpoints and architectures as the command line shows them."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nlrl import registry
from nlrl.errors import ConfigError, EngineUnavailableError


def print_conversion(family: str, source: Path, target: Path, *, packed: bool = False) -> None:
    """Convert a checkpoint and say what was written.

    Raises:
        ConfigError: the source cannot be used, or the target is there; nothing was written.
        EngineUnavailableError: torch, transformers or safetensors is missing.
    """
    try:
        module: Any = registry.resolve("nlrl_backbones.convert")
        error_type: Any = registry.resolve("nlrl_backbones.common.checkpoint:CheckpointError")
        done = module.convert(family, source, target, packed=packed)
    except ImportError as error:
        raise EngineUnavailableError(
            f"Converting needs '{error.name}': pip install 'nlrl[cpu]' or 'nlrl[gpu]'."
        ) from error
    except ValueError as error:
        if isinstance(error, error_type):
            raise ConfigError(str(error)) from error
        raise
    kept = f"; copied {', '.join(done.copied)}" if done.copied else ""
    print(f"{done.folder}: {done.tensors} tensors, {done.parameters:,} parameters, {done.size / 1e6:,.1f} MB{kept}.")


def print_backbones() -> None:
    """Every backbone of the registry: what is in the box, what a sequence costs, what has been verified."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name in registry.names("backbone"):
        table.add_row(name, Text("\n".join(_lines(registry.load("backbone", name)))))
    Console(highlight=False).print(table)


def _lines(backbone: Any) -> list[str]:
    lines = [f"{backbone.architecture}: {backbone.paper}"]
    if (folder := _boxed_folder(backbone)) is not None:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        lines.append(f"in the box: {folder.name}, {_parameters(folder):,} parameters, {size / 1e6:.1f} MB")
        lines.append(f"cache: {_of_configuration(folder)[1]}")
    lines += _shapes(backbone.model_type)
    if backbone.verified:
        lines.append(f"verified against {backbone.verified}")
    return lines


def _boxed_folder(backbone: Any) -> Path | None:
    if not backbone.boxed:
        return None
    folder = Path(registry.resolve("nlrl_backbones:boxed_dir")(backbone.id))
    return folder if (folder / "config.json").is_file() else None


def _parameters(folder: Path) -> int:
    """Numbers in the safetensors files, from their headers alone; a packed byte counts as eight weights."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        for entry in header.values():
            total += math.prod(entry["shape"]) * (8 if entry["dtype"] == "U8" else 1)
    return total


def _shapes(model_type: str) -> list[str]:
    """The large shapes of this kind: what each would weigh and cost, though there are no weights of it here."""
    shapes: Any = registry.resolve("nlrl_backbones.shapes")
    lines = []
    with tempfile.TemporaryDirectory() as place:
        for name, shape in shapes.SHAPES.items():
            if shape["model_type"] == model_type:
                parameters, cache = _of_configuration(shapes.write_shape(name, Path(place) / name))
                lines.append(f"as {name}: {parameters} parameters; cache: {cache}")
    return lines


def _of_configuration(folder: Path) -> tuple[str, str]:
    """How many parameters a model has, and what one sequence keeps: keys and values in 16 bit, a scan's in 32 bit."""
    try:
        config = registry.resolve("transformers:AutoConfig").from_pretrained(folder)
        sizes: Any = registry.resolve("nlrl_backbones.sizes")
        size, parameters = sizes.cache_size(config), sizes.parameter_count(config)
    except ImportError as error:
        return "unknown", f"not known without '{error.name}'"
    parts = [f"{size.per_token:,} bytes a token"] if size.per_token else []
    if size.per_token != size.per_token_beyond:
        parts.append(f"{size.per_token_beyond:,} beyond the last {size.window}")
    if size.per_sequence:
        parts.append(f"{size.per_sequence:,} a sequence of any length")
    return f"{parameters:,}", ", ".join(parts)
