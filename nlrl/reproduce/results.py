"""What came of a row with one model and one seed: a small JSON file beside the run's own record.

Tables and plots read these files alone, so that they can be written where the records are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nlrl.errors import StoreError
from nlrl.reproduce.rows import Row
from nlrl.stages import A_PHASE, PHASES
from nlrl.store_reader import RunReader

AN_ITERATION = A_PHASE * 10
"""Numbers of games that an iteration may use (`nlrl.stages.games_of`)."""
LAST_PHASE = len(PHASES) - 1


@dataclass(frozen=True, slots=True)
class Point:
    """The row's figure after an iteration, and what had been spent by then."""

    iteration: int
    value: float
    low: float | None
    """95 % interval over the games or positions of this evaluation; None where the record has none."""
    high: float | None
    tokens: int
    """Written by models in all calls of this and earlier iterations."""
    seconds: float | None
    """Of the run's clock, all sittings together; None where nobody watched it."""


@dataclass(frozen=True, slots=True)
class Result:
    """One row, model and seed."""

    table: str
    row: str
    backbone: str
    seed: int
    status: str
    """finished, or interrupted: such a result is in no mean."""
    curve: tuple[Point, ...]
    final: float | None
    """The figure that the row is judged by; None as long as it is not there."""
    command: str
    commit: str
    """Of the code that ran; with "+" behind it when files differed from it."""
    machine: str
    model: str
    """Fingerprint of what the run started from."""
    config: dict[str, Any] = field(default_factory=dict)
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Names the run and the file."""
        return cell_name(self.row, self.backbone, self.seed)


def cell_name(row: str, backbone: str, seed: int) -> str:
    """The run's name for a row, a model and a seed; it is a run id (`nlrl.store_schema.check_run_id`)."""
    return f"{row}--{Path(backbone).name.lower()}--s{seed}"


def write(result: Result, folder: Path) -> Path:
    """Write a result into `folder`, over an older one of the same name.

    Raises:
        StoreError: it cannot be written.
    """
    path = folder / f"{result.name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"The result cannot be written to {path}: {error.strerror}.") from error
    return path


def read(path: Path) -> Result:
    """The result in a file.

    Raises:
        StoreError: it is no result.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return Result(**{**tree, "curve": tuple(Point(**point) for point in tree["curve"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"'{path}' is no result of `nlrl reproduce`; remove it and run its row again.") from error


def read_all(folders: Iterable[Path], table: str) -> list[Result]:
    """The results of a table in these folders, each once (the first folder's), by name."""
    found: dict[str, Result] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            result = read(path)
            if result.table == table:
                found.setdefault(result.name, result)
    return [found[name] for name in sorted(found)]


def curve_of(reader: RunReader, figure: str, clock: Sequence[tuple[int, float]] = ()) -> tuple[Point, ...]:
    """A figure after each iteration that was evaluated.

    Args:
        reader: the run's record.
        figure: name of the series; its interval stands under the same name with " low" and " high".
        clock: (iteration, seconds) as they were watched.
    """
    rows = reader.rows(
        "SELECT name, step, value FROM metrics WHERE name IN (?, ?, ?)", figure, f"{figure} low", f"{figure} high"
    )
    series = {(name.removeprefix(figure).strip(), step): value for name, step, value in rows}
    spent = dict(
        reader.rows(
            "SELECT game / ?, sum(completion_tokens) FROM calls WHERE game < 10000 * ? GROUP BY 1",
            *(AN_ITERATION, AN_ITERATION),
        )
    )
    seconds = dict(clock)
    return tuple(
        Point(
            iteration=step,
            value=series["", step],
            low=series.get(("low", step)),
            high=series.get(("high", step)),
            tokens=sum(tokens for iteration, tokens in spent.items() if iteration is not None and iteration <= step),
            seconds=seconds.get(step),
        )
        for name, step in sorted(series)
        if name == ""
    )


def result_of(
    reader: RunReader, row: Row, table: str, backbone: str, *, final: float | None, clock: Sequence[tuple[int, float]],
    said: dict[str, str],
) -> Result:  # fmt: skip
    """The result in a run's record. `said` has the fields that the record does not know: command, commit, machine."""
    sums = "count(*), total(prompt_tokens), total(completion_tokens)"
    ((calls, prompt, completion),) = reader.rows(f"SELECT {sums} FROM calls")
    ((seconds,),) = reader.rows("SELECT seconds FROM run")
    return Result(
        table=table,
        row=row.id,
        backbone=Path(backbone).name,
        seed=reader.seed,
        status=reader.status,
        curve=curve_of(reader, row.figure, clock),
        final=final,
        model=reader.engine.fingerprint,
        config=reader.config,
        calls=calls,
        prompt_tokens=int(prompt),
        completion_tokens=int(completion),
        seconds=round(seconds, 1),
        **said,
    )
