"""Prompt sets: folders of text files, loaded with strict variables and hashed.

`load("compact", "maze")` returns the set; `load` looks for `<set>/<env>/<template>.md` and falls back to
`<set>/_shared/<template>.md`. A prompt file is one user message, or a system message and a user message with a line
`---` between them. Variables are written `$name` (`string.Template`); `$$` is a dollar sign. A variable that the role
does not know, or a required one that is missing, is an error at load time, so prompt and code cannot drift apart.

`replies.toml` states the form of each reply, once, for the engine's constrained decoding and for the parser alike.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import Template as StringTemplate
from typing import Any, Literal

from nlrl_prompts.roles import TEMPLATES

ROOT = Path(__file__).parent
ACTIONS = "{actions}"
"""In a reply pattern: replaced by the alternatives of the legal actions."""


class PromptSetError(ValueError):
    """A prompt set is missing, incomplete or uses variables its role does not have; one sentence."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The form of a reply and how it is drawn.

    `pattern` (kind "regex") may name groups `number`, `action`, `thought` and `evaluation`; `schema` (kind "json") is
    a JSON schema, and `fields` maps those same four names to properties of the object.
    """

    kind: Literal["regex", "json"]
    pattern: str = ""
    schema: str = ""
    fields: Mapping[str, str] | None = None
    quote: str = ""
    """For "improve": how one candidate is quoted, with `{number}` and `{action}`. When given, the engine may write no
    other reply than such a quote of a candidate it was shown, worth and action together as they stood there."""
    max_tokens: int = 256
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """One template of a set."""

    name: str
    system: str | None
    user: str
    reply: Reply | None
    sha256: str
    """Of the template's files' content: text and reply form."""

    def render(self, **variables: str) -> str:
        """The user message, every variable filled in; raises `PromptSetError` when one is not given."""
        return self._filled(self.user, variables)

    def messages(self, **variables: str) -> tuple[tuple[str, str], ...]:
        """(role, content) pairs, ready to be sent."""
        user = ("user", self.render(**variables))
        return (user,) if self.system is None else (("system", self._filled(self.system, variables)), user)

    def _filled(self, text: str, variables: Mapping[str, str]) -> str:
        try:
            return StringTemplate(text).substitute(variables)
        except KeyError as error:
            raise PromptSetError(f"{self.name}.md shows ${error.args[0]}, which it was not given.") from error


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All templates of one set for one game."""

    name: str
    env: str
    prompts: Mapping[str, Prompt]

    def __getitem__(self, template: str) -> Prompt:
        return self.prompts[template]

    @property
    def sha256(self) -> str:
        """Changes whenever any text or reply form of the set does."""
        return _sha256("".join(self.prompts[name].sha256 for name in sorted(self.prompts)))


def available() -> tuple[str, ...]:
    """Names of the prompt sets in the box."""
    return tuple(sorted(p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith(("_", "."))))


@lru_cache(maxsize=64)
def load(name: str, env: str, root: Path = ROOT) -> PromptSet:
    """The prompt set `name` for game `env`; raises `PromptSetError` with one sentence."""
    folder = root / name
    if not folder.is_dir():
        raise PromptSetError(f"Unknown prompt set '{name}'; known: {', '.join(available())}.")
    if not (folder / env).is_dir() and not (folder / "_shared").is_dir():
        raise PromptSetError(f"Prompt set '{name}' has no prompts for '{env}': add a folder {name}/{env}.")
    for path in sorted([*(folder / env).glob("*.md"), *(folder / "_shared").glob("*.md")]):
        if path.stem not in TEMPLATES:
            known = ", ".join(sorted(TEMPLATES))
            raise PromptSetError(f"{name}/{path.parent.name}/{path.name} is no template; there are: {known}.")
    replies = _replies(folder, env)
    prompts = {t: _prompt(folder, env, t, replies.get(t)) for t in TEMPLATES}
    if idle := [role for role in replies if role not in TEMPLATES or not TEMPLATES[role].replies]:
        raise PromptSetError(f"replies.toml of '{name}' describes a reply to '{idle[0]}', which nobody answers.")
    return PromptSet(name, env, prompts)


def constraint_pattern(reply: Reply, actions: tuple[str, ...], *, ends: bool = False) -> str:
    """A reply's regular expression with the legal actions filled in and no group names (engines know none).

    With `ends`, free text has so few characters that the reply ends before its tokens do, whatever the model; that
    costs a decoder much more.
    """
    pattern = re.sub(r"\]\+", f"]{{1,{reply.max_tokens // 2}}}", reply.pattern) if ends else reply.pattern
    return re.sub(r"\(\?P<\w+>", "(", fill_actions(pattern, actions))


def fill_actions(pattern: str, actions: tuple[str, ...]) -> str:
    """`pattern` with the legal actions as alternatives, longest first so that none hides behind its prefix."""
    return pattern.replace(ACTIONS, "|".join(_escape(a) for a in sorted(actions, key=len, reverse=True)))


def quotes(reply: Reply, candidates: Sequence[tuple[str, float | None]]) -> tuple[str, ...]:
    """The admissible replies of a form with `quote`: one a candidate; () when a candidate has no number."""
    if not reply.quote or any(number is None for _, number in candidates):
        return ()
    return tuple(reply.quote.format(number=number, action=action) for action, number in candidates)


def fill_schema(reply: Reply, actions: tuple[str, ...]) -> str:
    """A reply's JSON schema with the legal actions as the enumeration of its action property."""
    return reply.schema.replace(f'"{ACTIONS}"', ", ".join(json.dumps(a) for a in actions))


def _replies(folder: Path, env: str) -> dict[str, Reply]:
    path = next((p for p in (folder / env / "replies.toml", folder / "_shared" / "replies.toml") if p.is_file()), None)
    if path is None:
        raise PromptSetError(f"Prompt set '{folder.name}' has no replies.toml for '{env}'.")
    try:
        table: dict[str, dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: Reply(**entry) for name, entry in table.items()}
    except tomllib.TOMLDecodeError as error:
        raise PromptSetError(f"{path.name} of prompt set '{folder.name}' is not TOML: {error}.") from error
    except TypeError as error:
        raise PromptSetError(f"{path.name} of prompt set '{folder.name}': {error}.") from error


def _prompt(folder: Path, env: str, name: str, reply: Reply | None) -> Prompt:
    path = next((p for p in (folder / env / f"{name}.md", folder / "_shared" / f"{name}.md") if p.is_file()), None)
    if path is None:
        raise PromptSetError(f"Prompt set '{folder.name}' lacks {name}.md for '{env}'.")
    text = path.read_text(encoding="utf-8").removesuffix("\n")
    system, user = text.split("\n---\n", 1) if "\n---\n" in text else (None, text)
    spec, used = TEMPLATES[name], _variables(user) | _variables(system or "")
    where = f"{folder.name}/{path.parent.name}/{name}.md"
    if unknown := used - spec.required - spec.optional:
        allowed = ", ".join(sorted(spec.required | spec.optional)) or "none"
        raise PromptSetError(f"{where} uses ${min(unknown)}, which that role does not have; it has: {allowed}.")
    if missing := spec.required - used:
        raise PromptSetError(f"{where} does not use ${min(missing)}, without which the role makes no sense.")
    if spec.replies and reply is None:
        raise PromptSetError(f"replies.toml of prompt set '{folder.name}' does not describe the reply to '{name}'.")
    return Prompt(name, system, user, reply, _sha256(f"{text}\n{reply!r}"))


def _escape(literal: str) -> str:
    """`re.escape` for grammar compilers, which refuse escapes that are not needed."""
    return re.sub(r"([\\.^$*+?{}\[\]|()])", r"\\\1", literal)


def _variables(text: str) -> set[str]:
    return set(StringTemplate(text).get_identifiers())


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
