"""What the corpus is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """One exchange: what a user message says and how the model answers."""

    skill: str
    """The role that is asked: "policy", "value", ..."""
    prompt: str
    reply: str
    game: str = "maze"
