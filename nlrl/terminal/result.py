"""The table a run ends with: each policy's mean return against the optimum, and how the replies were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nlrl.safe_text import as_text
from nlrl.terminal.stats import Stats, clock_text


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One policy's result; shares are between 0 and 1, and what is None is not known."""

    name: str
    """The row of the optimum begins with "optimum"."""
    mean_return: float | None
    interval: tuple[float, float] | None = None
    """95 % interval of the mean; None for an exact value."""
    success: float = 0.0
    """Share of games that succeeded or were won."""
    win_interval: tuple[float, float] | None = None
    """In games of two, Wilson's 95 % interval of the wins; None for an exact value."""
    draw: float | None = None
    """Share of draws; None in games of one."""
    loss: float | None = None
    win_by_seat: tuple[tuple[str, float], ...] = ()
    """Share of wins with each seat."""
    optimal: float | None = None
    """Share of moves that keep what perfect play would get."""
    values: float | None = None
    """Share of stated values on the right side of the exact ones, unparsed ones counted wrong."""
    values_interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to."""

    rows: tuple[ResultRow, ...]
    stats: Stats
    failures: Mapping[str, int] = field(default_factory=dict)
    """Bad replies by `nlrl.types.FailureKind`."""

    @property
    def optimum(self) -> float | None:
        """The optimum's mean return, when there is such a row."""
        return next((row.mean_return for row in self.rows if row.name.startswith("optimum")), None)

    @property
    def parse_rate(self) -> float | None:
        """Share of replies that had the form asked for; None without any reply."""
        calls = self.stats.calls
        return (calls - self._unparsed) / calls if calls else None

    @property
    def legality_rate(self) -> float | None:
        """Share of the parsed replies that named no illegal move; None without a parsed reply."""
        parsed = self.stats.calls - self._unparsed
        return (parsed - self.failures.get("illegal", 0)) / parsed if parsed else None

    @property
    def _unparsed(self) -> int:
        return sum(count for kind, count in self.failures.items() if kind != "illegal")


Column = tuple[str, Callable[[ResultRow], str | None], str]
"""Heading, what a row has there (None for nothing), and how it looks where it was measured."""


def result_table(result: RunResult) -> RenderableType:
    """The table and some lines about the replies below it; fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("policy", overflow="fold")
    columns = [column for column in _columns(result) if any(column[1](row) is not None for row in result.rows)]
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        exact = row.interval is None and row.win_interval is None and row.values_interval is None
        cells = [Text(cell(row) or "", style="" if exact else style) for _, cell, style in columns]
        table.add_row(as_text(row.name), *cells, style="dim" if exact else "")
    return Group(table, Text("\n".join(_reply_lines(result))))


def _columns(result: RunResult) -> list[Column]:
    optimum, two = result.optimum, any(row.draw is not None for row in result.rows)
    if two:
        seats = dict.fromkeys(seat for row in result.rows for seat, _ in row.win_by_seat)
        return [
            ("won %", lambda row: f"{100 * row.success:.1f}", "bold green"),
            ("95 % interval", lambda row: _range(row.win_interval, 100, 1), ""),
            *((f"as {seat}", lambda row, seat=seat: _seat(row, seat), "") for seat in seats),
            ("drawn", lambda row: _percentage(row.draw), ""),
            ("lost", lambda row: _percentage(row.loss), ""),
            ("best moves", lambda row: _percentage(row.optimal), ""),
        ]
    gap: list[Column] = [("opt. gap", lambda row: f"{max((optimum or 0) - (row.mean_return or 0), 0.0):.2f}", "")]
    return [
        ("mean return", lambda row: None if row.mean_return is None else f"{row.mean_return:.2f}", "bold green"),
        ("95 % interval", lambda row: _range(row.interval), ""),
        ("success", lambda row: None if row.mean_return is None else f"{100 * row.success:.1f} %", ""),
        *([] if optimum is None else gap),
        ("best moves", lambda row: None if row.optimal is None else f"{100 * row.optimal:.1f} %", ""),
        ("values right", lambda row: None if row.values is None else f"{100 * row.values:.2f} %", "bold green"),
        ("95 % of values", lambda row: _range(row.values_interval, 100), ""),
    ]


def _range(interval: tuple[float, float] | None, scale: float = 1.0, digits: int = 2) -> str | None:
    return None if interval is None else f"{scale * interval[0]:.{digits}f} .. {scale * interval[1]:.{digits}f}"


def _seat(row: ResultRow, seat: str) -> str | None:
    return _percentage(dict(row.win_by_seat).get(seat))


def _percentage(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


def _reply_lines(result: RunResult) -> list[str]:
    stats = result.stats
    if not stats.calls:
        return ["No language model was asked."]
    rates = [f"parsed {_percent(result.parse_rate)}", f"legal {_percent(result.legality_rate)}"]
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(result.failures.items()) if count)
    return [
        f" Replies: {stats.calls:,}, {', '.join(rates)}",
        *([f" Bad:     {stats.bad_replies:,} ({kinds})"] if kinds else []),
        f" Tokens:  {stats.prompt_tokens:,} read, {stats.completion_tokens:,} written, "
        f"{stats.tokens_per_second:,.0f} written a second, {clock_text(stats.seconds)} in all",
    ]


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f} %"
