"""What can be answered without knowing anything: rules that a value model has to beat on the very states it is asked.

A figure for a value model means nothing without them: on mixed-MCTS states of Breakthrough the side with more pawns is
the exact winner in some 86 % of all states, and saying "white" always agrees with 68 % of the labels that come from
games. Facts: a one-line rule scores as an evaluator that was trained for days may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nlrl_envs.board_game import Position, bits
from nlrl_envs.breakthrough import BLACK, WHITE, Breakthrough

Rule = Callable[[Breakthrough, Position], int]
"""The seat that a rule takes for the winner."""


def more_pieces(game: Breakthrough, position: Position) -> int:
    """The side with more pawns; the side to move when they are equal."""
    return _greater(position.first.bit_count(), position.second.bit_count(), position)


def always_white(game: Breakthrough, position: Position) -> int:
    """White, who wins the game from its start."""
    return WHITE


def more_advanced(game: Breakthrough, position: Position) -> int:
    """The side whose foremost pawn has fewer rows to go; the side to move when they are equal."""
    black = max(game.cell(s)[0] for s in bits(position.first))
    white = game.grid[0] - 1 - min(game.cell(s)[0] for s in bits(position.second))
    return _greater(black, white, position)


def side_to_move(game: Breakthrough, position: Position) -> int:
    """Whoever is to move."""
    return position.seat


RULES: Mapping[str, Rule] = {
    "side with more pieces, tie to the mover": more_pieces,
    "always white": always_white,
    "side with the more advanced pawn, tie to the mover": more_advanced,
    "always the side to move": side_to_move,
}
"""Those of the facts, by the names tables give them."""


def _greater(black: int, white: int, position: Position) -> int:
    return position.seat if black == white else BLACK if black > white else WHITE
