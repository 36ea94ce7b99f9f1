"""How a moment of a game is drawn: the picture on the left, what the agent thought on the right.

Everything here returns rich objects and prints nothing; all text of models and records goes through `nlrl.safe_text`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nlrl.safe_text import as_text, one_line
from nlrl.stages import number_in_phase
from nlrl.terminal.frame import Frame, mover_text, outcome_text
from nlrl.types import Candidate, Decision

GLYPH_STYLES = {"█": "grey39", "@": "bold bright_green", "G": "bold bright_yellow", "·": "green"}
"""How the characters of a drawn position are coloured, whatever the game."""
BORDER = "grey42"
BAR_CELLS = (4, 24)
"""Least and greatest length of a candidate's bar."""
LEAST_ROWS = 11
"""Rows of the thought beside a small picture: three lines and four candidates in two lines each."""
SIDE_BY_SIDE = 72
"""Columns from which picture and thought stand beside each other."""


def picture_text(picture: str) -> Text:
    """A drawn position in colour."""
    text = as_text(picture)
    for index, glyph in enumerate(text.plain):
        style = GLYPH_STYLES.get(glyph) or ("dim" if glyph.isdigit() else None)
        if style:
            text.stylize(style, index, index + 1)
    text.no_wrap = True
    return text


def game_line(frame: Frame) -> Text:
    """Which game this is and how it stands, one line."""
    start = frame.start
    parts = [f"game {number_in_phase(start.game)}", f"from {one_line(start.start, 24)}", f"move {frame.moves}"]
    text = Text(" · ".join(parts), style="bold", no_wrap=True, overflow="ellipsis")
    text.append(f" · return {frame.total_return:g}", style="cyan")
    if start.optimal_return is not None:
        text.append(f" (optimum {start.optimal_return:g})", style="dim")
    if frame.end is not None:
        style = "bright_green" if frame.end.outcome == "success" else "yellow"
        text.append(f" · {outcome_text(frame.end)}", style=style)
    return text


def game_view(frame: Frame, console: Console, width: int, rows: int) -> RenderableType:
    """Picture and thought within `width` columns and at most `rows` rows, frames included.

    The picture is left out where it does not fit; the thought takes the rest.
    """
    picture = picture_text(frame.picture)
    lines = picture.plain.split("\n")
    needed = max((len(line) for line in lines), default=0) + 4
    title = ""
    if frame.step is not None:
        title = mover_text(frame.step.decision) + one_line(frame.step.action or "no move", 24)
    if width >= SIDE_BY_SIDE and needed <= width - 36 and len(lines) + 2 <= rows:
        # Evaluations are sentences: where there are rows to spare they get them.
        inner = min(max(len(lines), LEAST_ROWS), rows - 2)
        grid = Table.grid(padding=0)
        grid.add_column(width=needed)
        grid.add_column(width=width - needed)
        grid.add_row(
            Panel(picture, box=box.ROUNDED, border_style=BORDER, padding=(0, 1), height=inner + 2),
            _thought_panel(frame, console, width - needed, inner, title),
        )
        return grid
    if needed <= width and len(lines) + 2 + 6 <= rows:
        panel = Panel(picture, box=box.ROUNDED, border_style=BORDER, padding=(0, 1), width=needed)
        return Group(panel, _thought_panel(frame, console, width, min(rows - len(lines) - 4, 14), title))
    return _thought_panel(frame, console, width, max(rows - 2, 1), title)


def _thought_panel(frame: Frame, console: Console, width: int, rows: int, title: str) -> Panel:
    inner = width - 4
    lines = decision_lines(frame, console, inner, rows)
    return Panel(
        Group(*lines),
        box=box.ROUNDED,
        border_style=BORDER,
        padding=(0, 1),
        width=width,
        height=rows + 2,
        title=Text(title, style="bold bright_green") if title else None,
        title_align="left",
    )


def decision_lines(frame: Frame, console: Console, width: int, rows: int) -> list[Text]:
    """The last decision in at most `rows` lines: the thought first, then each candidate with its evaluation."""
    if frame.step is None:
        return [Text("Looking ahead for the first move …", style="dim italic", no_wrap=True)]
    decision = frame.step.decision
    if not decision.own:
        return [Text("The opponent moved.", style="dim italic", no_wrap=True)]
    notes = _failure_lines(decision, width)
    if decision.choice is None:
        return [Text("No reply could be used.", style="bold red"), *notes][:rows]
    candidates = decision.choice.candidates_A
    thought_rows = max(rows - len(notes) - 2 * len(candidates), min(2, rows))
    thought = wrapped(decision.choice.thought, console, width, thought_rows, "italic")
    space = max(rows - len(thought) - len(notes), 0)
    if space > 2 * len(candidates) > 0:
        thought.append(Text())
    return [*thought, *candidate_lines(candidates, decision.choice.action, width, space), *notes][:rows]


def wrapped(text: str, console: Console, width: int, rows: int, style: str) -> list[Text]:
    """Model text in at most `rows` lines; a cut is shown by an ellipsis."""
    flat = as_text(" ".join(text.split()), style)
    lines = list(flat.wrap(console, max(width, 1)))
    if len(lines) > rows > 0:
        lines = [
            *lines[: rows - 1],
            as_text(one_line(" ".join(line.plain for line in lines[rows - 1 :]), width), style),
        ]
    for line in lines:
        line.no_wrap = True
    return lines[: max(rows, 0)]


def candidate_lines(candidates: Sequence[Candidate], chosen: str, width: int, rows: int) -> list[Text]:
    """Candidate actions: two lines each (move with number and bar, evaluation in words), one where rows are scarce.

    The bar tells the candidates of one decision apart: empty at the least number of them, full at the greatest.
    """
    numbers = [number for c in candidates if (number := _number(c)) is not None]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    shown = list(candidates)
    if len(shown) > rows:
        best = sorted(shown, key=lambda c: (c.action != chosen, -_number_or(c, low)))[: max(rows - 1, 0)]
        shown = [c for c in shown if c in best]
    action_width = max((cell_len(one_line(c.action, 18)) for c in shown), default=0)
    cells = min(max(width - action_width - 12, BAR_CELLS[0]), BAR_CELLS[1])
    in_words = len(candidates) * 2 <= rows
    lines: list[Text] = []
    for candidate in shown:
        line = _action_text(candidate, candidate.action == chosen, action_width)
        if (number := _number(candidate)) is not None:
            share = 1.0 if high <= low else (number - low) / (high - low)
            line.append_text(_bar(share, cells, "bright_green" if candidate.action == chosen else "cyan"))
        lines.append(line)
        if in_words:
            lines.append(as_text("  " + one_line(candidate.value.text, width - 2), "dim"))
    if len(shown) < len(candidates) and rows > 0:
        lines.append(Text(f"  and {len(candidates) - len(shown)} more", style="dim"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines


def _number(candidate: Candidate) -> float | None:
    """The candidate's number when it can be drawn."""
    number = candidate.value.number
    return number if number is not None and math.isfinite(number) else None


def _number_or(candidate: Candidate, default: float) -> float:
    number = _number(candidate)
    return default if number is None else number


def _action_text(candidate: Candidate, chosen: bool, action_width: int) -> Text:
    action, number = one_line(candidate.action, 18), _number(candidate)
    line = f"{'▸' if chosen else ' '} {action}{' ' * (action_width - cell_len(action))}"
    # Adding zero turns -0.0, which a model may well write, into 0.0.
    return Text(line if number is None else f"{line} {number + 0.0:>7.2f} ", "bold bright_green" if chosen else "")


def _bar(share: float, cells: int, style: str) -> Text:
    filled = round(share * cells)
    return Text.assemble((" " + "━" * filled, style), ("─" * (cells - filled), "grey23"))


def _failure_lines(decision: Decision, width: int) -> list[Text]:
    if not decision.failures:
        return []
    last = decision.failures[-1]
    count = len(decision.failures)
    text = f"{count} bad {'reply' if count == 1 else 'replies'}, {last.kind}: {last.reason}"
    return [as_text(one_line(text, width), "red")]
