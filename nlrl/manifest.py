"""What decides the answers of a run, as named fields: a run is resumed only where all of them are as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from nlrl.engine.base import EngineInfo
from nlrl.errors import ResumeError
from nlrl_prompts import PromptSet

FREE = ("budget", "engine.base_url", "engine.at_once", "engine.requests_per_minute", "engine.tokens_per_minute",
        "engine.outage_seconds", "engine.timeout_seconds", "engine.http_attempts")  # fmt: skip
"""Keys of a config that say how fast and how long to ask, not what: they may change when a run is resumed."""

CODE = ("types.py", "parse.py", "ask.py", "policy.py", "iterate.py", "run.py", "values", "operators")
"""The modules of nlrl that decide what is asked and what a reply means; the games are added to them."""


def identity(config: Mapping[str, Any], prompts: PromptSet, engine: EngineInfo) -> dict[str, str]:
    """Field name to value: of the config, the prompts, the code, the model and the packages that compute.

    `config` is the whole tree as JSON types.
    """
    fields = {f"config.{key}": value for key, value in flat(config).items() if not is_free(key)}
    fields |= {f"prompts.{name}": prompt.sha256 for name, prompt in sorted(prompts.prompts.items())}
    fields["code"] = code_digest()
    fields |= {"model.kind": engine.kind, "model.id": engine.model, "model.fingerprint": engine.fingerprint}
    fields |= {f"version.{name}": found for name, found in sorted(engine.versions.items())}
    return fields


def check_same(run_id: str, recorded: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise `ResumeError`, which names the first field that differs, unless nothing differs."""
    for name in sorted(recorded.keys() | now.keys()):
        before, after = (fields.get(name, "absent") for fields in (recorded, now))
        if before != after:
            raise ResumeError(
                f"Run '{run_id}' cannot go on: {name} was {_short(before)} and is {_short(after)} now; "
                "undo that, or begin a new run with --force-new."
            )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and their values as text."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": str(value)}
    return found


def is_free(key: str) -> bool:
    """Whether a dotted key of a config may change when a run is resumed."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the sources in `CODE` and of the games, as they were when this process first asked."""
    import nlrl_envs

    package = Path(__file__).parent
    roots = [*(package / name for name in CODE), Path(nlrl_envs.__file__).parent]
    files = [file for root in roots for file in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _short(value: str) -> str:
    return repr(value if len(value) <= 60 else f"{value[:12]}...")
