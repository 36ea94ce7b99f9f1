"""What can be seen on a frozen lake: where the goal lies from the player, and how many holes are beside it."""

from __future__ import annotations

import random

from nlrl.pretrain.corpus.game import Game
from nlrl_envs.frozen_lake import ACTIONS, POOL, STEPS, FrozenLakeState, FrozenLakeText

MAPS = 4 * POOL
"""How many maps are drawn from; their seeds lie behind those of the map `random`, so none of its maps occurs, nor does
a named one."""
SIZES = ("4x4",) * 7 + ("8x8", "5x5", "6x6")


def judge(prompt: str) -> str:
    """The evaluation that the map itself supports; of a move, that of the square it points at."""
    lines = prompt.split("\n")
    move = lines.pop() if lines[-1] in ACTIONS else None
    first = max(i for i, line in enumerate(lines) if i == 0 or line in ACTIONS)
    marks = [line.split(" ") for line in lines[first + 1 :]]
    place = {mark: (r, c) for r, row in enumerate(marks) for c, mark in enumerate(row)}
    (r, c), goal = place["P"], place["G"]
    if move is not None:
        down, right = STEPS[ACTIONS.index(move)]
        r, c = min(max(r + down, 0), len(marks) - 1), min(max(c + right, 0), len(marks[0]) - 1)
    down, right = goal[0] - r, goal[1] - c
    beside = ((r + i, c + j) for i, j in STEPS)
    holes = sum(0 <= i < len(marks) and 0 <= j < len(marks[0]) and marks[i][j] == "O" for i, j in beside)
    steps = abs(down) + abs(right)
    return (
        f"Goal {abs(down)} {'up' if down < 0 else 'down'}, {abs(right)} {'left' if right < 0 else 'right'}: "
        f"{steps} steps. Holes beside {holes}. {FROZEN_LAKE.worth(1 - 0.1 * (steps + holes))}"
    )


def begin(rng: random.Random) -> FrozenLakeText:
    """A drawn map, slippery or not, with the player on any of its ice."""
    seed, size = POOL + rng.randrange(MAPS), rng.choice(SIZES)
    lake = FrozenLakeText(f"random:{seed}:{size}", slippery=rng.random() < 0.5)
    ice = [i for i, letter in enumerate("".join(lake.rows)) if letter in "SF"]
    lake.set_state(FrozenLakeState(0, rng.choice(ice), 0))
    return lake


def safe(lake: FrozenLakeText, move: str) -> bool:
    """Whether a move points at ice."""
    position, columns = lake.state.position, len(lake.rows[0])
    (r, c), (down, right) = divmod(position, columns), STEPS[ACTIONS.index(move)]
    row, column = min(max(r + down, 0), len(lake.rows) - 1), min(max(c + right, 0), columns - 1)
    return lake.rows[row][column] in "SF"


FROZEN_LAKE = Game("frozen_lake", begin, judge, lowest=0.0, moves=ACTIONS, safe=safe)
