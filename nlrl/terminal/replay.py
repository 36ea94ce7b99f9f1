"""A recorded game again: step by step at a terminal, as plain lines elsewhere, or as a picture."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from nlrl.safe_text import as_text, one_line
from nlrl.stages import number_in_phase
from nlrl.terminal.frame import Frame, mover_text, outcome_text
from nlrl.terminal.keys import ReadKey, terminal_keys
from nlrl.terminal.panels import game_line, game_view

HELP = "n next · p back · space play · + - speed · number Enter go to move · q quit"
SPEEDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Moves a second when it plays by itself."""


@dataclass(frozen=True, slots=True)
class Player:
    """Where a replay stands; `press` and `tick` give the next one."""

    last: int
    """Greatest frame."""
    index: int = 0
    playing: bool = False
    speed: int = 1
    """Index into SPEEDS."""
    typed: str = ""
    """Digits of a move number that is being typed."""
    quit: bool = False

    def press(self, key: str) -> Player:
        """What a key does; an unknown one does nothing but stop the playing."""
        if key.isdecimal() and len(self.typed) < 6:
            return replace(self, typed=self.typed + key, playing=False)
        rest = replace(self, typed="", playing=False)
        if key in ("\n", "\r", "g"):
            return rest._at(int(self.typed)) if self.typed else rest._at(self.index + 1)
        match key:
            case "n" | "right" | "l" | "j":
                return rest._at(self.index + 1)
            case "p" | "left" | "h" | "k" | "b":
                return rest._at(self.index - 1)
            case "home":
                return rest._at(0)
            case "end" | "G":
                return rest._at(self.last)
            case " ":
                # Playing from the end begins again.
                start = 0 if self.index == self.last and not self.playing else self.index
                return replace(rest, playing=not self.playing, index=start)
            case "+" | "=":
                return replace(rest, playing=self.playing, speed=min(self.speed + 1, len(SPEEDS) - 1))
            case "-":
                return replace(rest, playing=self.playing, speed=max(self.speed - 1, 0))
            case "q" | "\x1b" | "\x04" | "":
                return replace(rest, quit=True)
        return rest

    def tick(self) -> Player:
        """One move further while it plays; stops at the end."""
        return replace(self._at(self.index + 1), playing=self.index + 1 < self.last)

    def _at(self, index: int) -> Player:
        return replace(self, index=min(max(index, 0), self.last))


def replay(
    frames: Sequence[Frame], console: Console | None = None, *, title: str = "", read_key: ReadKey | None = None
) -> None:
    """Step through a recorded game; without a terminal it is written as lines.

    Args:
        frames: of one game, `nlrl.terminal.frame.frames_of`.
        console: where it is drawn; standard output when absent.
        title: one line that names the record.
        read_key: where keys come from; the terminal of standard input when absent.

    Raises:
        ValueError: there are no frames.
    """
    if not frames:
        raise ValueError("There is nothing to replay: the record has no events of this game.")
    console = console or Console()
    if read_key is None and not (console.is_terminal and sys.stdin.isatty()):
        console.print(listing(frames, title), soft_wrap=True, highlight=False)
        return
    with terminal_keys() if read_key is None else nullcontext(read_key) as read:
        _step_through(frames, console, title, read)


def _step_through(frames: Sequence[Frame], console: Console, title: str, read_key: ReadKey) -> None:
    player = Player(len(frames) - 1)

    def draw() -> RenderableType:
        return _page(frames, player, console, title)

    with Live(console=console, get_renderable=draw, auto_refresh=False) as live:
        while not player.quit:
            live.refresh()
            key = read_key(1 / SPEEDS[player.speed] if player.playing else None)
            player = player.tick() if key is None and player.playing else player.press("" if key is None else key)


def _page(frames: Sequence[Frame], player: Player, console: Console, title: str) -> RenderableType:
    width, height = console.size
    frame = frames[player.index]
    header = Text(" nlrl replay ", style="bold reverse", no_wrap=True, overflow="ellipsis")
    header.append_text(as_text(" " + one_line(title, width), "not bold not reverse dim"))
    state = f"{player.index}/{player.last}"
    if player.playing:
        state += f" playing, {SPEEDS[player.speed]:g} moves a second"
    if player.typed:
        state = f"go to move {player.typed}"
    footer = Text(f" {state} · ", style="bold cyan", no_wrap=True, overflow="ellipsis")
    footer.append(HELP, style="not bold dim")
    # One row stays free: a picture as tall as the terminal would scroll at every redraw.
    return Group(header, game_line(frame), game_view(frame, console, width, height - 4), footer)


def listing(frames: Sequence[Frame], title: str = "") -> Text:
    """The whole game as lines: each move with its thought, its candidates and their evaluations."""
    start, last = frames[0].start, frames[-1]
    lines = [one_line(title, 500)] if title else []
    lines.append(f"game {number_in_phase(start.game)} from {one_line(start.start, 80)}")
    lines += [start.picture, start.observation.rstrip("\n")]
    for frame in frames[1:]:
        lines += _move_lines(frame)
    if last.step is not None:
        lines.append(last.picture)
    optimum = "" if start.optimal_return is None else f", optimum {start.optimal_return:g}"
    outcome = "interrupted" if last.end is None else outcome_text(last.end)
    lines.append(f"{outcome}: {last.moves} moves, return {last.total_return:g}{optimum}")
    return as_text("\n".join(lines))


def _move_lines(frame: Frame) -> list[str]:
    step = frame.step
    if step is None:
        return []
    legal = "" if step.legal else " (illegal)"
    moved = f"{mover_text(step.decision)}{one_line(step.action, 80) or 'no move'}"
    lines = [f"{frame.moves}. {moved}{legal}: {step.reward:g}, return {step.total_return:g}"]
    choice = step.decision.choice
    if choice is not None and step.decision.own:
        lines.append(f"   thought: {one_line(choice.thought, 2000)}")
        for candidate in choice.candidates_A:
            mark = "*" if candidate.action == choice.action else " "
            lines.append(f"   {mark} {one_line(candidate.action, 80)}: {one_line(candidate.value.text, 2000)}")
    lines += [f"   bad reply, {failure.kind}: {one_line(failure.reason, 500)}" for failure in step.decision.failures]
    if step.decision.player == "player":
        lines.append(f"   {one_line(step.observation, 2000)}")
    else:  # a board is its own observation
        lines += [f"   {line}" for line in step.picture.rstrip("\n").split("\n")]
    return lines


def export_svg(
    frames: Sequence[Frame],
    path: Path,
    *,
    index: int = -1,
    width: int = 100,
    title: str = "nlrl",
    below: RenderableType | None = None,
) -> None:
    """Write one moment of a game as an SVG picture of a terminal; it loads nothing from anywhere.

    Args:
        frames: of one game.
        path: the file; overwritten.
        index: which frame, the last by default.
        width: columns of the pictured terminal.
        title: in the pictured window's bar.
        below: drawn under the game, for example `nlrl.terminal.result.result_table(...)`.

    Raises:
        ValueError: there is no such frame.
    """
    if not -len(frames) <= index < len(frames):
        raise ValueError(
            f"There is no frame {index} in a game of {len(frames)}; choose one from 0 to {len(frames) - 1}."
        )
    console = Console(
        file=io.StringIO(), record=True, width=width, height=40, force_terminal=True, color_system="truecolor"
    )
    frame = frames[index]
    console.print(game_line(frame))
    console.print(game_view(frame, console, width, 36))
    if below is not None:
        console.print(below)
    # rich's picture fetches its font over the network; a monospaced one of the reader's serves. Text cannot match: rich
    # writes its blanks as &#160;.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=one_line(title, width)), flags=re.DOTALL)
    Path(path).write_text(svg, encoding="utf-8")
