"""A recorded game as an asciicast (version 3): JSON lines that asciinema and its web player show as a terminal.

Source of the format: https://docs.asciinema.org/manual/asciicast/v3/
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nlrl.safe_text import one_line
from nlrl.terminal.frame import Frame
from nlrl.terminal.panels import game_line, game_view

CLEAR = "\x1b[H\x1b[2J"
WIDTH, HEIGHT = 100, 30


def export_cast(frames: Sequence[Frame], path: Path, *, title: str = "nlrl", seconds: float = 1.0) -> None:
    """Write a game, `seconds` a move; everything in it has passed `nlrl.safe_text`, as on a terminal."""
    header = {"version": 3, "term": {"cols": WIDTH, "rows": HEIGHT}, "title": one_line(title, 200)}
    lines = [json.dumps(header)]
    for number, frame in enumerate(frames):
        shown = CLEAR + _drawn(frame).replace("\n", "\r\n")
        lines.append(json.dumps([seconds if number else 0.0, "o", shown]))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _drawn(frame: Frame) -> str:
    console = Console(
        file=io.StringIO(), width=WIDTH, height=HEIGHT, force_terminal=True, color_system="truecolor",
        legacy_windows=False,
    )  # fmt: skip
    console.print(game_line(frame))
    console.print(game_view(frame, console, WIDTH, HEIGHT - 4))
    return console.file.getvalue()  # type: ignore[attr-defined]
