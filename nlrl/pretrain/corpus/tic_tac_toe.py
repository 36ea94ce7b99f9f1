"""What can be seen on a board of Tic-Tac-Toe: squares that would complete a line, and who has the centre."""

from __future__ import annotations

from nlrl.pretrain.corpus.game import Game, last_of, listed
from nlrl_envs.tic_tac_toe import LINES, TicTacToe

CENTRE = 4


def judge(prompt: str) -> str:
    """The evaluation that the board itself supports, after the move in question if there is one."""
    player, lines, seat, move = last_of(prompt)
    marks = " | ".join(lines[-5::2]).split(" | ")
    if move is not None:
        marks[int(move) - 1] = seat
    found: dict[str, set[int]] = {"O": set(), "X": set()}
    for line in LINES:
        there = [marks[s] for s in line]
        for name, squares in found.items():
            if there.count(name) == 2:
                squares.update(int(mark) for mark in there if mark not in found)
    other = "X" if player == "O" else "O"
    wins, losses = sorted(found[player]), sorted(found[other])
    centre = {player: "own", other: "other"}.get(marks[CENTRE], "empty")
    worth = TIC_TAC_TOE.worth(0.3 * (len(wins) - len(losses)) + 0.1 * (centre == "own"))
    return f"Wins at {listed(wins)}. Loses at {listed(losses)}. Centre {centre}. {worth}"


TIC_TAC_TOE = Game("tic_tac_toe", lambda rng: TicTacToe(), judge)
