"""What can be seen on a board of Connect Four: columns that would complete four, and who has the middle column."""

from __future__ import annotations

from nlrl.pretrain.corpus.game import Game, last_of, listed
from nlrl_envs.connect_four import ConnectFour


def judge(prompt: str) -> str:
    """The evaluation that the board itself supports, after the move in question if there is one."""
    player, lines, seat, move = last_of(prompt)
    rows, columns = 0, len(lines[-1])
    stones = {"x": 0, "o": 0}
    heights = [0] * columns
    for line in lines[-2:0:-1]:
        if len(line) != columns or line.strip(".xo"):
            break
        for column, mark in enumerate(line):
            if mark != ".":
                stones[mark] |= 1 << column * SPAN + rows
                heights[column] = rows + 1
        rows += 1
    if move is not None:
        stones[seat] |= 1 << (int(move) - 1) * SPAN + heights[int(move) - 1]
        heights[int(move) - 1] += 1
    mine, others = stones[player], stones["o" if player == "x" else "x"]
    open_ = [(c, 1 << c * SPAN + height) for c, height in enumerate(heights) if height < rows]
    wins = [c + 1 for c, square in open_ if four(mine | square)]
    losses = [c + 1 for c, square in open_ if four(others | square)]
    middle = ((1 << SPAN) - 1) << columns // 2 * SPAN
    own, against = (mine & middle).bit_count(), (others & middle).bit_count()
    worth = CONNECT_FOUR.worth(0.3 * (len(wins) - len(losses)) + 0.1 * (own - against))
    return f"Wins in {listed(wins)}. Loses in {listed(losses)}. Middle {own} to {against}. {worth}"


SPAN = 8
"""Bits a column: more than any board has rows, so that no line runs from the top of one into the next."""


def four(stones: int) -> bool:
    """Whether four stones lie in a row."""
    for step in (1, SPAN - 1, SPAN, SPAN + 1):
        pairs = stones & stones >> step
        if pairs & pairs >> 2 * step:
            return True
    return False


CONNECT_FOUR = Game("connect_four", lambda rng: ConnectFour(), judge)
