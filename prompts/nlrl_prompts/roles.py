"""The templates of a prompt set: which there are, and which variables each may and must use.

A prompt set is a folder of text files. `value.md`, `aggregate.md`, ... are the questions of the seven speaking roles;
`look.md`, `combined_look.md`, `game.md`, `estimate.md` and `candidate.md` are the lines those questions are assembled
from; `terminal.md` is the fixed text that stands in for the value of a state in which the game is over.

Variables that several templates know:
    task: the rules, T_L.
    player: name of the seat whose view evaluations take; rewards are that seat's, numbers are on the scale of its
        return. Where it is not written, the seat is that of the player who is to move at the end of `history`.
    history: observations and moves, oldest first, one or more lines each. For "value" it may end with a move: then the
        move is judged, which is Q^L, and not the place it starts from, which is V^L.
    action: the move that all looks, games or estimates begin with; empty when a state is evaluated.
    count: how many looks, games or estimates there are.
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
    "policy": _template("pi_L: think, then move", "history", "task player actions", replies=True),
    "value": _template(
        "V^L, Q^L: evaluate where a record ends, or the move it ends with",
        "history",
        "task player action actions",
        replies=True,
    ),
    "combine": _template(
        "G2: join a transition with the evaluation after it",
        "reward evaluation",
        "task player history action moves",
        replies=True,
    ),
    "aggregate": _template(
        "G1: one evaluation out of many looks ahead", "looks", "task player history action count", replies=True
    ),
    "monte_carlo": _template(
        "G1: one evaluation out of games played to their end", "games", "task player history action count", replies=True
    ),
    "blend": _template(
        "TD(lambda): one evaluation out of those of several lengths",
        "estimates",
        "task player history action count",
        replies=True,
    ),
    "improve": _template(
        "I: choose from the evaluations alone", "candidates", "task player history actions", replies=True
    ),
    "look": _template("one variation, for aggregate with G2 inside", "evaluation reward", "number moves"),
    "combined_look": _template("one variation that G2 has already combined", "evaluation", "number moves"),
    "game": _template(
        "one game from the situation to its end, for monte_carlo; record: with every observation, one a line",
        "reward",
        "number moves record ending",
    ),
    "estimate": _template("the evaluation after so many moves, for blend", "evaluation weight", "steps"),
    "candidate": _template("one candidate action, for improve", "evaluation", "action"),
    "terminal": _template("the value of a finished game", "", "terminal_text"),
}
