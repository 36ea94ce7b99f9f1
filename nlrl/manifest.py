"""What decides the answers of a run, as named fields: a run is resumed only where all of them are as they were."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlrl.engine.base import EngineInfo
from nlrl.errors import ResumeError
from nlrl_prompts import PromptSet

FREE = ("budget", "engine.base_url", "engine.api_key_env", "engine.at_once", "engine.requests_per_minute",
        "engine.tokens_per_minute", "engine.outage_seconds", "engine.timeout_seconds", "engine.http_attempts",
        "distil.device", "distil.threads", "distil.tokens_per_pass", "distil.keep_states")  # fmt: skip
"""Keys of a config that say how fast and how long to ask, not what: they may change when a run is resumed."""

CODE = ("types.py", "parse.py", "ask.py", "policy.py", "play.py", "agents.py", "stages.py", "iterate.py", "knobs.py",
        "task.py", "cast.py", "run.py", "students.py", "values", "operators", "distill", "baselines")  # fmt: skip
"""The modules of nlrl that decide what is asked, what a reply means and what is learned; the game's own are added to
them."""

Voice = tuple[PromptSet, EngineInfo]
"""What a role's model reads, and what it is."""


def identity(config: Mapping[str, Any], voices: Mapping[str, Voice], game: str) -> dict[str, str]:
    """Field name to value: of the config, the prompts, the code, the models and the packages that compute.

    `config` is the whole tree as JSON types, `voices` the models by the first role of each, `game` the module that the
    game's class is in. The first model's fields have plain names, those of others their role in front.
    """
    fields = {f"config.{key}": value for key, value in flat(config).items() if not is_free(key)}
    fields["code"] = code_digest(game)
    for number, (role, (prompts, engine)) in enumerate(voices.items()):
        owner = f"{role}." if number else ""
        fields |= {f"{owner}prompts.{name}": prompt.sha256 for name, prompt in sorted(prompts.prompts.items())}
        said = {"kind": engine.kind, "id": engine.model, "fingerprint": engine.fingerprint}
        fields |= {f"{owner}model.{name}": value for name, value in said.items()}
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
    key = re.sub(r"^roles\.\w+\.", "engine.", key)
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


@lru_cache(maxsize=8)
def code_digest(game: str) -> str:
    """SHA-256 of the sources in `CODE` and of a game's module, as they were when this process first asked.

    Of the game's own package, the modules that it imports are added, and theirs.
    """
    package = Path(__file__).parent
    files = [f for name in CODE for f in (sorted((package / name).rglob("*.py")) or [package / name])]
    files += [file for _, file in sorted(_modules_of(game).items())]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _modules_of(game: str) -> dict[str, Path]:
    """A module and those of its package that it imports, at any remove, with their files."""
    package, found, waiting = game.partition(".")[0], {}, [game]
    while waiting:
        name = waiting.pop()
        spec = find_spec(name) if name not in found else None
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        found[name] = Path(spec.origin)
        waiting += re.findall(
            rf"^\s*(?:from|import) ({package}(?:\.\w+)+)", found[name].read_text("utf-8"), re.MULTILINE
        )
    return found


def _short(value: str) -> str:
    return repr(value if len(value) <= 60 else f"{value[:12]}...")
