"""What `nlrl reproduce` does: list, run, write tables and plots, print the plan for a machine with a GPU."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nlrl.config import recipe_folders
from nlrl.errors import ConfigError, StoreError
from nlrl.reproduce.plan import lines as plan_lines
from nlrl.reproduce.plots import plot
from nlrl.reproduce.results import read_all
from nlrl.reproduce.rows import TABLES, Row
from nlrl.reproduce.running import Plan, run_plan
from nlrl.reproduce.tables import table_text
from nlrl.safe_text import as_text


def print_rows() -> None:
    """Every table's rows with where they start, what is aimed at, and what stands in the way."""
    console = Console()
    for name, rows in TABLES.items():
        console.print(as_text(f"nlrl reproduce {name} --row ...", "bold"))
        for row in rows:
            goal = "reported" if row.goal is None else f"goal {row.said(row.goal)}"
            known = f"{row.start} -> {goal}" if row.start else goal
            console.print(as_text(f"  {row.id:22s} {row.what}: {known}"))
            if row.missing:
                console.print(as_text(f"{'':24s} not yet: {row.missing}"), style="dim")


def print_plan(out: str) -> None:
    """The commands for a machine with a GPU, most valuable first."""
    Console().print(as_text("\n".join(plan_lines(out))), soft_wrap=True)


def run_rows(plan: Plan) -> int:
    """Run them; returns an exit code."""
    console = Console()
    return asyncio.run(run_plan(plan, lambda line: console.print(as_text(line), soft_wrap=True)))


def write_table(table: str, rows: Sequence[Row], folders: Sequence[Path], target: Path) -> list[Path]:
    """Write `<table>.md` and the plots of its rows that have results into `target`; returns what was written.

    Without matplotlib the table is written and the plots are not, which is said.

    Raises:
        StoreError: a result is damaged, or the folder cannot be written.
    """
    console, results = Console(), read_all(folders, table)
    path = target / f"{table}.md"
    try:
        target.mkdir(parents=True, exist_ok=True)
        path.write_text(table_text(table, rows, results), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"The table cannot be written to {path}: {error.strerror}.") from error
    written = [path]
    for row in rows:
        mine = [one for one in results if one.row == row.id and one.status == "finished"]
        if not mine:
            continue
        try:
            written += plot(row, mine, target / row.id)
        except ConfigError as error:
            console.print(as_text(f"No plots: {error}"))
            break
    for one in written:
        console.print(as_text(f"Wrote {one}"))
    return written


def folders_of_results(out: Path) -> tuple[Path, ...]:
    """Where results are: what was run into `out`, or without any, what the repository keeps; never both in one mean."""
    own = out / "results"
    return (own,) if own.is_dir() else tuple(folder / "reproduce" / "results" for folder in recipe_folders())
