"""What a run is made of: one frozen tree, read from a recipe (TOML) and dotted overrides, written into its record.

`load_config("maze", {"env.map": "umaze"})` reads `runs/maze.toml`. A key that does not exist is an error that lists
the keys that do. A config is data only; heavy objects are built from it elsewhere (`nlrl.run`).
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nlrl.errors import ConfigError, UnknownNameError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EnvConfig(_Part):
    """Which game, and from where it is played."""

    id: str = "maze"
    """A name of `nlrl_envs.ENVS` or of an `nlrl.envs` entry point."""
    map: str = "double_t"
    """A map of the game; "random:SEED" draws one."""
    starts: Literal["all"] | int = "all"
    """Every start once, or this many drawn from them."""
    history_items: int = Field(default=7, ge=1, le=99)
    """Observations and actions the agent remembers, counted together; 7 in the paper's maze."""


class LookAheadConfig(_Part):
    """How far and how often the agent looks ahead."""

    variations: int = Field(default=8, ge=1, le=64)
    """K: distinct look-aheads an action."""
    steps: int = Field(default=3, ge=0, le=64)
    """l: steps after the candidate action."""
    rollout: Literal["random", "policy"] = "random"
    """Who walks them: uniformly random moves, or the current language policy. Never an oracle."""
    combine: Literal["fused", "split"] = "fused"
    """G1 and G2 in one call, or G2 in a call of its own a variation."""


class EngineConfig(_Part):
    """The language model and what runs it."""

    kind: str = "vllm"
    """A name of `nlrl.engine.ENGINES`: vllm, http, torch, oracle."""
    backbone: str = "hymba"
    """A model in the box, a folder, or a hub id; engines vllm and torch."""
    base_url: str | None = None
    """Where the server is; several, separated by commas, share the work and stand in for each other; engine http."""
    model: str | None = None
    """The server's name for the model; its first one when absent."""
    prompts: str = "auto"
    """A prompt set; "auto" takes the one that suits the model."""
    attempts: int = Field(default=3, ge=1, le=20)
    """How often a question may be asked before its bad reply counts as the answer."""
    at_once: int = Field(default=64, ge=1, le=4096)
    """Games in progress at the same time, and requests in flight at one server."""
    constraints: Literal["prefer", "require"] = "prefer"
    """Whether a reply that the engine did not hold to its form is checked and asked again, or ends the run."""
    logprobs: bool = False
    """Also record the probability of each drawn token."""
    batch_invariant: bool = False
    """vLLM's mode in which a reply does not depend on what else is in the batch; slower, and only for some models."""
    http_attempts: int = Field(default=6, ge=1, le=100)
    """How often one request is sent to a server that fails; engine http."""
    timeout_seconds: float = Field(default=300.0, gt=0)
    """For one answer; engine http."""
    outage_seconds: float = Field(default=600.0, ge=0)
    """How long to wait for a server when none can be reached, before the run stops; engine http."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """What the server permits; engine http."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """What the server permits, read and written together; engine http."""


class BudgetConfig(_Part):
    """What a run may use, over all its resumptions; it stops within one request of the first limit, to be resumed."""

    calls: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    """Read and written."""
    seconds: float | None = Field(default=None, ge=0)
    money: float | None = Field(default=None, ge=0)
    """In the currency of the prices."""
    price_read: float = Field(default=0.0, ge=0)
    """For a million tokens of prompts."""
    price_written: float = Field(default=0.0, ge=0)
    """For a million tokens of replies."""


class RunConfig(_Part):
    """A whole run."""

    recipe: str = "maze"
    seed: int = 0
    env: EnvConfig = EnvConfig()
    look_ahead: LookAheadConfig = LookAheadConfig()
    engine: EngineConfig = EngineConfig()
    budget: BudgetConfig = BudgetConfig()
    baseline: bool = True
    """Also play the same model's plain policy from the same starts."""


def recipe_folders() -> tuple[Path, ...]:
    """Where recipes are: the checkout's `runs/`, or the copy inside an installed wheel."""
    package = Path(__file__).parent
    return tuple(p for p in (package.parent / "runs", package / "_recipes") if p.is_dir())


def recipes() -> dict[str, Path]:
    """Recipe name to file."""
    return {path.stem: path for folder in reversed(recipe_folders()) for path in sorted(folder.glob("*.toml"))}


def load_config(recipe: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The config of a recipe (its name, or a path that ends in .toml) with dotted overrides applied on top.

    Raises:
        UnknownNameError: no such recipe, or a key that does not exist.
        ConfigError: a value that does not fit its key; the sentence names the key.
    """
    known = recipes()
    path = Path(recipe) if recipe.endswith(".toml") else known.get(recipe)
    if path is None or not path.is_file():
        raise UnknownNameError("recipe", recipe, known)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"Recipe {path.name} is not valid TOML: {error}.") from error
    tree.setdefault("recipe", path.stem)
    return with_overrides(tree, overrides or {})


def with_overrides(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> RunConfig:
    """The config in a tree of JSON types with dotted overrides applied on top.

    Raises:
        UnknownNameError: a key that does not exist.
        ConfigError: a value that does not fit its key; the sentence names the key.
    """
    tree = copy.deepcopy(dict(tree))
    for key, value in overrides.items():
        _set(tree, key, value)
    _check_keys(tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if part in _all_parts())
        raise ConfigError(f"{key} = {first['input']!r} cannot be used: {first['msg']}.") from error


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` as given on the command line; the value is read as TOML, and as plain text when it is not TOML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{text}' is not an override; write key=value, for example env.map=umaze.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def keys() -> tuple[str, ...]:
    """Every key a recipe may have, dotted."""
    found: list[str] = []
    for name, info in RunConfig.model_fields.items():
        part = info.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            found += [f"{name}.{inner}" for inner in part.model_fields]
        else:
            found.append(name)
    return tuple(found)


def _all_parts() -> set[str]:
    return {part for key in keys() for part in key.split(".")}


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise UnknownNameError("recipe key", key, keys())
    tree[last] = value


def _check_keys(tree: Mapping[str, Any], prefix: str = "") -> None:
    tops = {key.split(".")[0] for key in keys() if "." in key}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and not prefix and name in tops:
            _check_keys(value, f"{name}.")
        elif key not in keys():
            raise UnknownNameError("recipe key", key, keys())
