"""The table a run ends with: each policy's mean return against the optimum, and how the replies were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nlrl.safe_text import as_text
from nlrl.terminal.stats import Stats, clock_text


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One policy's result."""

    name: str
    """The row of the optimum begins with "optimum"."""
    mean_return: float
    interval: tuple[float, float] | None = None
    """95 % interval of the mean; None for an exact value."""
    success: float = 0.0
    """Share of games that succeeded, 0 to 1."""


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


def result_table(result: RunResult) -> RenderableType:
    """The table and one line about the replies below it; fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("policy", overflow="fold")
    for heading in ("mean return", "95 % interval", "success", "opt. gap"):
        table.add_column(heading, justify="right", no_wrap=True)
    optimum = result.optimum
    for row in result.rows:
        reference = row.interval is None
        table.add_row(
            as_text(row.name),
            Text(f"{row.mean_return:.2f}", style="" if reference else "bold green"),
            Text("" if row.interval is None else f"{row.interval[0]:.2f} .. {row.interval[1]:.2f}"),
            Text(f"{100 * row.success:.1f} %"),
            Text("" if optimum is None else f"{max(optimum - row.mean_return, 0.0):.2f}"),
            style="dim" if reference else "",
        )
    return Group(table, Text("\n".join(_reply_lines(result))))


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
