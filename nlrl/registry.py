"""Names to objects: games, backbones, engines and prompt sets, ours from tables and others from entry points.

An id stands for "module:Name", which is imported when the id is used and not before. Another distribution
adds to a registry by an entry point of the same id: group `nlrl.envs` (a `TextEnv` class), `nlrl.backbones`
(a `nlrl_backbones.Backbone`), `nlrl.engines` (an `Engine` class) or `nlrl.prompts` (a package that holds a
folder named like the set). Ours win over an entry point of the same name.

`resolve_model` is what `--backbone` accepts: the id of a model in the box, a local folder, or a hub id.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal

from nlrl.errors import ConfigError, EngineError, EngineUnavailableError, UnknownNameError

Kind = Literal["env", "backbone", "engine", "prompt set"]

_TABLES: Mapping[Kind, tuple[str, str, str]] = {
    # kind: entry-point group, module and name of our own table
    "env": ("nlrl.envs", "nlrl_envs", "ENVS"),
    "backbone": ("nlrl.backbones", "nlrl_backbones", "BACKBONES"),
    "engine": ("nlrl.engines", "nlrl.engine", "ENGINES"),
    "prompt set": ("nlrl.prompts", "", ""),
}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")
"""Weights as data and the tokenizer; never `*.py`, `*.bin` or `*.pt`, which carry code."""


def names(kind: Kind) -> tuple[str, ...]:
    """Every known id of a kind, sorted."""
    return tuple(sorted({*_own(kind), *_foreign(kind)}))


def load(kind: Kind, name: str) -> Any:
    """What `name` stands for, imported now.

    Raises:
        UnknownNameError: no registry knows the name; the message lists the known ones.
        EngineUnavailableError: it is known, but a package it needs is not installed.
    """
    own, foreign = _own(kind), _foreign(kind)
    if name not in own and name not in foreign:
        raise UnknownNameError(kind, name, (*own, *foreign))
    entry = own.get(name) or foreign[name].value
    if not isinstance(entry, str):
        return entry
    try:
        return resolve(entry)
    except ImportError as error:
        missing = error.name or str(error)
        raise EngineUnavailableError(
            f"The {kind} '{name}' ({entry}) needs '{missing}', which cannot be imported; install it."
        ) from error


def resolve(reference: str) -> Any:
    """Import "module:Name" (or "module" alone) and return what it names."""
    module, _, attribute = reference.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split(".") if attribute else ():
        if not hasattr(found, part):
            raise ImportError(f"{module} has no '{part}'", name=reference)
        found = getattr(found, part)
    return found


def prompt_root(name: str) -> Path:
    """The folder that holds the folder of prompt set `name`: the `root` of `nlrl_prompts.load`."""
    import nlrl_prompts

    if name in nlrl_prompts.available():
        return nlrl_prompts.ROOT
    package = load("prompt set", name)
    root = Path(package.__path__[0])
    if not (root / name).is_dir():
        raise ConfigError(f"Prompt set '{name}' is promised by {package.__name__}, which has no folder '{name}'.")
    return root


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model an engine can load."""

    id: str
    """As a run's record names it: the boxed id, the folder's name, or the hub id."""
    source: Literal["boxed", "folder", "hub"]
    path: Path | None
    """Folder with config.json; None for a hub model that is not fetched yet."""
    prompt_set: str | None
    """The prompt set the model reads; None until a hub model is fetched."""

    def fetch(self) -> ResolvedModel:
        """This model with its files on this machine; downloads a hub model, otherwise returns itself.

        Only weights, configuration and tokenizer are fetched, never code.

        Raises:
            EngineUnavailableError: huggingface_hub is not installed.
            EngineError: the hub cannot be reached, or has no such public model with safetensors.
        """
        if self.path is not None:
            return self
        folder = _download(self.id)
        return replace(self, path=folder, prompt_set=_prompt_set_of(folder))


def resolve_model(name: str) -> ResolvedModel:
    """What `--backbone` means: a boxed id, a folder, or a hub id "org/name" (not fetched yet).

    Raises:
        UnknownNameError: none of the three; the message lists the boxed ids.
        ConfigError: a folder that is missing or holds no model, or a backbone without a model in the box.
    """
    if name in names("backbone"):
        return _boxed(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return ResolvedModel(path.resolve().name, "folder", _checked_folder(path), _prompt_set_of(path))
    if name.startswith(("/", ".", "~")):
        raise ConfigError(f"There is no folder '{name}'; give a folder that holds config.json and *.safetensors.")
    if _HUB_ID.fullmatch(name):
        return ResolvedModel(name, "hub", None, None)
    raise UnknownNameError("backbone", name, (*names("backbone"), "a folder", "a hub id like org/name"))


def _boxed(name: str) -> ResolvedModel:
    backbone = load("backbone", name)
    if name not in _own("backbone") or not backbone.boxed:
        raise ConfigError(
            f"Backbone '{name}' has no model in the box; give a folder or a hub id of such a model instead."
        )
    from nlrl_backbones import boxed_dir

    folder = Path(boxed_dir(name))
    if not (folder / "config.json").is_file():
        raise ConfigError(f"The boxed model of '{name}' is missing from this installation; reinstall nlrl.")
    return ResolvedModel(name, "boxed", folder, backbone.prompts or _prompt_set_of(folder))


def _checked_folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ConfigError(f"The folder '{path}' holds no model: it has no config.json.")
    if not any(path.glob("*.safetensors")):
        raise ConfigError(f"The folder '{path}' holds no weights: only *.safetensors files are read.")
    return path.resolve()


def _prompt_set_of(folder: Path) -> str:
    """What a model of ours says in its card; else the full prompts for a model with a chat template, the compact ones
    for one that continues text.
    """
    if isinstance(said := _settings(folder / "nlrl_card.json").get("prompts"), str):
        return said
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return "full"
    return "full" if _settings(folder / "tokenizer_config.json").get("chat_template") else "compact"


def _settings(path: Path) -> dict[str, Any]:
    """The table in a JSON file; an empty one where there is no file or no table in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); fetch the model again.") from error
    return content if isinstance(content, dict) else {}


def _download(repo: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
        from huggingface_hub.errors import RepositoryNotFoundError as NotFound
    except ImportError as error:
        raise EngineUnavailableError(
            f"Fetching '{repo}' needs huggingface_hub: pip install 'nlrl[cpu]' or 'nlrl[gpu]', or give a folder."
        ) from error
    try:
        folder = Path(snapshot_download(repo, allow_patterns=list(_HUB_FILES)))
    except GatedRepoError as error:
        raise EngineError(f"'{repo}' asks for its licence to be accepted on the hub and for HF_TOKEN.") from error
    except NotFound as error:
        raise EngineError(f"The model hub has no public model '{repo}'; check the spelling, or log in.") from error
    except LocalEntryNotFoundError as error:
        raise EngineError(
            f"'{repo}' is not on this machine and the model hub cannot be reached; "
            "connect, or give a boxed id or a folder."
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise EngineError(f"Fetching '{repo}' failed ({type(error).__name__}); try again later.") from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise EngineError(f"'{repo}' publishes no config.json with *.safetensors; other formats are not read.")
    return folder


def _own(kind: Kind) -> Mapping[str, Any]:
    _, module, table = _TABLES[kind]
    if kind == "prompt set":
        from nlrl_prompts import available

        return dict.fromkeys(available(), "nlrl_prompts")
    return getattr(importlib.import_module(module), table)


def _foreign(kind: Kind) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_TABLES[kind][0])}
