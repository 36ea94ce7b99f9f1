"""A model's folder, looked at before any library opens it: it may come from a stranger.

Only data is read: config.json, *.safetensors, the tokenizer's files and the chat template. Code beside them is never
run: `auto_map` is not followed, `*.py`, `*.bin` and `*.pt` are not opened. What is checked here are the ways left to do
harm with data: links out of the folder, headers that promise what the file does not hold, options that name code or
places, sizes that exhaust a machine, and templates that reach for Python or never end.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nlrl.errors import ConfigError, UnsafeFileError
from nlrl.redact import without_secrets

READ = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""What engines read of a folder."""
MOST_HEADER = 25_000_000
MOST_CONFIG = 1 << 20
MOST_TOKENIZER = 1 << 26
MOST_ADDED_TOKENS = 50_000
MOST_TEMPLATE = 1 << 18
TEMPLATE_SECONDS = 1
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16,
    "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6,
    "F6_E3M2": 6,
}  # fmt: skip
_CODE_OPTIONS = ("_attn_implementation_internal", "_experts_implementation_internal")
"""Options that earlier transformers took as the name of code to fetch."""


def check_model_folder(folder: Path) -> None:
    """Look at everything an engine will read.

    Raises:
        UnsafeFileError: something in it could do harm, or is damaged; one sentence says what.
        ConfigError: the configuration names no kind of model, as those of some official checkpoints.
    """
    for path in _files(folder):
        _check_place(path, folder)
        if path.suffix == ".safetensors":
            check_safetensors(path)
    config = _json(folder / "config.json", MOST_CONFIG)
    _check_options(config, folder / "config.json")
    if "model_type" not in config:
        raise ConfigError(
            f"{folder / 'config.json'} names no model_type; make an official checkpoint loadable by "
            "`nlrl convert FAMILY SRC DST` first."
        )
    settings = folder / "tokenizer_config.json"
    tokens = _json(settings, MOST_TOKENIZER) if settings.is_file() else {}
    _check_added(tokens.get("added_tokens_decoder"), settings)
    if (tokenizer := folder / "tokenizer.json").is_file():
        _check_added(_json(tokenizer, MOST_TOKENIZER).get("added_tokens"), tokenizer)
    for template in _templates(folder, tokens.get("chat_template")):
        check_template(template, folder)


def fingerprint(folder: Path) -> str:
    """SHA-256 of everything an engine reads: weights, configuration, tokenizer, template."""
    found = hashlib.sha256()
    for path in _files(folder):
        with path.open("rb") as file:
            found.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return found.hexdigest()


def check_safetensors(path: Path) -> None:
    """Whether a file's header fits its content: known types, shapes that fill their places, no gap and no overlap."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MOST_HEADER, size - 8):
            raise UnsafeFileError(f"{path} is damaged: its header of {length:,} bytes does not fit a file of {size:,}.")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise UnsafeFileError(f"{path} is damaged: its header is not JSON.") from None
    if not isinstance(header, dict):
        raise UnsafeFileError(f"{path} is damaged: its header is no table of tensors.")
    header.pop("__metadata__", None)
    end = 0
    for begin, stop, name in sorted(_place(path, name, entry) for name, entry in header.items()):
        if begin != end:
            raise UnsafeFileError(f"{path} is damaged: the tensor '{name[:80]}' overlaps another or leaves a gap.")
        end = stop
    if end != size - 8 - length:
        raise UnsafeFileError(f"{path} is damaged: it holds {size - 8 - length:,} bytes where {end:,} are promised.")


def check_template(template: str, folder: Path) -> None:
    """Render a chat template once, in a child with little time and memory; raises `UnsafeFileError` when it may not."""
    if len(template) > MOST_TEMPLATE:
        raise UnsafeFileError(f"The chat template in '{folder}' is too long to be one.")
    command = [sys.executable, "-I", "-c", _RENDER]
    try:
        done = subprocess.run(
            command, input=template.encode("utf-8", "replace"), capture_output=True, env=without_secrets(), timeout=20,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UnsafeFileError(f"The chat template in '{folder}' does not come to an end.") from None
    if done.returncode == 3:
        raise UnsafeFileError(f"The chat template in '{folder}' reaches for what no template needs.")
    if done.returncode != 0:
        raise UnsafeFileError(f"The chat template in '{folder}' takes more time or memory than any template needs.")


_RENDER = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({TEMPLATE_SECONDS}, {TEMPLATE_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    sys.exit(0)  # then nothing else renders it either
import re
text = re.sub(r"{{%-? *(end)?generation *-?%}}", "", sys.stdin.read())
settings = dict(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
environment = ImmutableSandboxedEnvironment(**settings)
messages = [{{"role": role, "content": "words"}} for role in ("system", "user", "assistant", "user")]
try:
    template = environment.from_string(text)
    out = template.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="")
except SecurityError:
    sys.exit(3)
except MemoryError:
    sys.exit(4)
except Exception:
    sys.exit(0)  # a template that refuses these messages, or needs more than they have
sys.exit(4 if len(out) > 1 << 24 else 0)
"""


def _files(folder: Path) -> list[Path]:
    return sorted({path for pattern in READ for path in folder.glob(pattern)})


def _check_place(path: Path, folder: Path) -> None:
    """Links may lead elsewhere in the folder, or to the blobs of the hub's cache that the folder is part of."""
    place, home = path.resolve(), folder.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (place.is_relative_to(home) or place.is_relative_to(cache)):
        raise UnsafeFileError(f"'{path}' is a link out of its folder; copy the file itself there.")
    if not place.is_file():
        raise UnsafeFileError(f"'{path}' is no ordinary file.")


def _json(path: Path, most: int) -> dict[str, Any]:
    if path.stat().st_size > most:
        raise UnsafeFileError(f"{path} is too long to be what it is called.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise UnsafeFileError(f"{path} is not JSON.") from None
    if not isinstance(content, dict):
        raise UnsafeFileError(f"{path} is no table of settings.")
    return content


def _check_options(config: Mapping[str, Any], path: Path) -> None:
    for name, value in _pairs(config):
        names_code = name in _CODE_OPTIONS
        names_place = "implementation" in name and isinstance(value, str) and re.search(r"[/\\:]", value)
        if names_code or names_place:
            raise UnsafeFileError(f"{path} sets '{name}', which would fetch code; remove the line.")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested settings."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name, inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)


def _check_added(added: Any, path: Path) -> None:
    if isinstance(added, list | dict) and len(added) > MOST_ADDED_TOKENS:
        raise UnsafeFileError(f"{path} adds {len(added):,} tokens one by one; no tokenizer needs that.")


def _templates(folder: Path, setting: Any) -> list[str]:
    found = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.jinja"))]
    listed = setting if isinstance(setting, list) else [setting]
    found += [one.get("template") if isinstance(one, dict) else one for one in listed]
    return [text for text in found if isinstance(text, str)]


def _place(path: Path, name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor lies, as its header says; raises when that cannot be."""
    try:
        bits, shape, (begin, stop) = DTYPE_BITS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        plain = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, stop))
        fits = plain and (stop - begin) * 8 == math.prod(shape) * bits
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise UnsafeFileError(f"{path} is damaged: the tensor '{name[:80]}' has no place that fits its shape.")
    return begin, stop, name
