"""The order in which a machine with one GPU, lent for minutes at a time, makes the rows: most valuable first.

Every command ends within its limit and is gone on with by giving it again; what it wrote lies under one folder, and the
same folder is given to the next. So the list is worked down, each command as often as it says that something is left.
"""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 560
"""Seconds of one command; a machine that is lent for ten minutes needs some for itself."""
BACKBONES = ("hymba", "transformer", "ngpt", "diff", "bimamba")
"""The cheapest in training first behind the two that everything else is compared with."""


@dataclass(frozen=True, slots=True)
class Item:
    """A command of the plan."""

    why: str
    command: str
    """`{out}` stands for the folder of everything."""


def items() -> list[Item]:
    """The plan."""
    models = " ".join(f"--backbone {name}" for name in BACKBONES)

    def learn(rows: str, seeds: int, more: str = models) -> str:
        return (
            f"nlrl reproduce learning --row {rows} --models {{out}}/models {more} --seeds {seeds} --limit {LIMIT} "
            "--out {out}"
        )

    return [
        Item(
            "Maze, three seeds, the model in the box: the two rows that need no other model.",
            f"nlrl reproduce learning --row maze-double-t --row maze-medium --seeds 3 --limit {LIMIT} --out {{out}}",
        ),
        Item(
            "One model of all games for each backbone, on the same batches; again until it says it is done (about 40 "
            "minutes for five at 300 million tokens each; `--steps 1500` for a third of that).",
            f"nlrl pretrain {models} --games maze --games tic_tac_toe --games connect_four --games breakthrough "
            f"--games frozen_lake --max-seconds 2400 --pause-seconds {LIMIT - 60} --out {{out}}/models",
        ),
        Item("Tic-Tac-Toe against random play: the figure of the README, all backbones, first seed.",
             learn("ttt-random", 1)),
        Item("The slippery lake and the maze, all backbones, first seed.",
             learn("lake-slippery --row maze-double-t --row maze-medium", 1)),
        Item("Tic-Tac-Toe against random play: the other two seeds.", learn("ttt-random", 3)),
        Item("Tic-Tac-Toe against the first legal move, and self-play, all backbones.",
             learn("ttt-first --row ttt-minimax", 3)),
        Item("Breakthrough's values.", learn("breakthrough-exact", 3)),
        Item("Connect Four.", learn("connect-four", 3)),
        Item("What each knob does, with the first backbone.",
             f"nlrl reproduce ablations --models {{out}}/models --backbone {BACKBONES[0]} --seeds 3 --limit {LIMIT} "
             "--out {out}"),
        Item("Tables and plots from what is there; needs no GPU.",
             "nlrl reproduce learning --table --out {out} && nlrl reproduce ablations --table --out {out}"),
    ]  # fmt: skip


def lines(out: str) -> list[str]:
    """The plan as a shell script: a comment and a command each."""
    said = ["# Each command ends within ten minutes; give it again until it leaves with exit code 0."]
    for number, item in enumerate(items(), 1):
        said += ["", f"# {number}. {item.why}", item.command.format(out=out)]
    return said
