"""The templates of a prompt set: which there are, and which variables each may and must use.

A prompt set is a folder of text files. `value.md`, `aggregate.md`, ... are the questions of the five speaking roles;
`look.md`, `combined_look.md` and `candidate.md` are the lines those questions are assembled from; `terminal.md` is the
fixed text that stands in for the value of a state in which the game is over.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """What a template is for and which variables it knows."""

    purpose: str
    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    replies: bool = False
    """True when a language model answers it, so that replies.toml must describe the answer."""


def _template(purpose: str, required: str, optional: str = "", replies: bool = False) -> Template:
    return Template(purpose, frozenset(required.split()), frozenset(optional.split()), replies)


TEMPLATES: dict[str, Template] = {
    "policy": _template("pi_L: think, then move", "history", "task actions", replies=True),
    "value": _template("V^L: evaluate where a way has led", "history", "task actions", replies=True),
    "combine": _template(
        "G2: join a transition with the evaluation after it",
        "reward evaluation",
        "task history action moves",
        replies=True,
    ),
    "aggregate": _template("G1: one evaluation out of many", "looks", "task history action count", replies=True),
    "improve": _template("I: choose from the evaluations alone", "candidates", "task history", replies=True),
    "look": _template("one variation, for aggregate with G2 inside", "evaluation reward", "number moves"),
    "combined_look": _template("one variation that G2 has already combined", "evaluation", "number moves"),
    "candidate": _template("one candidate action, for improve", "evaluation", "action"),
    "terminal": _template("the value of a finished game", "", "terminal_text"),
}
