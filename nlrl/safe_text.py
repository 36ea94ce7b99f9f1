"""The one boundary between text that a model wrote and a terminal.

rich renders `[up]` as markup, which makes the move vanish, raises on `[/foo]`, and lets the bytes of escape sequences
through in every mode, `markup=False` and `Text` included. Model text therefore passes `safe_text` first and is given to
rich as a `Text`, never as a string.
"""

from __future__ import annotations

import re
import unicodedata

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

# ECMA-48, with the eight-bit forms of C1: control strings (OSC, DCS, SOS, PM, APC) up to their end or the end of the
# line, CSI sequences, then every other escape sequence. A string that is never closed must not swallow what follows.
_SEQUENCES = re.compile(
    "(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\r\n]*(?:\x07|\x1b\\\\|\x9c)?"
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"
    "|\x1b[ -/]*[0-~]?"
)
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# C0 but tab and newline, DEL, C1; then what has no width of its own and so hides or reorders text: soft hyphen,
# grapheme joiner, bidirectional marks, embeddings and isolates, zero-width spaces and joiners, invisible operators,
# interlinear marks, variation selectors, byte order mark, noncharacters, tags.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)


def safe_text(text: str) -> str:
    """Text without anything that could steer a terminal or hide itself.

    Whole escape sequences go, so do control characters but newline and tab, bidirectional controls and characters
    without width. Every kind of line end becomes a newline, so that nothing can be overwritten; a lone surrogate, which
    no terminal can be sent, becomes U+FFFD, and so does what Unicode has not assigned. Applying it twice changes
    nothing.
    """
    text = _SEQUENCES.sub("", text)
    text = _LINE_ENDS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    return text.translate({ord(character): "\ufffd" for character in set(text) if _unassigned(character)})


def _unassigned(character: str) -> bool:
    """Lone surrogates too. What is not assigned has no agreed width: rich may count two columns, a terminal one."""
    return not character.isascii() and unicodedata.category(character) in ("Cn", "Cs")


def as_text(text: str, style: str | Style = "") -> Text:
    """Model text as rich may print it: safe, and never read as markup."""
    return Text(safe_text(text), style=style)


def one_line(text: str, width: int) -> str:
    """Safe text on one line of at most `width` terminal columns; what is cut off is shown by an ellipsis."""
    line = " ".join(safe_text(text).split())
    if cell_len(line) <= width:
        return line
    return set_cell_size(line, max(width - 1, 0)).rstrip() + "…" if width > 0 else ""
