"""What a run is made of: one frozen tree, read from a recipe (TOML) and dotted overrides, written into its record.

`load_config("maze", {"env.map": "umaze"})` reads `runs/maze.toml`. A key that does not exist is an error that lists
the keys that do. A config is data only; heavy objects are built from it elsewhere (`nlrl.run`).
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ValidationError, field_validator

from nlrl.config_parts import (
    BudgetConfig,
    DistilConfig,
    EngineConfig,
    EnvConfig,
    LookAheadConfig,
    Part,
    RolesConfig,
    TrainingConfig,
)
from nlrl.errors import ConfigError, UnknownNameError

Baseline = Literal["plain", "random", "q_improve"]
"""What a run may also play: the same model's policy without look-ahead, uniformly random moves, or Q^L of every legal
move from the plain question and then I (the paper's "prompted Q^L")."""


class RunConfig(Part):
    """A whole run."""

    recipe: str = "maze"
    loop: Literal["policy_iteration", "td_values", "actor_critic"] = "policy_iteration"
    """Which of the loops of `nlrl.iterate`."""
    seed: int = 0
    env: EnvConfig = EnvConfig()
    look_ahead: LookAheadConfig = LookAheadConfig()
    training: TrainingConfig = TrainingConfig()
    distil: DistilConfig | None = None
    engine: EngineConfig = EngineConfig()
    roles: RolesConfig = RolesConfig()
    budget: BudgetConfig = BudgetConfig()
    baseline: tuple[Baseline, ...] = ("plain",)
    """What is also played, from the same starts or against the same opponent; in loops that learn, "plain" is played
    anyway."""

    exact: bool = True
    """Hold moves and values against the game's solver; Breakthrough's needs some seconds and gigabytes at the start."""

    @field_validator("baseline", mode="before")
    @classmethod
    def _yes_or_no(cls, value: Any) -> Any:
        """True is the plain policy, False nothing, one name a list of it."""
        if isinstance(value, bool):
            return ("plain",) if value else ()
        return (value,) if isinstance(value, str) else value

    @property
    def learns(self) -> bool:
        """Whether a model is trained."""
        return self.loop != "policy_iteration" or self.distil is not None


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
        names = {part for key in keys() for part in key.split(".")}
        key = ".".join(str(part) for part in first["loc"] if part in names)
        # Somebody may have written a key where its variable's name belongs.
        given = "" if key.endswith("api_key_env") else f" = {first['input']!r}"
        said = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{key}{given} cannot be used: {said}.") from (None if not given else error)


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` as given on the command line; the value is read as TOML, and as plain text when it is not TOML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"'{text}' is not an override; write key=value, for example env.map=umaze.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def keys(part: type[BaseModel] = RunConfig, prefix: str = "") -> tuple[str, ...]:
    """Every key a recipe may have, dotted; below "env.options" a game has its own."""
    found: list[str] = []
    for name, info in part.model_fields.items():
        inner = _table(info.annotation)
        found += [f"{prefix}{name}"] if inner is None else keys(inner, f"{prefix}{name}.")
    return tuple(found)


def _table(annotation: Any) -> type[BaseModel] | None:
    """The part that a key holds, when it holds one and no plain value."""
    options = (annotation, *get_args(annotation))
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise UnknownNameError("recipe key", key, [one for one in keys() if one.startswith(key.split(".")[0])])
    tree[last] = value


def _check_keys(tree: Mapping[str, Any], part: type[BaseModel] = RunConfig, prefix: str = "") -> None:
    for name, value in tree.items():
        info = part.model_fields.get(name)
        if info is None and part is RolesConfig:
            raise UnknownNameError("role", name, RolesConfig.model_fields)
        inner = None if info is None else _table(info.annotation)
        if inner is not None and isinstance(value, dict):
            _check_keys(value, inner, f"{prefix}{name}.")
        elif info is None or (inner is not None and value is not None):
            raise UnknownNameError("recipe key", f"{prefix}{name}", [f"{prefix}{known}" for known in part.model_fields])
