"""`check_prompts`: the contract of a prompt set, as a function anyone can call on their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

from nlrl_prompts import ROOT, PromptSetError, constraint_pattern, fill_actions, fill_schema, load
from nlrl_prompts.roles import TEMPLATES

_NEEDED = {
    "value": {"number"},
    "combine": {"number"},
    "aggregate": {"number"},
    "monte_carlo": {"number"},
    "blend": {"number"},
    "policy": {"action"},
    "improve": {"action"},
}
_SAMPLE_ACTIONS = ("move left", "a.b*", 'quote "x"')


def check_prompts(name: str, env: str, root: Path = ROOT) -> None:
    """Raise `PromptSetError` with one sentence unless set `name` is complete and consistent for game `env`.

    Loading already checks that every template is there and uses just the variables of its role. On top of that: every
    reply form compiles with awkward action names filled in, yields the fields its role needs, and every template
    renders without leaving a variable behind.
    """
    prompts = load(name, env, root)
    for template, spec in TEMPLATES.items():
        prompt = prompts[template]
        values = {v: f"<{v}>" for v in spec.required | spec.optional}
        if any(f"<{v}>" not in prompt.render(**values) + (prompt.system or "") for v in spec.required):
            raise PromptSetError(f"{name}/{template}.md does not show all of its variables.")
        if prompt.reply is None:
            continue
        where = f"The reply to '{template}' of prompt set '{name}'"
        needed = _NEEDED[template]
        if prompt.reply.kind == "regex":
            groups = set(re.compile(fill_actions(prompt.reply.pattern, _SAMPLE_ACTIONS)).groupindex)
            re.compile(constraint_pattern(prompt.reply, _SAMPLE_ACTIONS))
            if missing := needed - groups:
                raise PromptSetError(f"{where} names no group '{min(missing)}'.")
        else:
            properties = json.loads(fill_schema(prompt.reply, _SAMPLE_ACTIONS))["properties"]
            fields = prompt.reply.fields or {}
            if missing := {f for f in needed if fields.get(f) not in properties}:
                raise PromptSetError(f"{where} has no property for '{min(missing)}'.")
