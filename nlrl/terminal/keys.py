"""Reading single keys from a terminal, without echo and without waiting for Enter."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ReadKey = Callable[[float | None], str | None]
"""Waits for a key at most so many seconds (None: for ever). None: time is up; "": there will be no more keys."""

_NAMES = {b"\x1b[C": "right", b"\x1b[D": "left", b"\x1b[A": "left", b"\x1b[B": "right"}
_NAMES |= {sequence.replace(b"[", b"O"): name for sequence, name in _NAMES.items()}
_NAMES |= {b"\x1b[H": "home", b"\x1b[F": "end", b"\x1b[1~": "home", b"\x1b[4~": "end"}
_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~])")


@contextmanager
def terminal_keys(descriptor: int | None = None) -> Iterator[ReadKey]:
    """A `ReadKey` over the terminal of `descriptor` (standard input), whose settings are restored at the end.

    Keys are the characters typed, or "left", "right", "home", "end", "unknown". Ctrl-C stays an interrupt.
    """
    import termios
    import tty

    source = sys.stdin.fileno() if descriptor is None else descriptor
    before = termios.tcgetattr(source)

    typed = bytearray()

    def read(timeout: float | None) -> str | None:
        # A terminal sends a key's escape sequence in one piece; several keys may come in one piece as well.
        if not typed:
            if not select.select([source], [], [], timeout)[0]:
                return None
            typed.extend(os.read(source, 64))
        if not typed:
            return ""
        sequence = _SEQUENCE.match(typed)
        key = bytes(typed[: sequence.end() if sequence else 1])
        del typed[: len(key)]
        return _NAMES.get(key, "unknown") if sequence else key.decode("ascii", "replace")

    try:
        tty.setcbreak(source)
        yield read
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
