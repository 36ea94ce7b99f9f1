"""The evaluations that the compact set's value.md ask for, counted from the games themselves, in the form of the set.

It shares nothing with the corpus, which reads the same from the text of prompts.
"""

from __future__ import annotations

from nlrl_envs.board_game import BoardGame, Position, bits
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.tic_tac_toe import TicTacToe


def sides(position: Position) -> tuple[int, int]:
    """The mover's squares, then the other's."""
    return (position.second, position.first) if position.seat else (position.first, position.second)


def completing(game: BoardGame, position: Position) -> tuple[list[str], list[str]]:
    """Moves by which the mover would win at once, then those by which the other would if it were its turn."""
    found = []
    for seat in (position.seat, 1 - position.seat):
        there = position._replace(seat=seat)
        moves = game.legal_moves(there).items()
        found.append([move for move, number in moves if game.play(there, number).result == 1 - 2 * seat])
    return found[0], found[1]


def listed(moves: list[str]) -> str:
    return ", ".join(moves) or "none"


def worth(value: float, low: float = -1.0) -> str:
    return f"Worth {min(max(round(value, 2), low), 1.0) + 0.0:.2f}."


def seen_tic_tac_toe(game: TicTacToe) -> str:
    wins, losses = completing(game, game.state)
    mine, others = sides(game.state)
    centre = "own" if mine >> 4 & 1 else "other" if others >> 4 & 1 else "empty"
    value = 0.3 * (len(wins) - len(losses)) + 0.1 * (centre == "own")
    return f"Wins at {listed(wins)}. Loses at {listed(losses)}. Centre {centre}. {worth(value)}"


def seen_connect_four(game: ConnectFour) -> str:
    wins, losses = completing(game, game.state)
    mine, others = sides(game.state)
    own, against = (sum(game.cell(s)[1] == game.grid[1] // 2 for s in bits(stones)) for stones in (mine, others))
    value = 0.3 * (len(wins) - len(losses)) + 0.1 * (own - against)
    return f"Wins in {listed(wins)}. Loses in {listed(losses)}. Middle {own} to {against}. {worth(value)}"


def seen_breakthrough(game: Breakthrough) -> str:
    counted = []
    for seat in (game.state.seat, 1 - game.state.seat):
        there = game.state._replace(seat=seat)
        rows = [game.cell(s)[0] for s in bits(sides(there)[0])]
        to_go = min(rows) if seat else game.grid[0] - 1 - max(rows)
        counted.append((len(rows), to_go, sum(move.endswith("*") for move in game.legal_moves(there))))
    (pawns, to_go, captures), (their_pawns, their_to_go, their_captures) = counted
    value = 0.1 * (pawns - their_pawns + their_to_go - to_go + captures - their_captures)
    return (
        f"Pawns {pawns} to {their_pawns}. Rows to go {to_go} to {their_to_go}. "
        f"Captures {captures} to {their_captures}. {worth(value)}"
    )


def seen_frozen_lake(game: FrozenLakeText) -> str:
    marks = [line.split(" ") for line in game.observation.splitlines()]
    place = {mark: (r, c) for r, row in enumerate(marks) for c, mark in enumerate(row)}
    (r, c), goal = place["P"], place["G"]
    down, right = goal[0] - r, goal[1] - c
    beside = [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
    holes = sum(0 <= i < len(marks) and 0 <= j < len(marks[0]) and marks[i][j] == "O" for i, j in beside)
    steps = abs(down) + abs(right)
    return (
        f"Goal {abs(down)} {'up' if down < 0 else 'down'}, {abs(right)} {'left' if right < 0 else 'right'}: "
        f"{steps} steps. Holes beside {holes}. {worth(1 - 0.1 * (steps + holes), 0.0)}"
    )
