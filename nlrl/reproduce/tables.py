"""Tables in Markdown, written from results alone: nothing in them is typed by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlrl.reproduce.intervals import over_seeds
from nlrl.reproduce.results import Result
from nlrl.reproduce.rows import Row


def table_text(table: str, rows: Sequence[Row], results: Sequence[Result]) -> str:
    """The whole file: what is measured of each row beside where it starts, the paper, the limit and the goal."""
    lines = [
        f"# {table.capitalize()}",
        "",
        f"Written by `nlrl reproduce {table} --table` from the results of the runs below. A figure is the mean over",
        "seeds after the last iteration, with the 95 % interval by Student's t over seeds; with one seed there is none",
        "and the interval in square brackets is over that run's own games.",
        "",
        "| row | start | paper | exact limit | goal | model | measured | seeds | goal reached |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines += _row_lines(row, [one for one in results if one.row == row.id])
    if any(one.status == "finished" for one in results):
        lines += ["", "## Runs", "", *_run_lines(rows, results)]
    return "\n".join(lines) + "\n"


def _row_lines(row: Row, results: Sequence[Result]) -> list[str]:
    sign = "at least" if row.rising else "at most"
    goal = "" if row.goal is None else f"{sign} {row.said(row.goal)}"
    head = [f"{row.what} (`{row.id}`)", row.start or "-", row.paper or "-", row.limit or "-", goal or "reported"]
    backbones = sorted({one.backbone for one in results})
    if not backbones:
        return [_line(*head, "-", row.missing or "not run", "-", "-")]
    lines = []
    for backbone in backbones:
        mine = [one for one in results if one.backbone == backbone]
        done = [one for one in mine if one.status == "finished" and one.final is not None]
        if not done:
            lines.append(_line(*head, backbone, f"{len(mine)} unfinished", "-", "-"))
            continue
        found = over_seeds([one.final for one in done if one.final is not None])
        reached = row.reached(found.value)
        verdict = "-" if reached is None else "yes" if reached else "no"
        lines.append(_line(*head, backbone, _figure(row, found.value, found.half, done), str(len(done)), verdict))
    return lines


def _figure(row: Row, value: float, half: float, done: Sequence[Result]) -> str:
    if not math.isnan(half):
        return f"{row.said(value)} ({row.said(value - half)} .. {row.said(value + half)})"
    last = done[0].curve[-1] if done[0].curve else None
    if last is None or last.low is None or last.high is None or last.value != value:
        return row.said(value)
    return f"{row.said(value)} [{row.said(last.low)} .. {row.said(last.high)}]"


def _run_lines(rows: Sequence[Row], results: Sequence[Result]) -> list[str]:
    said = {row.id: row.said for row in rows}
    lines = [
        "| run | untrained | by iteration | calls | tokens read, written | seconds | commit | machine | command |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        if one.status != "finished" or one.row not in said:
            continue
        curve = {point.iteration: said[one.row](point.value) for point in one.curve}
        first = curve.pop(0, "-")
        spent = (f"{one.calls:,}", f"{one.prompt_tokens:,}, {one.completion_tokens:,}", f"{one.seconds:,.0f}")
        lines.append(
            _line(one.name, first, ", ".join(curve.values()), *spent, one.commit, one.machine, f"`{one.command}`")
        )
    return lines


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
