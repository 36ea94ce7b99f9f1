"""Replay by keys, as lines and as a picture."""

import fcntl
import io
import os
import select
import struct
import subprocess
import sys
import termios
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from terminal_games import HOSTILE, foreign_bytes, screen, terminal, walk

from nlrl.terminal.frame import frames_of
from nlrl.terminal.keys import terminal_keys
from nlrl.terminal.replay import Player, export_svg, listing, replay
from nlrl.terminal.result import ResultRow, RunResult, result_table
from nlrl.terminal.stats import Stats

SOLVED = walk(0, (1, 2), ["move right", "move down", "move down"])
FRAMES = frames_of(SOLVED)
EVIL = frames_of(walk(0, (1, 2), ["move right"], thought=HOSTILE, evaluation=HOSTILE.replace("{", "")))


def test_frames():
    assert [frame.moves for frame in FRAMES] == [0, 1, 2, 3]
    assert [frame.total_return for frame in FRAMES] == [0, -1, -2, -2]
    assert [frame.end is not None for frame in FRAMES] == [False, False, False, True]
    assert frames_of(SOLVED[:2])[-1].end is None, "an interrupted game replays as far as it went"


@pytest.mark.parametrize("events", [SOLVED[1:], [*SOLVED[:2], SOLVED[0]], [SOLVED[0], walk(1, (1, 2), ["move up"])[1]]])
def test_frames_are_of_one_game(events: list):
    with pytest.raises(ValueError, match="one game"):
        frames_of(events)


@pytest.mark.parametrize(
    ("keys", "index"),
    [
        ("n", 1),
        ("nnp", 1),
        ("p", 0),
        ("nnnnnn", 3),
        ("\n\n", 2),
        ("2\n", 2),
        ("99\n", 3),
        ("1x\n", 1),
        ("G", 3),
        ("?", 0),
        (["right", "right", "left"], 1),
        (["end", "home"], 0),
    ],
)
def test_keys_move_the_player(keys: str | list[str], index: int):
    player = Player(3)
    for key in keys:
        player = player.press(key)
    assert player.index == index
    assert not player.quit


def test_playing_by_itself():
    player = Player(3, index=3).press(" ")
    assert (player.playing, player.index) == (True, 0), "from the end it begins again"
    player = player.press("+").press("+").press("-")
    assert (player.playing, player.speed) == (True, 2)
    player = player.tick().tick()
    assert (player.playing, player.index) == (True, 2)
    assert (player.tick().playing, player.tick().index) == (False, 3)
    assert player.press("p").playing is False
    assert player.press(" ").playing is False


@pytest.mark.parametrize("key", ["q", "\x1b", "\x04", ""])
def test_leaving(key: str):
    assert Player(3).press(key).quit


def stepped(frames: list, keys: list[str | None], width: int = 80, height: int = 24) -> tuple[list[str], str]:
    console, out = terminal(width, height)
    waited: list[float | None] = []
    left: Iterator[str | None] = iter(keys)

    def read(timeout: float | None) -> str | None:
        waited.append(timeout)
        return next(left)

    console.print("line before")
    replay(frames, console, title="maze-hymba-1", read_key=read)
    assert all((timeout is None) == (key is not None) for timeout, key in zip(waited, keys, strict=True))
    return screen(out.getvalue(), width, height), out.getvalue()


def test_stepping_on_a_terminal():
    lines, output = stepped(FRAMES, ["n", "n", "p", "q"])
    assert lines[:7] == [
        "line before",
        " nlrl replay  maze-hymba-1",
        "game 0 · from 1, 2 · move 1 · return -1 (optimum -2)",
        "╭───────────────╮╭─ move right ────────────────────────────────────────────────╮",
        "│    0 1 2 3 4  ││ It is nearer.                                               │",
        "│  0 ██████████ ││                                                             │",
        "│  1 ██  · @ ██ ││   move left    -2.00  ━━━━━━━━━━━━━━━━────────              │",
    ]
    assert lines[16].startswith(" 1/3 · n next")
    assert output.rstrip().endswith("\x1b[?25h")


def test_playing_on_a_terminal():
    lines, _ = stepped(FRAMES, [" ", None, None, None, "q"])
    assert lines[2].endswith("reached the goal")


def test_a_number_is_shown_while_it_is_typed():
    _, output = stepped(FRAMES, ["2", "q"])
    assert "go to move 2" in output


def test_hostile_text_on_a_terminal():
    lines, output = stepped(EVIL, ["n", "q"], 100, 30)
    assert foreign_bytes(output) == []
    assert lines[0] == "line before"
    assert any("[up] [/foo]" in line for line in lines)


def test_nothing_to_replay():
    with pytest.raises(ValueError, match="nothing to replay"):
        replay([])


def test_lines_without_a_terminal():
    out = io.StringIO()
    replay(FRAMES, Console(file=out, width=40), title="maze-hymba-1")
    assert out.getvalue().splitlines()[:17] == [
        "maze-hymba-1",
        "game 0 from 1, 2",
        "   0 1 2 3 4",
        " 0 ██████████",
        " 1 ██  @   ██",
        " 2 ██  ██  ██",
        " 3 ██  ██G ██",
        " 4 ██████████",
        "The goal is at position 3, 3. Your current position is at position 1, 2."
        " There are walls above you, below you.",
        "1. move right: -1, return -1",
        "   thought: It is nearer.",
        "     move left: Worth -2.0.",
        "   * move right: Worth -1.0.",
        "     move up: Worth -3.0.",
        "     move down: Worth -4.0.",
        "   The goal is at position 3, 3. Your current position is at position 1, 3."
        " There are walls to your right, above you.",
        "2. move down: -1, return -2",
    ]
    assert out.getvalue().splitlines()[-1] == "reached the goal: 3 moves, return -2, optimum -2"


def test_lines_of_an_interrupted_and_of_a_hostile_game():
    assert listing(FRAMES[:2]).plain.endswith("interrupted: 1 moves, return -1, optimum -2")
    plain = listing(EVIL, HOSTILE).plain
    assert foreign_bytes(plain) == []
    assert plain.count("[up] [/foo]") == 6, "title, thought, four evaluations"


def test_keys_of_a_real_terminal():
    master, slave = os.openpty()
    try:
        before = termios.tcgetattr(slave)
        with terminal_keys(slave) as read:
            assert read(0.01) is None
            for sent, key in ((b"n", "n"), (b"\x1b[C", "right"), (b"\x1bOD", "left"), (b"\x1b", "\x1b"), (b"7", "7")):
                os.write(master, sent)
                assert read(5) == key
            os.write(master, b"12\x1b[D\x1b[5~p")
            assert [read(5) for _ in range(5)] == ["1", "2", "left", "unknown", "p"], "fast typing loses nothing"
            raw = termios.tcgetattr(slave)
            assert not raw[3] & (termios.ECHO | termios.ICANON)
            assert raw[3] & termios.ISIG, "Ctrl-C stays an interrupt"
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


REPLAYING = """
from terminal_games import walk
from nlrl.terminal.frame import frames_of
from nlrl.terminal.replay import replay
replay(frames_of(walk(0, (1, 2), ["move right", "move down", "move down"])), title="maze-hymba-1")
print("left in order")
"""


def test_a_person_at_a_real_terminal():
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    support = str(Path(__file__).parents[1] / "support")
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": support}
    child = subprocess.Popen([sys.executable, "-c", REPLAYING], stdin=slave, stdout=slave, env=environment)
    output = b""

    def read_until(part: bytes) -> None:
        nonlocal output
        while part not in output:
            assert select.select([master], [], [], 30)[0], f"{part!r} was not shown"
            output += os.read(master, 65536)

    try:
        for keys, shown in ((b"", b"0/3"), (b"n", b"1/3"), (b"\x1b[C", b"2/3"), (b"3\n", b"reached the goal")):
            os.write(master, keys)
            read_until(shown)
        os.write(master, b"q")
        read_until(b"left in order")
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
        os.close(master)
        os.close(slave)
    assert output.count(b"\x1b[?25l") == output.count(b"\x1b[?25h") == 1, "the cursor is given back"


def svg_text(path: Path) -> str:
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    return "\n".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")).replace("\xa0", " ")


def test_a_picture_for_the_readme(tmp_path: Path):
    result = RunResult((ResultRow("policy iteration", -9.5, (-10.5, -8.5), 1.0),), Stats(calls=10, seconds=1))
    export_svg(FRAMES, tmp_path / "game.svg", index=1, below=result_table(result))
    text = svg_text(tmp_path / "game.svg")
    for part in ("game 0 · from 1, 2 · move 1", "move right", "Worth -1.0.", "@", "policy iteration"):
        assert part in text
    svg = (tmp_path / "game.svg").read_text(encoding="utf-8")
    assert "url(" not in svg.replace("url(#", ""), "nothing is loaded from anywhere"
    assert "@font-face" not in svg


def test_a_picture_of_a_hostile_game(tmp_path: Path):
    export_svg(EVIL, tmp_path / "game.svg", title=HOSTILE)
    text = svg_text(tmp_path / "game.svg")
    assert "[up] [/foo]" in text
    assert foreign_bytes((tmp_path / "game.svg").read_text(encoding="utf-8")) == []
    assert "<script>" not in (tmp_path / "game.svg").read_text(encoding="utf-8")


def test_a_moment_that_does_not_exist(tmp_path: Path):
    with pytest.raises(ValueError, match="choose one from 0 to 3"):
        export_svg(FRAMES, tmp_path / "game.svg", index=4)
