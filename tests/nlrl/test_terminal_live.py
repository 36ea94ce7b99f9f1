"""The live view in a terminal emulator, and its plain sister."""

import io
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from terminal_games import HOSTILE, foreign_bytes, screen, terminal, walk

from nlrl.terminal.live import LiveView, PlainView, open_view
from nlrl.terminal.phase import Phase
from nlrl.terminal.stats import Stats, clock_text
from nlrl.types import (
    CallId,
    Candidate,
    Decision,
    Event,
    Failure,
    GameEnd,
    GameStart,
    ImprovedPolicy,
    LanguageValue,
    Step,
)

STATS = Stats(calls=1240, prompt_tokens=90_000, completion_tokens=6_000, bad_replies=3, seconds=60.0)
SOLVED = walk(0, (3, 1), ["move up", "move up", "move right", "move right", "move down", "move down"])


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(events: list[Event], width: int = 80, height: int = 24, games: int = 25) -> tuple[list[str], str]:
    """The screen and the whole output after events that were drawn one by one, with a line before and after."""
    console, out = terminal(width, height)
    console.print("line before")
    with LiveView(lambda: STATS, console, title="maze umaze", redraws_per_second=0) as view:
        view.begin("policy iteration", games)
        for event in events:
            view.show(event)
            view.refresh()
    console.print("line after")
    return screen(out.getvalue(), width, height), out.getvalue()


def test_a_decision_on_80_by_24():
    lines, output = watched(SOLVED[:3])
    assert lines[:18] == [
        "line before",
        " nlrl  policy iteration · maze umaze",
        "game 0 · from 3, 1 · move 2 · return -2 (optimum -5)",
        "╭───────────────╮╭─ move up ───────────────────────────────────────────────────╮",
        "│    0 1 2 3 4  ││ It is nearer.                                               │",
        "│  0 ██████████ ││                                                             │",
        "│  1 ██@     ██ ││   move left    -2.00  ━━━━━━━━━━━━━━━━────────              │",
        "│  2 ██· ██  ██ ││   Worth -2.0.                                               │",
        "│  3 ██· ██G ██ ││   move right   -3.00  ━━━━━━━━────────────────              │",
        "│  4 ██████████ ││   Worth -3.0.                                               │",
        "│               ││ ▸ move up      -1.00  ━━━━━━━━━━━━━━━━━━━━━━━━              │",
        "│               ││   Worth -1.0.                                               │",
        "│               ││   move down    -4.00  ────────────────────────              │",
        "│               ││   Worth -4.0.                                               │",
        "│               ││                                                             │",
        "╰───────────────╯╰─────────────────────────────────────────────────────────────╯",
        " games 0/25 ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  1:00",
        " mean return after the first game",
    ]
    assert lines[18] == " 1,240 calls, 3 bad · 96,000 tokens · 100 written a second"
    assert lines[19] == "line after"
    assert output.rstrip("\n").count("\x1b[?25h") == 1, "the cursor comes back"


def test_the_end_of_a_game_and_the_means():
    lines, _ = watched(SOLVED)
    assert lines[2] == "game 0 · from 3, 1 · move 6 · return -5 (optimum -5) · reached the goal"
    assert lines[17] == " mean return -5.00, optimum of these games -5.00, success 100 %"


@pytest.mark.parametrize("map_", ["umaze", "double_t", "random:3:15x15"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (60, 40), (40, 12), (79, 10)])
def test_it_fits_every_terminal(map_: str, width: int, height: int):
    start = {"umaze": (3, 1), "double_t": (1, 1), "random:3:15x15": (1, 1)}[map_]
    events = walk(0, start, ["move up"] * 3, map_=map_, thought="A long thought. " * 40, evaluation="Long words. " * 30)
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    view = LiveView(lambda: STATS, console, title="t" * 300, redraws_per_second=0)
    view.begin("policy iteration", 25)
    for event in events:
        view.show(event)
    console.print(view.render())
    lines = out.getvalue().rstrip("\n").split("\n")
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    assert lines[-1].startswith(" 1,240 calls")


def test_fitting_wide_terminals_show_the_maze():
    lines, _ = watched(walk(0, (1, 1), ["move up"], map_="double_t")[:2], 80, 24)
    assert any("1 ██@         ██          ██" in line for line in lines)


def test_hostile_text_neither_vanishes_nor_escapes():
    failure = Failure(CallId(0, 0, "policy"), "format", HOSTILE, HOSTILE)
    evaluation = HOSTILE.replace("{", "{{").replace("}", "}}")
    events = walk(0, (3, 1), ["move up"], thought=HOSTILE, evaluation=evaluation, failures=(failure,))
    lines, output = watched(events[:2], 100, 30)
    assert foreign_bytes(output) == []
    assert (lines[0], lines.count("line after")) == ("line before", 1)
    shown = "\n".join(lines)
    assert shown.count("[up] [/foo] [link=file:///etc/passwd]x[/link]") == 6, "thought, four evaluations, one failure"
    assert "1 bad reply, format: [up]" in shown
    output.encode()


def test_a_decision_without_a_usable_reply():
    start = SOLVED[0]
    failures = (Failure(CallId(0, 0, "improve"), "illegal", "no such move", "fly"),) * 3
    decision = Decision(0, 0, (start.observation,), None, failures, 3)  # pyright: ignore[reportAttributeAccessIssue]
    step = Step(0, 0, decision, "", -4.0, -4.0, "The goal.\n", "picture", legal=False)
    lines, _ = watched([start, step, GameEnd(0, -4.0, 1, "forfeit")])
    shown = "\n".join(lines)
    assert "No reply could be used." in shown
    assert "3 bad replies, illegal: no such move" in shown
    assert "forfeited: no usable move" in lines[2]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.0, 1e300, None])
def test_strange_numbers_are_drawn_or_left_out(number: float | None):
    events = walk(0, (3, 1), ["move up"])
    step = events[1]
    assert isinstance(step, Step)
    choice = step.decision.choice
    assert choice is not None
    candidates = tuple(replace(c, value=replace(c.value, number=number)) for c in choice.candidates_A)
    decision = replace(step.decision, choice=replace(choice, candidates_A=candidates))
    lines, _ = watched([events[0], replace(step, decision=decision)])
    shown = "\n".join(lines)
    assert "▸ move up" in shown
    assert "nan" not in shown
    assert "-0.00" not in shown


def test_many_candidates_are_cut_to_the_best():
    start, step = walk(0, (3, 1), ["move up"])[:2]
    assert isinstance(step, Step)
    candidates = tuple(Candidate(f"move {i}", LanguageValue("fine", float(-i))) for i in range(40))
    decision = replace(step.decision, choice=ImprovedPolicy("move 30", "So many.", candidates))
    shown = "\n".join(watched([start, replace(step, decision=decision)])[0])
    assert "▸ move 30" in shown
    assert "move 0 " in shown
    assert "move 39" not in shown
    assert "more" in shown


def test_one_game_is_followed_and_then_another():
    clock = Clock()
    console, _ = terminal(80, 24)
    view = LiveView(lambda: STATS, console, redraws_per_second=0, clock=clock)
    view.begin("policy iteration", 2)
    second = walk(1, (1, 3), ["move down", "move up", "move down", "move down"])

    def followed() -> str:
        out = io.StringIO()
        Console(file=out, width=80, height=24, force_terminal=True, color_system=None).print(view.render())
        return out.getvalue().split("\n")[1]

    for event in [SOLVED[0], second[0], SOLVED[1], second[1]]:
        view.show(event)
    assert followed().startswith("game 0 · from 3, 1 · move 1")
    for event in SOLVED[2:]:
        view.show(event)
    view.show(second[2])
    assert followed().startswith("game 0"), "its end is left to be read"
    clock.now += 3
    view.show(second[3])
    assert followed().startswith("game 1 · from 1, 3 · move 3")
    for event in second[4:]:
        view.show(event)
    assert "game 1 · from 1, 3 · move 4" in followed()
    assert view._active == {}, "a finished game is forgotten"


def interrupt_when_drawn(view: LiveView, out: io.StringIO) -> None:
    with view:
        view.begin("policy iteration", 1)
        view.show(SOLVED[0])
        deadline = time.monotonic() + 5
        while "game 0" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise KeyboardInterrupt(out.getvalue())


def test_it_draws_by_itself_and_gives_the_terminal_back_after_an_error():
    console, out = terminal(80, 24)
    with pytest.raises(KeyboardInterrupt, match="game 0"):
        interrupt_when_drawn(LiveView(lambda: STATS, console, redraws_per_second=50), out)
    assert out.getvalue().rstrip().endswith("\x1b[?25h")


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\x1b\x9b[]()/\x07\r\n;mJ"))))
def test_no_text_breaks_the_picture(text: str):
    events = walk(0, (3, 1), ["move up"], thought=text, evaluation=text.replace("{", "{{").replace("}", "}}"))
    lines, output = watched(events[:2])
    assert foreign_bytes(output) == []
    assert lines[0] == "line before"
    assert lines.count("line after") == 1
    assert all(line.endswith(("│", "╮", "╯")) for line in lines[3:15])


def plain_lines(events: list[Event]) -> list[str]:
    out = io.StringIO()
    with PlainView(lambda: STATS, Console(file=out, width=80), title="maze umaze") as view:
        view.begin("policy iteration", 25)
        for event in events:
            view.show(event)
    return out.getvalue().splitlines()


def test_plain_lines():
    assert plain_lines(SOLVED) == [
        "maze umaze",
        "policy iteration: 25 games",
        "game 0 from 3, 1: reached the goal, 6 moves, return -5 (optimum -5)",
        "1:00 · games 1/25 · moves 6 · mean return -5.00 · calls 1,240, bad 3 · tokens 96,000, 100 written a second"
        " · about 0:00 left",
    ]


def test_plain_progress_comes_with_time():
    out, clock = io.StringIO(), Clock()
    view = PlainView(lambda: STATS, Console(file=out, width=80), every_seconds=10, clock=clock)
    for event in SOLVED[:4]:
        clock.now += 4
        view.show(event)
    assert out.getvalue().splitlines() == [
        "1:00 · games 0/0 · moves 2 · calls 1,240, bad 3 · tokens 96,000, 100 written a second"
    ]


def test_plain_lines_are_safe():
    start = GameStart(0, HOSTILE, "o\n", "p", None)
    lines = plain_lines([start, GameEnd(0, -4.0, 1, "failure")])
    assert foreign_bytes("\n".join(lines)) == []
    assert lines[2].startswith("game 0 from [up] [/foo] [link=file:///etc/passwd]x[/link]")
    assert lines[2].endswith("lost, 1 move, return -4")


def test_the_view_suits_the_console():
    console, _ = terminal(80, 24)
    assert isinstance(open_view(lambda: STATS, console=console), LiveView)
    assert isinstance(open_view(lambda: STATS, console=console, plain=True), PlainView)
    assert isinstance(open_view(lambda: STATS, console=Console(file=io.StringIO())), PlainView)


def test_time_left_counts_the_moves_ahead():
    phase = Phase("policy iteration", games=4, begun=10.0)
    assert phase.seconds_left(20.0) is None
    for event in SOLVED:
        phase.count(event)
    for event in walk(1, (3, 1), ["move up", "move up"])[:3]:
        phase.count(event)
    # 8 moves in 8 seconds; the finished game took 6, so 4 are ahead in game 1 and 6 in each of the two that wait.
    assert phase.seconds_left(18.0) == pytest.approx(16.0)
    assert (phase.done, phase.mean_return, phase.mean_optimum, phase.success) == (1, -5.0, -5.0, 1.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (247, "4:07"), (3729, "1:02:09"), (-1, "0:00")]
)
def test_clock_text(seconds: float, text: str):
    assert clock_text(seconds) == text


def test_rates_before_any_time_has_passed():
    assert Stats().tokens_per_second == 0
    assert STATS.tokens_per_second == 100
    assert STATS.tokens == 96_000
