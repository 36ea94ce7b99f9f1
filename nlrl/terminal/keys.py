"""Reading single keys from a terminal, without echo and without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ReadKey = Callable[[float | None], str | None]
"""Waits for a key at most so many seconds (None: for ever). None: time is up; "": there will be no more keys."""

_ARROWS = {b"\x1b[C": "right", b"\x1b[D": "left", b"\x1b[A": "left", b"\x1b[B": "right"}
_ARROWS |= {sequence.replace(b"[", b"O"): name for sequence, name in _ARROWS.items()}
_ARROWS |= {b"\x1b[H": "home", b"\x1b[F": "end", b"\x1b[1~": "home", b"\x1b[4~": "end"}


@contextmanager
def terminal_keys(descriptor: int | None = None) -> Iterator[ReadKey]:
    """A `ReadKey` over the terminal of `descriptor` (standard input), whose settings are restored at the end.

    Keys are the characters typed, or "left", "right", "home", "end". Ctrl-C stays an interrupt.
    """
    import termios
    import tty

    source = sys.stdin.fileno() if descriptor is None else descriptor
    before = termios.tcgetattr(source)

    def read(timeout: float | None) -> str | None:
        if not select.select([source], [], [], timeout)[0]:
            return None
        # One read takes a whole escape sequence: a terminal sends it in one piece.
        typed = os.read(source, 16)
        if typed in _ARROWS:
            return _ARROWS[typed]
        return typed[:1].decode("ascii", "replace") if typed else ""

    try:
        tty.setcbreak(source)
        yield read
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
