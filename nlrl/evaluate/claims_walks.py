"""Claims about a walk: where the goal is, what lies beside the player, what happened on the way.

Of a move that is evaluated (Q^L) the fixed sentence on a lake speaks of the square that the move points at, in a maze
of the place before it, for the walls beyond are not told. Which of the two a free sentence speaks of cannot be known,
so of moves only the stated figures are checked there.
"""

from __future__ import annotations

import re
from itertools import pairwise

from nlrl.evaluate.claims import COUNT, Check, Checked, Claim, check_text, number_of, said_in
from nlrl.evaluate.claims_common import check_figures, check_games, worth_claim
from nlrl.evaluate.reading import read_lake, read_maze
from nlrl.types import Evaluation
from nlrl_envs.frozen_lake import ACTIONS, STEPS, distances
from nlrl_envs.maze_maps import Cell

_LAKE = re.compile(r"Goal (\d+) (up|down), (\d+) (left|right): (\d+) steps\. Holes beside (\d)\. Worth \S+")
_MAZE = re.compile(
    r"Goal (\d+) (up|down), (\d+) (left|right): (\d+) steps\. Bumped (\d+) times\. Came back (\d+) times\. Worth \S+"
)
_OFFSET = (
    rf"[Gg]oal is (?P<n>{COUNT})(?: squares?| rows?| columns?| steps?| cells?)? (?:to the )?(?P<way>up|down|left|right)"
    rf"(?: and (?P<m>{COUNT})(?: squares?| rows?| columns?| steps?| cells?)? (?:to the )?(?P<and>up|down|left|right))?"
)
_WAYS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def check_lake(evaluation: Evaluation) -> Checked:
    """Where the goal is, holes beside the player, how many moves are enough."""
    if (of_games := check_games(evaluation)) is not None:
        return of_games
    lake = read_lake(evaluation.situation.history[-1])
    columns, flat = len(lake.rows[0]), "".join(lake.rows)
    here, goal = divmod(lake.position, columns), divmod(flat.index("G"), columns)
    if evaluation.action is not None:
        down, right = STEPS[ACTIONS.index(evaluation.action)]
        here = min(max(here[0] + down, 0), len(lake.rows) - 1), min(max(here[1] + right, 0), columns - 1)
    beside = [(here[0] + down, here[1] + right) for down, right in STEPS]
    holes = {(r, c) for r, c in beside if 0 <= r < len(lake.rows) and 0 <= c < columns and lake.rows[r][c] == "H"}
    if match := _LAKE.fullmatch(evaluation.value.text.strip()):
        claims = [*_fixed_offset(match, here, goal), Claim("holes", match[6], int(match[6]) == len(holes))]
        worth = max(1 - 0.1 * (int(match[5]) + int(match[6])), 0.0)
        return Checked((*claims, worth_claim(evaluation, worth)), 4, 0, 0)

    def beside_player(match: re.Match[str]) -> list[Claim]:
        return [Claim("holes", match[0], len(holes) == number_of(match["n"]))]

    def hole(match: re.Match[str]) -> list[Claim]:
        down, right = _WAYS[{"above": "up", "below": "down"}.get(match["way"], match["way"])]
        claims = [Claim("holes", match[0], (here[0] + down, here[1] + right) in holes)]
        return claims + ([Claim("holes", "the only one", len(holes) == 1)] if match["only"] else [])

    def enough(match: re.Match[str]) -> list[Claim]:
        return [Claim("steps", match[0], bool(distances(lake.rows)[lake.position] <= number_of(match["n"])))]

    only = r"(?P<only> is the only one beside the player)?"
    patterns = [
        (_OFFSET, _offset(here, goal)),
        (rf"[Hh]ole (?:to the )?(?P<way>left|right|above|below){only}", hole),
        (rf"\b(?P<n>(?i:{COUNT})) holes? (?:is|are|lies|lie) beside the player", beside_player),
        (rf"\b(?P<n>(?i:{COUNT})) moves (?:are|is) enough", enough),
    ]
    return _free(evaluation, patterns)


def check_maze(evaluation: Evaluation) -> Checked:
    """Where the goal is, bumps and returns on the way, walls beside the player."""
    if (of_games := check_games(evaluation)) is not None:
        return of_games
    cells = [read_maze(text)[0] for text in evaluation.situation.history[::2]]
    here, goal = read_maze(evaluation.situation.history[-1])
    if match := _MAZE.fullmatch(evaluation.value.text.strip()):
        bumps, returns = _bumps(cells), _returns(cells)
        claims = [
            *_fixed_offset(match, here, goal),
            Claim("bumps", match[6], int(match[6]) == bumps),
            Claim("returns", match[7], int(match[7]) == returns),
        ]
        worth = -(int(match[5]) + 2 * int(match[6]) + 2 * int(match[7]))
        return Checked((*claims, worth_claim(evaluation, worth, 0)), 4, 0, 0)
    walls = evaluation.situation.history[-1].rpartition("There")[2]

    def wall(match: re.Match[str]) -> list[Claim]:
        if match["both"]:
            return [Claim("walls", match[0], "to your left" in walls and "to your right" in walls)]
        return [Claim("walls", match[0], match["way"] in walls)]

    def moved(match: re.Match[str]) -> list[Claim]:
        places = [(int(match["r"]), int(match["c"])), (int(match["to_r"]), int(match["to_c"]))]
        return [Claim("way", match[0], places[0] in cells and places[1] == here)]

    def far(match: re.Match[str]) -> list[Claim]:
        steps = abs(goal[0] - here[0]) + abs(goal[1] - here[1])
        return [Claim("steps", match[0], steps == number_of(match["n"]))]

    side = "(?P<way>left|right|above|below)"
    way = r"from (?P<r>\d+), (?P<c>\d+) to (?P<to_r>\d+), (?P<to_c>\d+)"
    patterns = [
        (_OFFSET, _offset(here, goal)),
        (rf"(?:player|You|you) (?:has |have )?(?:moved|went|came) {way}", moved),
        (rf"[Ww]alls? (?:(?P<both>on both sides)|(?:is |are )?(?:to the |to your |on the )?{side})", wall),
        (rf"\b(?P<n>(?i:{COUNT})) (?:cells?|steps?|squares?) (?:away )?from the goal", far),
    ]
    return _free(evaluation, patterns)


def _free(evaluation: Evaluation, patterns: list[tuple[str, Check]]) -> Checked:
    text = said_in(evaluation.reply, evaluation.value.text)
    compiled = [(re.compile(pattern), check) for pattern, check in patterns if evaluation.action is None]
    return check_text(text, [*check_figures(evaluation, ()), *compiled])


def _fixed_offset(match: re.Match[str], here: Cell, goal: Cell) -> list[Claim]:
    """The claims of "Goal 1 up, 2 left: 3 steps."."""
    down = int(match[1]) * (1 if match[2] == "down" else -1)
    right = int(match[3]) * (1 if match[4] == "right" else -1)
    true = goal[0] - here[0], goal[1] - here[1]
    return [
        Claim("goal", f"{match[1]} {match[2]}", down == true[0]),
        Claim("goal", f"{match[3]} {match[4]}", right == true[1]),
        Claim("steps", match[5], int(match[5]) == abs(true[0]) + abs(true[1])),
    ]


def _offset(here: Cell, goal: Cell) -> Check:
    true = goal[0] - here[0], goal[1] - here[1]

    def check(match: re.Match[str]) -> list[Claim]:
        claims = []
        for count, way in ((match["n"], match["way"]), (match["m"], match["and"])):
            if way is not None:
                down, right = _WAYS[way]
                along = true[0] * down + true[1] * right
                claims.append(Claim("goal", f"{count} {way}", along == number_of(count)))
        return claims

    return check


def _bumps(cells: list[Cell]) -> int:
    """Moves that did not change the place."""
    return sum(before == after for before, after in pairwise(cells))


def _returns(cells: list[Cell]) -> int:
    """Moves to a place where the player had been before."""
    return sum(cells[i] != cells[i - 1] and cells[i] in cells[: i - 1] for i in range(1, len(cells)))
