"""How good a position of Connect Four is, by depth-limited alpha-beta that says when its answer is exact.

An answer is exact when the search proved a win or a loss, or when it saw every game to its end. From the empty board
neither happens in reasonable time (x wins there, by the literature); with 14 stones left every answer is exact.
"""

from __future__ import annotations

import numpy as np

from nlrl_envs import connect_four_core as core
from nlrl_envs.board_game import Position, Solver, Verdict
from nlrl_envs.connect_four import ConnectFour

DEPTH = 14
TABLE_BITS = 20
"""2^20 entries, 16 MiB."""
ESTIMATE_SCALE = 200.0
"""The estimate that counts as a certain win; estimates are cut off below it."""


class ConnectFourSolver(Solver):
    """Verdicts for one size of board. It keeps no memory of earlier questions: an answer depends on the question alone.

    Args:
        game: any game on that board.
        depth: plies the search looks ahead; forced replies are not counted.

    Raises:
        ValueError: the depth is below 1.
    """

    def __init__(self, game: ConnectFour, depth: int = DEPTH) -> None:
        if depth < 1:
            raise ValueError(f"A search looks at least 1 ply ahead, not {depth}.")
        self.depth = min(depth, 64)
        super().__init__(game)
        self._rules = core.rules_of(game)
        self._squares = game.grid[0] * game.grid[1]

    def verdict(self, position: Position) -> Verdict:
        """V* for seat 0: 1, 0 or -1 when exact, otherwise an estimate strictly between."""
        if position.result is not None:
            return Verdict(float(position.result), True)
        first, second, seat, *_ = position
        left = self._squares - (first | second).bit_count()
        words, counters = np.array([first, second, seat], np.uint64), np.zeros(1, np.int64)
        keys, entries = np.zeros(1 << TABLE_BITS, np.uint64), np.zeros(1 << TABLE_BITS, np.int64)
        score, depth = 0, 0
        while depth < min(self.depth, left) and abs(score) < core.PROVEN:
            depth = min(depth + 2, self.depth, left)
            score = core.search(self._rules, keys, entries, counters, words, depth)
        sign = 1 - 2 * seat
        if abs(score) >= core.PROVEN:
            return Verdict(float(sign * np.sign(score)), True)
        if depth >= left:
            return Verdict(0.0, True)
        return Verdict(sign * max(-0.99, min(0.99, score / ESTIMATE_SCALE)), False)
