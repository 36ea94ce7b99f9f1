"""What the command line does with runs that are recorded: list, replay, export, delete."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nlrl.errors import NoSuchRunError, StoreError
from nlrl.safe_text import as_text
from nlrl.store_export import export_chat, export_parquet
from nlrl.store_file import take_lock
from nlrl.store_reader import RunReader, list_runs
from nlrl.terminal.cast import export_cast
from nlrl.terminal.frame import frames_of
from nlrl.terminal.replay import export_svg, replay
from nlrl.terminal.result import ResultRow, RunResult, result_table
from nlrl.terminal.stats import Stats


def replay_recorded(runs: Path, run_id: str, game: int, picture: Path | None = None, frame: int = -1) -> None:
    """Step through a recorded game on the terminal, or write it to a file.

    A file that ends in .cast becomes an asciicast of the whole game; any other an SVG of one moment, with the run's
    table below it.
    """
    with RunReader.open(recorded(runs, run_id)) as reader:
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
    table = Table("run", "status", "started", "games", box=None)
    for run in found:
        table.add_row(*map(Text, (run.id, run.status, run.started, f"{run.finished_games}/{run.games}")))
    console.print(table)


def export_recorded(runs: Path, run_id: str, target: Path) -> None:
    """Write a run's conversations to a `.jsonl` file, or else its tables as Parquet into a new folder."""
    with RunReader.open(recorded(runs, run_id)) as reader:
        if target.suffix == ".jsonl":
            said = f"{export_chat(reader, target):,} conversations"
        else:
            said = ", ".join(f"{count:,} {table}" for table, count in export_parquet(reader, target).items())
    Console().print(as_text(f"Wrote {target}: {said}"))


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
    return "none" if first is None else f"games {first} to {last}"


def table_of(results: dict[str, Any]) -> RunResult | None:
    """The table of a record; None when the run did not get that far."""
    if not {"rows", "stats", "failures"} <= results.keys():
        return None
    rows = [ResultRow(**{name: _frozen(value) for name, value in row.items()}) for row in results["rows"]]
    return RunResult(tuple(rows), Stats(**results["stats"]), results["failures"])


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
