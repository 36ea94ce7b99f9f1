"""What a record says of a run that learns: its phases, its trainings, and the data set of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nlrl.store_open import readable
from nlrl.store_packing import unpack_floats
from nlrl.store_reader import EXAMPLE_COLUMNS, RunReader
from nlrl.types import Example, Trained


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """A phase of an iteration, with what was recorded in it."""

    number: int
    """From 0, in the order of the run."""
    stage: str
    """The stretch of the run that it belongs to: a loop, or a baseline beside it."""
    iteration: int
    name: str
    """A `nlrl.types.PhaseName`."""
    total: int
    """Games, questions or examples that it was to have; 0 when not known."""
    games: int
    ended: int
    """Games in it that were played to their end."""


def phases(reader: RunReader) -> list[PhaseRecord]:
    """The phases that began, in order."""
    games = "(SELECT count(*) FROM games WHERE phase = number), (SELECT count(outcome) FROM games WHERE phase = number)"
    rows = reader.rows(f"SELECT number, stage, iteration, name, total, {games} FROM phases ORDER BY number")
    return [PhaseRecord(*row) for row in rows]


def trainings(reader: RunReader) -> list[Trained]:
    """The trainings that were done, in order."""
    columns = "iteration, student, checkpoint, examples, tokens, losses"
    rows = reader.rows(f"SELECT {columns} FROM trainings ORDER BY iteration, student DESC")
    with readable(reader.path):
        return [
            Trained(iteration, student, name, examples, tokens, unpack_floats(losses))
            for iteration, student, name, examples, tokens, losses in rows
        ]


def datasets(reader: RunReader) -> list[tuple[int, str, int]]:
    """(iteration, student, number of examples) of every data set, in order."""
    columns = "iteration, student, count(*)"
    return reader.rows(f"SELECT {columns} FROM lessons GROUP BY 1, 2 ORDER BY 1, 2 DESC")


def dataset(reader: RunReader, iteration: int, student: str) -> Iterator[Example]:
    """What a student was trained on in an iteration, in order."""
    columns = ", ".join(f"e.{name}" for name in EXAMPLE_COLUMNS.split(", "))
    rows = reader.rows(
        f"SELECT {columns} FROM lessons l JOIN examples e ON e.id = l.example "
        "WHERE l.iteration = ? AND l.student = ? ORDER BY l.position",
        *(iteration, student),
    )
    return map(reader.example, rows)
