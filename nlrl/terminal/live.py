"""Watching a run: a live picture on a terminal, plain lines elsewhere.

A view is fed `nlrl.types.LoopEvent`s and asks for `Stats` whenever it draws:

    with open_view(stats, title="maze double_t, hymba on vllm") as view:
        view.begin("policy iteration", games=25)
        for event in events:
            view.show(event)

Many games run at once; the live view follows one of them to its end and then the next, and counts the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nlrl.safe_text import as_text, one_line
from nlrl.stages import number_in_phase
from nlrl.terminal.frame import Frame, outcome_text
from nlrl.terminal.panels import game_line, game_view
from nlrl.terminal.phase import Phase
from nlrl.terminal.stats import Stats, clock_text
from nlrl.types import GameEnd, GameStart, LoopEvent, Step

LINGER_SECONDS = 2.0
"""How long the end of the followed game stays before another game is followed."""
FOOTER_ROWS = 3
NOTES = 3
"""How many of the last notes stay in sight."""


class View(Protocol):
    """Something that shows a run while it goes on."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, phase: str, games: int, unit: str = "games") -> None:
        """From here on there are `games` games, or other units of work; means and time left begin anew."""
        ...

    def show(self, event: LoopEvent) -> None:
        """Take notice of an event."""
        ...

    def note(self, text: str) -> None:
        """Say something about what was done: a training, the figures of an iteration."""
        ...


def open_view(
    stats: Callable[[], Stats],
    *,
    title: str = "",
    plain: bool = False,
    console: Console | None = None,
    two: bool = False,
) -> View:
    """The live view on a terminal; plain lines when there is none or `plain` asks for them.

    `two` says that games have two sides, so that they are won, drawn or lost.
    """
    console = console or Console()
    if plain or not console.is_terminal or console.is_dumb_terminal:
        return PlainView(stats, console, title=title, two=two)
    return LiveView(stats, console, title=title, two=two)


class LiveView:
    """The run as one picture that is redrawn in place and stays on the screen at the end.

    Args:
        stats: gives the present counters; called from the drawing thread.
        console: a terminal of at least 40 x 12; all it has is used.
        title: one line that says what runs.
        two: whether games have two sides.
        redraws_per_second: how often it is drawn at most; 0 draws only when `refresh` is called.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stats: Callable[[], Stats],
        console: Console,
        *,
        title: str = "",
        two: bool = False,
        redraws_per_second: float = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stats = stats
        self._console = console
        self._title = title
        self._two = two
        self._clock = clock
        self._phase = Phase()
        self._notes: list[str] = []
        self._active: dict[int, Frame] = {}
        self._followed: Frame | None = None
        self._linger_until = 0.0
        self._live = Live(
            console=console,
            get_renderable=self.render,
            auto_refresh=redraws_per_second > 0,
            refresh_per_second=redraws_per_second or 1,
            transient=False,
        )

    def __enter__(self) -> LiveView:
        self._live.start(refresh=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, phase: str, games: int, unit: str = "games") -> None:
        """From here on there are `games` games, or other units of work."""
        self._phase = _begun(self._stats(), phase, games, unit)
        self._active.clear()
        self._linger_until = 0.0

    def note(self, text: str) -> None:
        """Say something; the last notes stay in sight."""
        self._notes = [*self._notes, text][-NOTES:]

    def show(self, event: LoopEvent) -> None:
        """Take notice of an event; it is drawn at the next redraw."""
        self._phase.count(event)
        if isinstance(event, GameStart):
            frame = Frame(event)
        elif isinstance(event, Step | GameEnd) and event.game in self._active:
            frame = self._active[event.game].after(event)
        else:
            return
        if isinstance(event, GameEnd):
            del self._active[event.game]
        else:
            self._active[event.game] = frame
        self._follow(frame)

    def _follow(self, frame: Frame) -> None:
        now = self._clock()
        followed = self._followed
        same = followed is not None and followed.start.game == frame.start.game and followed.end is None
        free = followed is None or followed.start.game not in self._active
        if same or (free and frame.end is None and now >= self._linger_until):
            self._followed = frame
        if same and frame.end is not None:
            self._linger_until = now + LINGER_SECONDS

    def refresh(self) -> None:
        """Draw now."""
        self._live.refresh()

    def render(self) -> RenderableType:
        """The whole picture at the console's present size."""
        width, height = self._console.size
        stats, followed = self._stats(), self._followed
        header = Text(no_wrap=True, overflow="ellipsis")
        header.append(" nlrl ", style="bold reverse")
        header.append(f" {one_line(self._phase.name, 40)}", style="bold")
        if self._title:
            header.append(f" · {one_line(self._title, width)}", style="dim")
        notes = [as_text(one_line(f" {note}", width), "dim") for note in self._notes]
        if followed is None:
            waiting = Text("Waiting for the first move …", style="dim italic")
            return Group(header, *notes, waiting, self._footer(stats))
        # One row stays free: a picture as tall as the terminal would scroll at every redraw.
        body_rows = height - 1 - 2 - FOOTER_ROWS - len(notes)
        body = game_view(followed, self._console, width, body_rows)
        return Group(header, *notes, game_line(followed), body, self._footer(stats))

    def _footer(self, stats: Stats) -> RenderableType:
        phase = self._phase
        done, total = phase.progress(stats.calls)
        total = total or stats.games_total
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        left = phase.seconds_left(stats.seconds)
        times = clock_text(stats.seconds) + ("" if left is None else f", about {clock_text(left)} left")
        bar.add_row(
            Text(f" {phase.unit} {done}/{total}" if phase.unit != "examples" else f" {total} examples"),
            ProgressBar(total=max(total, 1), completed=done, complete_style="bright_green", style="grey23"),
            Text(times + " "),
        )
        returns = Text(" won " if self._two else " mean return ", no_wrap=True, overflow="ellipsis")
        if phase.done and self._two:
            returns.append(f"{100 * phase.won / phase.done:.1f} %", style="bold cyan")
            returns.append(f", lost {100 * phase.lost / phase.done:.1f} %, of {phase.done} games")
        elif phase.done:
            returns.append(f"{phase.mean_return:.2f}", style="bold cyan")
            if phase.mean_optimum is not None:
                returns.append(f", optimum of these games {phase.mean_optimum:.2f}", style="dim")
            returns.append(f", success {100 * phase.success:.0f} %")
        elif phase.unit == "games":
            returns.append("after the first game", style="dim")
        else:
            returns = Text()
        bad = f", {stats.bad_replies:,} bad" if stats.bad_replies else ", none bad"
        counts = Text(f" {stats.calls:,} calls", no_wrap=True, overflow="ellipsis")
        counts.append(bad, style="red" if stats.bad_replies else "dim")
        counts.append(f" · {stats.tokens:,} tokens · {stats.tokens_per_second:,.0f} written a second")
        return Group(bar, returns, counts)


class PlainView:
    """The run as lines: each finished game, and how far it is every `every_seconds`.

    Args:
        stats: gives the present counters.
        console: where the lines go.
        title: the first line.
        two: whether games have two sides.
        every_seconds: least time between two lines of progress.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stats: Callable[[], Stats],
        console: Console,
        *,
        title: str = "",
        two: bool = False,
        every_seconds: float = 15,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stats = stats
        self._console = console
        self._title = title
        self._two = two
        self._every = every_seconds
        self._clock = clock
        self._phase = Phase()
        self._starts: dict[int, GameStart] = {}
        self._next_progress = clock() + every_seconds

    def __enter__(self) -> PlainView:
        if self._title:
            self._line(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress()

    def begin(self, phase: str, games: int, unit: str = "games") -> None:
        """From here on there are `games` games, or other units of work."""
        self._phase = _begun(self._stats(), phase, games, unit)
        self._line(f"{phase}: {games} {unit}" if games else phase)

    def note(self, text: str) -> None:
        """Write a line."""
        self._line(text)

    def show(self, event: LoopEvent) -> None:
        """Write a line for a finished game, and one of progress when it is time."""
        self._phase.count(event)
        if isinstance(event, GameStart):
            self._starts[event.game] = event
        elif isinstance(event, GameEnd):
            self._line(_end_line(self._starts.pop(event.game, None), event))
        if self._clock() >= self._next_progress:
            self._progress()

    def _progress(self) -> None:
        self._next_progress = self._clock() + self._every
        stats, phase = self._stats(), self._phase
        left = phase.seconds_left(stats.seconds)
        done, total = phase.progress(stats.calls)
        parts = [
            f"{clock_text(stats.seconds)}",
            f"{phase.unit} {done}/{total or stats.games_total}" if phase.unit != "examples" else f"{total} examples",
            *([f"moves {phase.moves:,}"] if phase.moves or phase.unit == "games" else []),
            *([self._so_far()] if phase.done else []),
            f"calls {stats.calls:,}, bad {stats.bad_replies:,}",
            f"tokens {stats.tokens:,}, {stats.tokens_per_second:,.0f} written a second",
            *([f"about {clock_text(left)} left"] if left is not None else []),
        ]
        self._line(" · ".join(parts))

    def _so_far(self) -> str:
        phase = self._phase
        if self._two:
            return f"won {100 * phase.won / phase.done:.1f} %, lost {100 * phase.lost / phase.done:.1f} %"
        return f"mean return {phase.mean_return:.2f}"

    def _line(self, text: str) -> None:
        self._console.print(as_text(one_line(text, 500)), soft_wrap=True, highlight=False)


def _begun(stats: Stats, name: str, total: int, unit: str) -> Phase:
    return Phase(name, total, begun=stats.seconds, unit=unit, calls=stats.calls)


def _end_line(start: GameStart | None, end: GameEnd) -> str:
    where = "" if start is None else f" from {start.start}"
    optimum = "" if start is None or start.optimal_return is None else f" (optimum {start.optimal_return:g})"
    moves = f"{end.steps} move{'' if end.steps == 1 else 's'}"
    game = number_in_phase(end.game)
    return f"game {game}{where}: {outcome_text(end)}, {moves}, return {end.total_return:g}{optimum}"
