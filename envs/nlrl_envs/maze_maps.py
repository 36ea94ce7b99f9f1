"""Layouts of mazes: four known ones and a seeded generator.

The known layouts are data of LMRL-Gym (Abdulhai et al., arXiv 2311.18232; llm_rl_scripts/maze/env/mazes.py), which has
them from mazelab. The goals of double_t and umaze are LMRL-Gym's; those of medium and large are given nowhere, ours are
the free cells in their lower right: (6, 6) and (10, 7).
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

Cell = tuple[int, int]
"""Row and column, counted from 0 at the upper left; the border is wall."""

ACTIONS = ("move left", "move right", "move up", "move down")
DELTAS: tuple[Cell, ...] = ((0, -1), (0, 1), (-1, 0), (1, 0))
"""What each of ACTIONS adds to row and column."""

SMALLEST, LARGEST = 5, 15
"""Least and greatest number of rows or columns of a generated maze. In 15 x 15 no shortest way is longer than 96."""


@dataclass(frozen=True)
class MazeMap:
    """A maze: its rows as text ('#' wall, '.' free) and the cell to reach."""

    name: str
    rows: tuple[str, ...]
    goal: Cell

    def __post_init__(self) -> None:
        if len({len(row) for row in self.rows}) != 1:
            raise ValueError(f"The rows of maze '{self.name}' differ in length; make them equal.")
        border = self.rows[0] + self.rows[-1] + "".join(row[0] + row[-1] for row in self.rows)
        if set(border) != {"#"}:
            raise ValueError(f"The border of maze '{self.name}' has a gap; close it with '#'.")
        if self.goal not in self.free_cells:
            raise ValueError(
                f"The goal {self.goal[0]}, {self.goal[1]} of maze '{self.name}' is not a free cell; choose another."
            )

    def is_wall(self, cell: Cell) -> bool:
        """Whether a cell is wall."""
        return self.rows[cell[0]][cell[1]] == "#"

    def next_cell(self, cell: Cell, action: int) -> Cell:
        """Where an action (index into ACTIONS) leads: the neighbour, or the same cell before a wall."""
        neighbour = (cell[0] + DELTAS[action][0], cell[1] + DELTAS[action][1])
        return cell if self.is_wall(neighbour) else neighbour

    @cached_property
    def free_cells(self) -> tuple[Cell, ...]:
        """All free cells in row order, the goal among them."""
        return tuple((r, c) for r, row in enumerate(self.rows) for c, mark in enumerate(row) if mark == ".")

    @cached_property
    def starts(self) -> tuple[Cell, ...]:
        """All free cells but the goal, in row order."""
        return tuple(cell for cell in self.free_cells if cell != self.goal)

    @cached_property
    def distances(self) -> dict[Cell, int]:
        """Moves of a shortest way from each free cell to the goal; cells that cannot reach it are left out."""
        distances = {self.goal: 0}
        frontier = deque([self.goal])
        while frontier:
            cell = frontier.popleft()
            for action in range(len(ACTIONS)):
                neighbour = self.next_cell(cell, action)
                if neighbour not in distances:
                    distances[neighbour] = distances[cell] + 1
                    frontier.append(neighbour)
        return distances


def _known(name: str, goal: Cell, drawing: str) -> MazeMap:
    return MazeMap(name, tuple(drawing.split()), goal)


MAPS: dict[str, MazeMap] = {
    maze.name: maze
    for maze in (
        _known(
            "double_t",
            (8, 6),
            """
            #############
            #.....#.....#
            ###.#####.###
            ###.#####.###
            ###.#####.###
            ###.......###
            ######.######
            ######.######
            ######.######
            #############
            """,
        ),
        _known(
            "umaze",
            (3, 3),
            """
            #####
            #...#
            #.#.#
            #.#.#
            #####
            """,
        ),
        _known(
            "medium",
            (6, 6),
            """
            ########
            #..#...#
            #..#.#.#
            ##....##
            ###.#..#
            #....#.#
            #..#...#
            ########
            """,
        ),
        _known(
            "large",
            (10, 7),
            """
            #########
            #.....#.#
            #.#.#.#.#
            #...#...#
            #.###.###
            #.......#
            ###.###.#
            #...#...#
            #.#.#####
            #.#.#...#
            #.....#.#
            #########
            """,
        ),
    )
}

RANDOM_MAP = re.compile(r"random:(?P<seed>\d{1,18})(:(?P<rows>\d{1,3})x(?P<columns>\d{1,3}))?")
MAP_FORMS = (*MAPS, "random:SEED", "random:SEED:ROWSxCOLUMNS")
"""What `load_map` understands, for messages and help texts."""


def load_map(name: str) -> MazeMap:
    """The maze of a name: one of MAPS, `random:SEED` or `random:SEED:ROWSxCOLUMNS`.

    Raises:
        ValueError: the name is none of these; the message lists what there is.
    """
    if name in MAPS:
        return MAPS[name]
    if spec := RANDOM_MAP.fullmatch(name):
        return random_map(int(spec["seed"]), int(spec["rows"] or 9), int(spec["columns"] or 9))
    near = get_close_matches(name, MAP_FORMS, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"Unknown map '{name}'; known: {', '.join(MAP_FORMS)}.{hint}")


def random_map(seed: int, rows: int = 9, columns: int = 9) -> MazeMap:
    """A maze of corridors one cell wide, always connected, the same for the same arguments everywhere.

    A random spanning tree over the cells with odd coordinates (depth first) gives corridors; then one wall in twelve
    between two neighbouring corridors is opened, which gives loops, so that there may be several ways. The goal is any
    free cell. Only `random.Random.random` is used, whose stream Python promises not to change.

    Raises:
        ValueError: rows or columns are even, below SMALLEST or above LARGEST.
    """
    for what, size in (("rows", rows), ("columns", columns)):
        if size % 2 == 0 or not SMALLEST <= size <= LARGEST:
            raise ValueError(
                f"A random maze has an odd number of {what} from {SMALLEST} to {LARGEST}, not {size}; choose one."
            )
    stream = random.Random(seed)

    def pick(count: int) -> int:
        return int(stream.random() * count)

    free = _carve_tree(rows, columns, pick)
    closed = [
        (r, c)
        for r in range(1, rows - 1)
        for c in range(1, columns - 1)
        if (r, c) not in free and (r % 2 == 1 or c % 2 == 1)
    ]
    for _ in range(len(closed) // 12):
        free.add(closed.pop(pick(len(closed))))
    goal = sorted(free)[pick(len(free))]
    drawing = tuple("".join("." if (r, c) in free else "#" for c in range(columns)) for r in range(rows))
    return MazeMap(f"random:{seed}:{rows}x{columns}", drawing, goal)


def _carve_tree(rows: int, columns: int, pick: Callable[[int], int]) -> set[Cell]:
    """Free cells of a random spanning tree over the cells with odd coordinates."""
    way = [(1 + 2 * pick(rows // 2), 1 + 2 * pick(columns // 2))]
    free = {way[0]}
    while way:
        r, c = way[-1]
        ahead = [
            (dr, dc)
            for dr, dc in DELTAS
            if 0 < r + 2 * dr < rows and 0 < c + 2 * dc < columns and (r + 2 * dr, c + 2 * dc) not in free
        ]
        if not ahead:
            way.pop()
            continue
        dr, dc = ahead[pick(len(ahead))]
        free |= {(r + dr, c + dc), (r + 2 * dr, c + 2 * dc)}
        way.append((r + 2 * dr, c + 2 * dc))
    return free
