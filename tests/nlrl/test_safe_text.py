"""Hostile model text against a terminal emulator and against rich."""

import io
import time

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from nlrl.safe_text import as_text, one_line, safe_text

BEFORE, AFTER = "first line", "last line"

HIDDEN = {
    "csi colour": ("move \x1b[31mup", "move up"),
    "csi screen clear": ("\x1b[2J\x1b[Hmove up", "move up"),
    "csi with intermediates": ("\x1b[?25l\x1b[1 qmove up", "move up"),
    "csi cut off at the end": ("move up\x1b[", "move up"),
    "csi eight bit": ("\x9b2Jmove up", "move up"),
    "osc title": ("\x1b]0;owned\x07move up", "move up"),
    "osc link": ("\x1b]8;;file:///etc/passwd\x1b\\move up\x1b]8;;\x1b\\", "move up"),
    "osc clipboard": ("\x1b]52;c;cm0gLXJm\x07move up", "move up"),
    "osc eight bit": ("\x9d0;owned\x9cmove up", "move up"),
    "osc never closed": ("\x1b]0;owned\nmove up", "\nmove up"),
    "dcs": ("\x1bP1$r0m\x1b\\move up", "move up"),
    "apc": ("\x1b_Gf=24;AAAA\x1b\\move up", "move up"),
    "pm and sos": ("\x1b^x\x1b\\\x1bXy\x1b\\move up", "move up"),
    "reset": ("\x1bcmove up", "move up"),
    "character set": ("\x1b(0move up", "move up"),
    "escape at the end": ("move up\x1b", "move up"),
    "nested": ("\x1b\x1b[31m[31mmove up", "[31mmove up"),
    "bell, backspace, delete": ("mo\x07ve\x08 up\x7f", "move up"),
    "carriage return": ("move down\rmove up", "move down\nmove up"),
    "windows line": ("move\r\nup", "move\nup"),
    "vertical tab, form feed, line separator": ("a\x0bb\x0cc\u2028d", "a\nb\nc\nd"),
    "shift out": ("\x0emove up\x0f", "move up"),
    "nul": ("mo\x00ve up", "move up"),
    "bidi override": ("move \u202epu\u202c", "move pu"),
    "bidi isolate and marks": ("\u2066move\u2069 \u200e\u200f\u061cup", "move up"),
    "zero width": ("mo\u200bve\u200d\ufeff u\u2060p", "move up"),
    "tags": ("move up\U000e0068\U000e0069", "move up"),
    "variation selector, soft hyphen": ("mo\u00adve\ufe0f up", "move up"),
    "lone surrogate": ("move \udcffup", "move \ufffdup"),
    "not assigned, of no agreed width": ("move \U00018e00up", "move \ufffdup"),
    "markup stays": ("[up] [/foo] [bold]x[/bold]", "[up] [/foo] [bold]x[/bold]"),
    "tab and newline stay": ("a\tb\nc", "a\tb\nc"),
    "other scripts stay": ("Ход вверх 上へ é", "Ход вверх 上へ é"),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_safe_text(case: str):
    hostile, safe = HIDDEN[case]
    assert safe_text(hostile) == safe


def printed(text: object, width: int = 60) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system="truecolor", legacy_windows=False)
    console.print(BEFORE)
    console.print(text)
    console.print(AFTER)
    return out.getvalue()


@pytest.mark.parametrize("case", HIDDEN)
def test_no_screen_shows_anything_but_the_safe_text(case: str):
    hostile, safe = HIDDEN[case]
    output = printed(as_text(hostile))
    assert "\x1b" not in output, "nothing here is styled, so no escape byte may leave"
    output.encode()
    screen = pyte.Screen(60, 12)
    pyte.Stream(screen).feed(output.replace("\n", "\r\n"))
    shown = "\n".join(line.rstrip() for line in screen.display).strip()
    assert shown == f"{BEFORE}\n{safe.expandtabs()}\n{AFTER}"


def test_a_move_in_brackets_survives():
    assert "[up]" in printed(as_text("[up]"))
    assert "move [/foo]" in printed(as_text("move [/foo]", "bold red"))


def test_a_link_stays_text():
    output = printed(as_text("[link=file:///etc/passwd]go[/link]"))
    assert "\x1b]8" not in output
    assert "[link=file:///etc/passwd]go[/link]" in output


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b\x9b\x9d[]P\\\x07\r\n;m"))))
def test_nothing_harmful_is_ever_left(text: str):
    safe = safe_text(text)
    assert safe_text(safe) == safe
    assert all(char in "\t\n" or ord(char) >= 0x20 for char in safe)
    assert not any(0x7F <= ord(char) <= 0x9F for char in safe)
    safe.encode()
    assert cell_len(one_line(text, 17)) <= 17
    assert "\n" not in one_line(text, 17)


@pytest.mark.parametrize("unit", ["move up ", "\x1b[31m", "\x1b]0;", "\x9b", "\u200b", "["])
def test_a_megabyte_takes_no_time(unit: str):
    start = time.perf_counter()
    safe_text(unit * (1_000_000 // len(unit)))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("text", "width", "line"),
    [
        ("a  b\nc\t d", 20, "a b c d"),
        ("a long evaluation", 10, "a long ev…"),
        ("上上上", 4, "上…"),
        ("short", 5, "short"),
        ("x", 0, ""),
        ("xy", 1, "…"),
    ],
)
def test_one_line(text: str, width: int, line: str):
    assert one_line(text, width) == line
