"""The corpus of game language that the models in the box are trained on.

Honesty rule. The corpus teaches language skills and nothing else: to read a board or a place, to describe a position
and what happened on a given way, to aggregate the evidence it is given, to choose the candidate whose given evaluation
is best, and to play uniformly at random. No example contains a solver's value, a shortest path or an optimal move: no
module here imports a solver, positions come from random moves, the numbers of tables are drawn, and the moves of
"policy" examples are drawn uniformly. What a "value" example says follows from the text that it judges, and its number
is the sum of those facts that the prompt states. So a model of this corpus plays no better than a random player, and
every gain a run shows comes from its loop.

Every example is a prompt of the `compact` set, rendered by the functions and templates a run uses, with the reply its
role asks for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from nlrl.errors import UnknownNameError
from nlrl.pretrain.corpus import maze
from nlrl.pretrain.corpus.breakthrough import BREAKTHROUGH
from nlrl.pretrain.corpus.connect_four import CONNECT_FOUR
from nlrl.pretrain.corpus.example import Example
from nlrl.pretrain.corpus.frozen_lake import FROZEN_LAKE
from nlrl.pretrain.corpus.game import Game
from nlrl.pretrain.corpus.speaker import listed_moves
from nlrl.pretrain.corpus.tic_tac_toe import TIC_TAC_TOE
from nlrl.pretrain.corpus.writer import Writer

__all__ = ["GAMES", "SHARES", "Example", "choices", "examples"]

GAMES: dict[str, Game] = {game.id: game for game in (TIC_TAC_TOE, CONNECT_FOUR, BREAKTHROUGH, FROZEN_LAKE)}
"""The games beside the maze."""

_BOARD = {
    "value": 0.34, "policy": 0.08, "combine": 0.04, "aggregate": 0.16, "monte_carlo": 0.12, "blend": 0.06,
    "improve": 0.20,
}  # fmt: skip

SHARES: dict[str, dict[str, float]] = {
    "maze": {**maze.ALONE, "value": 0.36, "aggregate": 0.18, "monte_carlo": 0.08, "blend": 0.04},
    **dict.fromkeys(GAMES, _BOARD),
}
"""Game -> role -> share of the role among that game's examples. Games have equal shares."""


def examples(seed: int, games: Sequence[str] = ("maze",)) -> Iterator[Example]:
    """An endless stream of examples; the same seed and games give the same stream.

    Raises:
        UnknownNameError: the corpus has no such game.
    """
    for name in games:
        if name not in SHARES:
            raise UnknownNameError("game of the corpus", name, SHARES)
    if tuple(games) == ("maze",):
        return maze.examples(seed)
    return _mixed(seed, tuple(dict.fromkeys(games)))


def choices(example: Example) -> int:
    """How many moves a "policy" example could have named, each as likely as the other."""
    game = GAMES.get(example.game)
    return len(maze.ACTIONS if game is None else game.moves or listed_moves(example.prompt))


def _mixed(seed: int, games: Sequence[str]) -> Iterator[Example]:
    rng = random.Random(seed)
    streams = [
        maze.examples(rng.getrandbits(48), SHARES[name])
        if name == "maze"
        else Writer(GAMES[name], rng.getrandbits(48)).examples(SHARES[name])
        for name in games
    ]
    while True:
        yield next(streams[rng.randrange(len(streams))])
