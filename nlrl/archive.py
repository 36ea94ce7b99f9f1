"""What the command line does with runs that are recorded: list, replay, export, delete."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nlrl.errors import NoSuchRunError, StoreError
from nlrl.safe_text import as_text, one_line
from nlrl.store_export import export_chat, export_parquet, export_sqlite
from nlrl.store_file import take_lock
from nlrl.store_lessons import export_datasets
from nlrl.store_loops import phases
from nlrl.store_reader import RunReader, list_runs
from nlrl.terminal.cast import export_cast
from nlrl.terminal.frame import frames_of
from nlrl.terminal.replay import export_svg, replay
from nlrl.terminal.result import ResultRow, RunResult, result_table
from nlrl.terminal.stats import Stats


@dataclass(frozen=True, slots=True)
class Which:
    """A game of a run: by its number, or by its place in a phase of an iteration."""

    game: int | None = None
    """Number in the run, or from 0 in the phase; the first one when None."""
    iteration: int | None = None
    phase: str | None = None
    """A `nlrl.types.PhaseName`; "evaluate" when None."""

    def number(self, reader: RunReader) -> int | None:
        """The game's number in the run; None when there is no such game."""
        where, place = "", ()
        if self.iteration is not None or self.phase is not None:
            where, place = "WHERE p.iteration = ? AND p.name = ?", (self.iteration or 0, self.phase or "evaluate")
        elif self.game is not None:
            return self.game
        query = f"SELECT g.game FROM games g LEFT JOIN phases p ON p.number = g.phase {where} ORDER BY g.game"
        found = reader.rows(f"{query} LIMIT 1 OFFSET ?", *place, self.game or 0)
        return found[0][0] if found else None


def replay_recorded(runs: Path, run_id: str, which: Which, picture: Path | None = None, frame: int = -1) -> None:
    """Step through a recorded game on the terminal, or write it to a file.

    A file that ends in .cast becomes an asciicast of the whole game; any other an SVG of one moment, with the run's
    table below it.
    """
    with RunReader.open(recorded(runs, run_id)) as reader:
        game = which.number(reader)
        if game is None:
            raise NoSuchRunError(f"Run '{run_id}' has no such game; it has {_games_text(reader)}.")
        frames = frames_of(reader.events(game)) if reader.game(game) else []
        if not frames:
            raise NoSuchRunError(f"Run '{run_id}' has no game {game}; it has {_games_text(reader)}.")
        if picture is None:
            replay(frames, title=f"{run_id}, game {game}")
            return
        outcome = table_of(reader.results)
    try:
        if picture.suffix == ".cast":
            export_cast(frames, picture, title=f"nlrl replay {run_id} --game {game}")
        else:
            index = frame if -len(frames) <= frame < len(frames) else -1
            below = None if outcome is None else result_table(outcome)
            export_svg(frames, picture, index=index, title=f"nlrl replay {run_id}", below=below)
    except OSError as error:
        raise StoreError(f"The picture cannot be written to {picture}: {error.strerror}.") from error
    Console().print(as_text(f"Wrote {picture}"))


def list_recorded(runs: Path) -> None:
    """Print the recorded runs, newest first."""
    console = Console()
    found = list_runs(runs)
    if not found:
        console.print(as_text(f"No runs are recorded in {runs}; make one with: nlrl run maze"))
        return
    table = Table(box=None, padding=(0, 1), collapse_padding=True)
    for heading in ("run", "status", "started (UTC)", "games", "does", "got to"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "started (UTC)")
    for run in found:
        games = f"{run.finished_games}/{run.games}"
        started = run.started[:16].replace("T", " ")
        cells = (run.id, run.status, started, games, one_line(run.does, 60), one_line(run.phase, 40))
        table.add_row(*map(as_text, cells))
    console.print(table)


def export_recorded(runs: Path, run_id: str, target: Path, *, lessons: bool = False) -> None:
    """Write a run's conversations to a `.jsonl` file, or its tables to a plain `.sqlite` file or else as Parquet into a
    new folder.

    With `lessons`, the data set of each training instead, one file each in a new folder.
    """
    with RunReader.open(recorded(runs, run_id)) as reader:
        if lessons:
            said = ", ".join(f"{count:,} examples in {name}" for name, count in export_datasets(reader, target).items())
        elif target.suffix == ".jsonl":
            said = f"{export_chat(reader, target):,} conversations"
        else:
            tables = export_sqlite if target.suffix == ".sqlite" else export_parquet
            said = ", ".join(f"{count:,} {table}" for table, count in tables(reader, target).items())
    Console().print(as_text(f"Wrote {target}: {said or 'nothing, for the run has none'}"))


def remove_recorded(runs: Path, run_id: str) -> None:
    """Delete a run and everything in its folder; raises `StoreError` when it is being written."""
    folder = recorded(runs, run_id)
    os.close(take_lock(folder))
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(f"Run '{run_id}' cannot be deleted whole: {error.strerror}.") from error


def recorded(runs: Path, run_id: str) -> Path:
    """The folder of a run; raises `NoSuchRunError`, which names the latest runs, when there is none."""
    folder, known = runs / run_id, list_runs(runs)
    if run_id not in {run.id for run in known}:
        names = ", ".join(run.id for run in known[:5]) or "none yet"
        raise NoSuchRunError(f"There is no run '{run_id}' in {runs}; the latest are: {names}.")
    return folder


def _games_text(reader: RunReader) -> str:
    ((first, last),) = reader.rows("SELECT min(game), max(game) FROM games")
    played = [phase for phase in phases(reader) if phase.games]
    if not any(phase.iteration for phase in played):
        return "none" if first is None else f"games {first} to {last}"
    loops = [phase for phase in played if phase.stage == played[0].stage][:12]
    listed = ", ".join(f"{phase.games} of --iteration {phase.iteration} --phase {phase.name}" for phase in loops)
    return f"games {first} to {last}: {listed}"


def table_of(results: dict[str, Any]) -> RunResult | None:
    """The table of a record; None when the run did not get that far."""
    if not {"rows", "stats", "failures"} <= results.keys():
        return None
    rows = [ResultRow(**{name: _frozen(value) for name, value in row.items()}) for row in results["rows"]]
    return RunResult(tuple(rows), Stats(**results["stats"]), results["failures"])


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
