"""The rows that can be run again, as data: each names its recipe, the figure that it is judged by, and its goal.

A figure is the name of a series in the record (`RunReader.metrics`), such as "evaluate/games/win", and is read after
the last iteration: to report the best of many iterations would be to choose by the games that are reported.

Sources: what the paper reports stands in arXiv 2411.14251 (v3), its figures and Table 1; what a random player gets and
what is possible is computed from the rules (`nlrl run` prints both, `tests/acceptance` holds them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlrl.errors import UnknownNameError

WIN, LOSS, RETURN = "evaluate/games/win", "evaluate/games/loss", "evaluate/games/return"
RIGHT = "evaluate/values exact/right"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: something that a loop is to learn."""

    id: str
    what: str
    recipe: str = ""
    """A file of `runs/reproduce`, without its ending; "" for what nothing here can run yet."""
    figure: str = WIN
    """Which series of the record is reported."""
    start: str = ""
    """Before learning, as it must be."""
    paper: str = ""
    limit: str = ""
    """What is possible, exactly."""
    goal: float | None = None
    """None for a row that is only reported."""
    percent: bool = False
    """Whether the figure is a share that is shown in percent."""
    rising: bool = True
    """Whether more is better."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe's keys."""
    afterwards: Mapping[str, Any] | None = None
    """When given, the last policy plays again without learning, with these keys, and `figure` is of those games."""
    games: str = "maze"
    """Whose texts the model must have read: a game of the corpus."""
    missing: str = ""
    """Why it cannot be run yet."""

    def reached(self, value: float) -> bool | None:
        """Whether a figure is as good as the goal; None without a goal."""
        if self.goal is None:
            return None
        return value >= self.goal if self.rising else value <= self.goal

    def said(self, value: float) -> str:
        """A figure as tables show it."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}"


_TTT: dict[str, Any] = {"percent": True, "games": "tic_tac_toe"}
_VALUES: dict[str, Any] = {"figure": RIGHT, "percent": True, "games": "breakthrough"}

LEARNING = (
    Row("ttt-random", "Tic-Tac-Toe, actor-critic, against random play, seats alternating", "tic_tac_toe_random",
        start="43.65 %", paper="about 90 % (8B, 31 iterations)", limit="96.67 %", goal=0.95, **_TTT),
    Row("ttt-first", "the same against the first legal move", "tic_tac_toe_first",
        start="34.9 %", paper="over 90 % (model card)", limit="100 %", goal=0.99, **_TTT),
    Row("ttt-minimax", "the same, games lost against minimax after self-play", "tic_tac_toe_self_play", LOSS,
        start="most games", limit="0 %", goal=0.01, rising=False, afterwards={"env.opponent": "minimax"}, **_TTT),
    Row("maze-double-t", "Maze double_t, policy iteration, then the plain policy without looking ahead",
        "maze_double_t", RETURN, start="-85.89", paper="-11.19, looking ahead with K=8", limit="-6.84", goal=-7.5),
    Row("maze-medium", "Maze medium, the same", "maze_medium", RETURN,
        start="-73.01", paper="-12.23, looking ahead with K=8", limit="-4.72", goal=-5.3),
    Row("maze-unseen", "Maze, learned on four maps, played on unseen random ones", figure=WIN, percent=True,
        start="random", limit="100 %", goal=0.9,
        missing="A game has one map: no recipe can learn on four at once and be evaluated on others."),
    Row("breakthrough-exact", "Breakthrough 5x5, TD values of an MCTS policy, held-out positions, exact labels",
        "breakthrough_td", start="50 %", limit="100 %", **_VALUES),
    Row("breakthrough-results", "the same positions, label = mean of 30 games of that policy", **_VALUES,
        start="50 % (always White 68 %)", paper="above 85 %", limit="about 100 %", goal=0.88,
        missing="The loop grades held-out positions by the solver; labels by results are made by "
        "`python -m nlrl.evaluate.breakthrough`, which does not read a run's evaluations."),
    Row("lake-slippery", "FrozenLake 4x4, slippery, 10 steps", "frozen_lake_slippery", percent=True,
        games="frozen_lake", start="22 %", paper="at most about 35 %", limit="50.4 %", goal=0.45),
    Row("connect-four", "Connect Four, actor-critic, against random play", "connect_four_random", percent=True,
        games="connect_four", start="random", goal=0.95),
)  # fmt: skip


def _ablation(name: str, value: object, key: str) -> Row:
    """One setting of one knob of Tic-Tac-Toe against random play, all others as in its recipe."""
    told = f"Tic-Tac-Toe against random play, {name} {value}"
    return Row(f"{name}-{value}".lower().replace("_", "-").replace(" ", "-"), told, "tic_tac_toe_random",
               limit="96.67 %", overrides={key: value}, **_TTT)  # fmt: skip


ABLATIONS = (
    *(_ablation("K_MC", k, "training.k_mc") for k in (1, 5, 10)),
    *(_ablation("buffer", k, "training.buffer") for k in (1, 3)),
    *(_ablation("mask", m, "training.top") for m in (2, 5, 10)),
    *(_ablation("games", n, "training.games") for n in (128, 256, 512)),
    *(
        Row(f"variations-{k}", f"Breakthrough TD values, {k} variations", "breakthrough_td", limit="100 %",
            overrides={"look_ahead.variations": k}, **_VALUES)
        for k in (1, 2, 4)
    ),
    *(
        Row(f"look-ahead-{k}", f"Breakthrough TD values, {k} moves ahead", "breakthrough_td", limit="100 %",
            overrides={"look_ahead.steps": k}, **_VALUES)
        for k in (2, 4, 8)
    ),
)  # fmt: skip

_CLAIM: dict[str, Any] = {"figure": "", "games": "all"}
_ELSEWHERE = "It is no loop; `python -m nlrl.claims` races the architectures and writes a table of its own."
ARCHITECTURE = (
    Row("ngpt-steps", "nGPT against its GPT baseline: steps to the same loss", **_CLAIM, paper="4 to 20 times fewer",
        missing=_ELSEWHERE),
    Row("diff-needles", "Diff-Transformer against the Transformer: retrieval over long game logs", **_CLAIM,
        missing=_ELSEWHERE),
    Row("hymba-recall", "Hymba against Transformer, Mamba and attention-then-Mamba: loss, recall, cache", **_CLAIM,
        missing=_ELSEWHERE),
    Row("bimamba-bits", "Bi-Mamba against full precision and binarising afterwards: loss, bytes, speed", **_CLAIM,
        missing=_ELSEWHERE),
)  # fmt: skip

TABLES: Mapping[str, tuple[Row, ...]] = {
    "learning": LEARNING,
    "ablations": ABLATIONS,
    "architecture": ARCHITECTURE,
}


def rows_of(table: str, names: Sequence[str] | None = None) -> tuple[Row, ...]:
    """The rows of a table, or those of these names, in the order of the table.

    Raises:
        UnknownNameError: there is no such table or row.
    """
    if table not in TABLES:
        raise UnknownNameError("table", table, TABLES)
    known = [one.id for one in TABLES[table]]
    for name in names or ():
        if name not in known:
            raise UnknownNameError(f"row of table '{table}'", name, known)
    return tuple(one for one in TABLES[table] if not names or one.id in names)
