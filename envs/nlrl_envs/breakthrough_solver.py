"""Who wins at Breakthrough: V* of any position and of any move, exactly, for boards of up to 28 squares.

The start of 5x5 is solved in about a second (white, who moves second, wins); what was found out stays in the solver's
table, so positions are cheapest when one solver is asked for all of them. V^pi of a policy is another thing: for small
boards and endings see `nlrl_envs.game_table`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from nlrl_envs import breakthrough_core as core
from nlrl_envs.board_game import Position, Solver, Verdict
from nlrl_envs.breakthrough import Breakthrough

TABLE_BITS = 23
"""2^23 entries, 64 MiB; with 2^22 the start of 5x5 takes as long, 3,000 random positions a quarter longer."""


class BreakthroughSolver(Solver):
    """Exact verdicts for one size of board. Threads may share a solver: an entry of its table is one word.

    Args:
        game: any game on that board.
        table_bits: the table has 2^table_bits entries of 8 bytes.

    Raises:
        ValueError: the board is too large.
    """

    def __init__(self, game: Breakthrough, table_bits: int = TABLE_BITS) -> None:
        rows, columns = game.grid
        if rows * columns > core.SOLVABLE_SQUARES:
            raise ValueError(
                f"Breakthrough is solved on boards of up to {core.SOLVABLE_SQUARES} squares, not on {rows}x{columns}; "
                "take a smaller board, or the opponent 'mcts'."
            )
        super().__init__(game)
        self._rules = core.rules_of(game)
        self._table = np.zeros(1 << table_bits, np.uint64)
        self._counters = np.zeros(1, np.int64)

    @property
    def searched(self) -> int:
        """Positions searched so far."""
        return int(self._counters[0])

    def mover_wins(self, position: Position) -> bool:
        """Whether the side to move wins; of a finished game, whether it has won."""
        if position.result is not None:
            return position.result == 1 - 2 * position.seat
        first, second, seat, *_ = position
        return bool(core.wins(self._rules, self._table, self._counters, first, second, seat))

    def verdict(self, position: Position) -> Verdict:
        """V* for seat 0: 1 or -1, always exact."""
        return Verdict(1.0 if self.mover_wins(position) == (position.seat == 0) else -1.0, True)



@lru_cache(maxsize=4)
def _shared(size: str) -> BreakthroughSolver:
    return BreakthroughSolver(Breakthrough(size))


def solver_of(game: Breakthrough) -> BreakthroughSolver:
    """The solver that this process shares for the board of `game`."""
    return _shared("{}x{}".format(*game.grid))
