"""Long logs of played games with a few remarks in them that are asked for at the end.

Source: multi-needle retrieval as in Ye et al. 2024 (arXiv 2410.05258, section 3.4), where a needle gives a city its
magic number. Here the haystack is games of Tic-Tac-Toe by random moves, a needle is "The key of Kim is 47." between two
of them, and all needles are asked for, in an order of their own. Which number a name has is drawn anew in each log.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Ola", "Pat",
)  # fmt: skip
CELLS = tuple(f"{column}{row}" for row in range(1, 4) for column in "abc")
LINES = tuple(frozenset(map(int, line)) for line in ("012", "345", "678", "036", "147", "258", "048", "246"))
_OF = re.compile(r"[Kk]ey of (\w+)")


@dataclass(frozen=True, slots=True)
class Log:
    """A log and what is asked about it."""

    text: str
    asked: tuple[tuple[str, str], ...]
    """Question and answer, in the order of asking."""


def game(rng: random.Random) -> str:
    """One game of random legal moves, as a line."""
    cells, moves, won = list(range(9)), [], ""
    rng.shuffle(cells)
    for ply, _ in enumerate(cells):
        moves.append(CELLS[cells[ply]])
        if any(line <= set(cells[ply % 2 : ply + 1 : 2]) for line in LINES):
            won = "xo"[ply % 2]
            break
    return f"{' '.join(moves)}. {f'{won} won' if won else 'Drawn'}.\n"


def needle(name: str, number: int) -> str:
    """The remark that gives a name its key."""
    return f"The key of {name} is {number}.\n"


def question(name: str) -> str:
    """What is asked for it."""
    return f"Key of {name}? "


def named(text: str) -> str | None:
    """Whose key a line tells or asks for."""
    found = _OF.search(text)
    return found and found[1]


def log(rng: random.Random, tokens: int, needles: int, count: Callable[[str], int]) -> Log:
    """A log of at most so many tokens, its questions and answers included; `count` counts those of a text.

    Raises:
        ValueError: the needles and their questions alone are longer.
    """
    names = rng.sample(NAMES, needles)
    numbers = [rng.randrange(100) for _ in names]
    remarks = [needle(name, number) for name, number in zip(names, numbers, strict=True)]
    order = rng.sample(range(needles), needles)
    asked = tuple((question(names[i]), f"{numbers[i]}\n") for i in order)
    room = tokens - sum(count(text) for text in remarks) - sum(count(q) + count(a) for q, a in asked)
    if room < 0:
        raise ValueError(f"{needles} needles and their questions do not fit into {tokens} tokens.")
    games: list[str] = []
    while (room := room - count(line := game(rng))) >= 0:
        games.append(line)
    places = sorted((rng.randrange(len(games) + 1) for _ in names), reverse=True)
    for place, remark in zip(places, remarks, strict=True):
        games.insert(place, remark)
    return Log("".join(games), asked)


def logs(seed: int, tokens: int, needles: Sequence[int], count: Callable[[str], int]) -> Iterator[Log]:
    """Logs without end, each with one of these numbers of needles."""
    rng, remembered = random.Random(seed), lru_cache(maxsize=65_536)(count)
    while True:
        yield log(rng, tokens, rng.choice(needles), remembered)


def reordered(one: Log, rng: random.Random) -> Log:
    """The same log with its remarks at each other's places: what is asked and what is right stays."""
    lines = one.text.splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if named(line)]
    remarks = [lines[i] for i in places]
    rng.shuffle(remarks)
    for place, remark in zip(places, remarks, strict=True):
        lines[place] = remark
    return Log("".join(lines), one.asked)
