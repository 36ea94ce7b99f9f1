"""Five hundred payloads through every way out: a terminal shows our own styles and `[up]`, and nothing else."""

import io
import json
import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pyte
import pytest
from rich.console import Console
from terminal_games import OWN_SEQUENCES, foreign_bytes, terminal, walk

from nlrl import cli
from nlrl.errors import StoreError
from nlrl.safe_text import as_text
from nlrl.terminal.cast import CLEAR, export_cast
from nlrl.terminal.frame import frames_of
from nlrl.terminal.live import LiveView, PlainView
from nlrl.terminal.replay import export_svg, listing, replay
from nlrl.terminal.result import ResultRow, RunResult, result_table
from nlrl.terminal.stats import Stats
from nlrl.types import CallId, Failure, GameStart, Step

SIZES = [pytest.param(10, id="short"), pytest.param(500, id="full", marks=pytest.mark.torture)]
WIDTH, HEIGHT = 100, 40
ATTACKS = (
    "\x1b[2J\x1b[H", "\x1b]0;owned\x07", "\x1b]52;c;cm0=\x07", "\x1b]8;;file:///etc/passwd\x1b\\x\x1b]8;;\x1b\\",
    "\x1bP1$r\x1b\\", "\x9b31m", "\x9d0;x\x9c", "\x90q\x9c", "\x1bc", "\x1b(0", "\x1b[?1049h", "\x1b[6n", "\x1b[31",
    "\x1b]", "\r", "\x08\x08\x08", "\x00", "\x07", "\x0e", "\x7f", "\x85", "\u2028", "\u202e", "\u2066", "\u200b",
    "\u200d", "\ufeff", "\U000e0041", "\ud800", "\udfff", "[/foo]", "[bold red]", "[/]", "[[", "\\[", ":smile:",
    "[link=file:///etc/passwd]x[/link]", "<script>alert(1)</script>", "&#27;[2J", "]]>", "\t", "\n\n\n",
    "e\u0301" * 30, "上" * 50, "\u0600", "\u115f", "a" * 3000,
)  # fmt: skip
STATS = Stats(calls=3)


def payloads(count: int) -> list[str]:
    """Attacks around the move that must be seen, each alone and then mixed; one of them a megabyte long."""
    rng = random.Random(11)
    made = [f"[up] {attack}" for attack in ATTACKS]
    while len(made) < count - 1:
        made.append("[up] " + "".join(rng.choices((*ATTACKS, "word ", "x"), k=rng.randrange(2, 9))))
    rng.shuffle(made)
    return [*made[: count - 1], "[up] " + "\x1b[31mm" * (150_000 if count > 100 else 5_000)]


def hostile_game(payload: str):
    """A game in which everything that is anybody's text is the payload."""
    failure = Failure(CallId(0, 0, "policy"), "format", payload, payload)
    events = walk(0, (2, 1), ["move up"], thought=payload, evaluation=payload.replace("{", "").replace("}", ""),
                  failures=(failure,))  # fmt: skip
    changed = []
    for event in events:
        if isinstance(event, GameStart):
            event = replace(event, start=payload, observation=payload)
        elif isinstance(event, Step):
            event = replace(event, observation=payload, action=payload)
        changed.append(event)
    return changed


def live(payload, console):
    with LiveView(lambda: STATS, console, title=payload, redraws_per_second=0) as view:
        view.begin(payload, 1)
        for event in hostile_game(payload)[:2]:
            view.show(event)
            view.refresh()


def plain(payload, console):
    with PlainView(lambda: STATS, console, title=payload) as view:
        view.begin(payload, 1)
        for event in hostile_game(payload):
            view.show(event)


def lines(payload, console):
    console.print(listing(frames_of(hostile_game(payload)), payload), soft_wrap=True, highlight=False)


def stepping(payload, console):
    keys = iter(["n", "n", "q"])
    replay(frames_of(hostile_game(payload)), console, title=payload, read_key=lambda timeout: next(keys))


def table(payload, console):
    console.print(result_table(RunResult((ResultRow(payload, -1.0, (-2.0, 0.0)),), STATS)))


def sentence(payload, console):
    console.print(as_text(payload))


WAYS = (live, plain, lines, stepping, table, sentence)


@pytest.mark.parametrize("count", SIZES)
def test_nothing_but_our_own_styles_reaches_a_terminal(count, row):
    made = payloads(count)
    for payload in made:
        for way in WAYS:
            if len(payload) > 100_000 and way in (lines, plain, sentence):
                continue  # a terminal emulator in Python takes minutes for what is plainly only text
            console, out = terminal(WIDTH, HEIGHT)
            way(payload, console)
            output = out.getvalue()
            assert not foreign_bytes(output), (way.__name__, payload[:80])
            assert "[up]" in OWN_SEQUENCES.sub("", output).replace("\n", ""), (way.__name__, payload[:80])
            emulator = pyte.Screen(WIDTH, HEIGHT)
            pyte.Stream(emulator).feed(output.replace("\n", "\r\n") + "\x1b[0m\r\nBELOW")
            assert emulator.display[emulator.cursor.y].startswith("BELOW")
            assert emulator.title == ""
            assert emulator.icon_name == ""
    row(f"{len(made)} payloads through {len(WAYS)} ways to a terminal: no foreign control byte, [up] visible each time")


@pytest.mark.parametrize("count", SIZES)
def test_pictures_are_clean_xml_without_links_or_scripts(count, row, tmp_path):
    for payload in payloads(count)[::5]:
        file = tmp_path / "picture.svg"
        export_svg(frames_of(hostile_game(payload)), file, title=payload)
        text = file.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert not any(
            element.tag.rpartition("}")[2] in ("script", "a", "image", "foreignObject") for element in root.iter()
        )
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
        shown = "".join(root.itertext()).replace("\xa0", " ")
        assert "[up]" in shown
    row(f"{len(payloads(count)[::5])} payloads as SVG: well-formed, no script, link or control character, [up] visible")


@pytest.mark.parametrize("count", SIZES)
def test_a_cast_shows_our_own_styles_only(count, row, tmp_path):
    for payload in payloads(count)[::5]:
        file = tmp_path / "game.cast"
        export_cast(frames_of(hostile_game(payload)), file, title=payload)
        header, *events = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        assert (header["version"], header["title"][:4]) == (3, "[up]")
        assert len(events) == 2
        emulator = pyte.Screen(header["term"]["cols"], header["term"]["rows"])
        for _, code, shown in events:
            assert code == "o"
            assert not foreign_bytes(shown.removeprefix(CLEAR))
            pyte.Stream(emulator).feed(shown)
        assert "[up]" in "\n".join(emulator.display)
        assert emulator.title == ""
    row(f"{len(payloads(count)[::5])} payloads as asciicast: our own styles only, [up] visible in a terminal")


@pytest.mark.parametrize("count", SIZES)
def test_errors_are_one_clean_line(count, monkeypatch, capsys):
    for payload in payloads(count):

        def fail(standalone_mode, payload=payload):
            raise StoreError(payload)

        monkeypatch.setattr(cli, "app", fail)
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr().err
        assert said.startswith("nlrl: [up]")
        assert said.count("\n") == 1
        assert not foreign_bytes(said)


def test_a_console_that_is_no_terminal_gets_no_styles_at_all():
    console = Console(file=io.StringIO(), width=WIDTH)
    plain("[up] \x1b[31m", console)
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]
