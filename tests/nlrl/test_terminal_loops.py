"""Watching a loop that learns: phases, trainings and figures, on a terminal and as lines; its final table."""

import io

import pytest
from rich.console import Console
from terminal_games import HOSTILE, foreign_bytes, screen, terminal

from nlrl.config import load_config
from nlrl.terminal.live import LiveView, PlainView
from nlrl.terminal.notes import engines_text, note_of, phase_text
from nlrl.terminal.result import ResultRow, RunResult, result_table
from nlrl.terminal.stats import Stats
from nlrl.types import (
    CallId,
    Decision,
    Estimated,
    Evaluation,
    GameEnd,
    GameStart,
    ImprovedPolicy,
    LanguageValue,
    LoopEvent,
    PhaseStart,
    Situation,
    Step,
    Trained,
)

BOARD = "1 | 2 | 3\n---------\n4 | 5 | 6\n---------\n7 | 8 | 9"
STATS = Stats(calls=140, prompt_tokens=9_000, completion_tokens=600, seconds=6.0)
TRAINED = Trained(1, "value", "value-1", 1402, 30_000, (0.861, 0.5, 0.313))


def game(number: int, result: float, ending: str) -> list[LoopEvent]:
    choice = ImprovedPolicy("5", HOSTILE)
    own = Step(number, 0, Decision(number, 0, (BOARD,), choice, player="O"), "5", 0.0, 0.0, BOARD, BOARD)
    reply = Decision(number, 1, (BOARD,), ImprovedPolicy("1", "opponent"), player="X", own=False)
    theirs = Step(number, 1, reply, "1", result, result, BOARD, BOARD)
    return [GameStart(number, "empty", BOARD, BOARD), own, theirs, GameEnd(number, result, 2, "failure", ending)]


GAMES = [*game(0, -1.0, "X has won."), *game(1, 1.0, "O has won.")]


def live(events: list[LoopEvent], notes: list[str], unit: str = "games") -> tuple[list[str], str]:
    console, out = terminal(80, 24)
    with LiveView(lambda: STATS, console, title="tic_tac_toe", two=True, redraws_per_second=0) as view:
        view.begin("iteration 1, playing", 6, unit)
        for note in notes:
            view.note(note)
        for event in events:
            view.show(event)
            view.refresh()
        view.refresh()
    return screen(out.getvalue(), 80, 24), out.getvalue()


def test_the_live_view_keeps_the_last_notes_and_counts_wins():
    lines, output = live(GAMES, ["first", "second", note_of(TRAINED), "untrained: won 43.75 %"])
    assert lines[0].startswith(" nlrl  iteration 1, playing · tic_tac_toe")
    assert [line.strip() for line in lines[1:4]] == [
        "second",
        "iteration 1: value student learned 1,402 examples, loss 0.861 to 0.313",
        "untrained: won 43.75 %",
    ]
    assert any("games 2/6" in line for line in lines)
    assert any("won 50.0 %, lost 50.0 %, of 2 games" in line for line in lines)
    assert any("X (opponent): 1" in line for line in lines)
    assert any("The opponent moved." in line for line in lines)
    assert foreign_bytes(output) == []


def test_a_phase_without_games_shows_how_many_questions_were_answered():
    calls = [STATS]
    console, out = terminal(80, 24)
    with LiveView(lambda: calls[-1], console, two=True, redraws_per_second=0) as view:
        view.begin("iteration 1, estimating values", 100, "questions")
        calls.append(Stats(calls=170, seconds=7.0))
        view.refresh()
        view.begin("iteration 1, training the value student", 1402, "examples")
        view.note(HOSTILE)
        view.refresh()
    assert "questions 30/100" in out.getvalue()
    assert "1402 examples" in out.getvalue()
    assert "after the first game" not in out.getvalue()
    assert foreign_bytes(out.getvalue()) == []


def test_plain_lines_say_the_same():
    out = io.StringIO()
    with PlainView(lambda: STATS, Console(file=out, width=200), title="tic_tac_toe", two=True) as view:
        view.begin("iteration 1, playing", 2)
        for event in GAMES:
            view.show(event)
        view.show(TRAINED)
        view.note(note_of(TRAINED))
    lines = out.getvalue().splitlines()
    assert lines[1] == "iteration 1, playing: 2 games"
    assert lines[2] == "game 0 from empty: X has won, 2 moves, return -1"
    assert lines[-2].startswith("iteration 1: value student learned 1,402 examples, loss 0.861 to 0.313")
    assert "won 50.0 %, lost 50.0 %" in lines[-1]


@pytest.mark.parametrize(
    ("recipe", "stage", "event", "says"),
    [
        ("tic_tac_toe", "actor_critic", PhaseStart(2, "improve", 9), ("iteration 2, improving", 9, "situations")),
        ("tic_tac_toe", "actor_critic", PhaseStart(0, "evaluate", 5), ("iteration 0, evaluating", 5, "games")),
        ("breakthrough", "td_values", PhaseStart(1, "collect", 7), ("iteration 1, looking ahead", 7, "positions")),
        (
            "maze_policy_iteration",
            "policy_iteration",
            PhaseStart(1, "improve", 3),
            ("iteration 1, improving", 3, "games"),
        ),
        ("maze", "plain policy", PhaseStart(0, "evaluate", 25), ("plain policy", 25, "games")),
    ],
)
def test_phases_are_named_by_what_they_do(recipe, stage, event, says):
    assert phase_text(load_config(recipe), stage, event) == says


def test_values_say_how_many_games_they_were_made_from():
    here = Situation((BOARD,), CallId(0, 0, "monte_carlo"))
    values = tuple(Evaluation(here, "5", LanguageValue("good", 1.0)) for _ in range(3))
    assert note_of(Estimated(2, values, achieved_K=((1, 2), (5, 1)))) == (
        "iteration 2: 3 values in words (2 of K=1, 1 of K=5)"
    )


def test_models_are_named_with_their_roles_where_there_are_several():
    assert engines_text(load_config("tic_tac_toe")) == "hymba on vllm"
    changes = {"roles.teacher.base_url": "http://key@127.0.0.1:8000/v1", "roles.teacher.model": "big"}
    assert engines_text(load_config("tic_tac_toe", changes)) == (
        "hymba on vllm (policy and value), big at 127.0.0.1:8000 (teacher)"
    )


def test_the_table_of_a_game_of_two_fits_80_columns():
    rows = (
        ResultRow("untrained", -0.1, None, 0.4375, (0.395, 0.481), 0.127, 0.436, (("O", 0.585), ("X", 0.288)), 0.581),
        ResultRow("optimum (exact)", 0.94, None, 0.9667, None, 0.008, 0.025, (("O", 0.9948), ("X", 0.9386))),
    )
    out = io.StringIO()
    Console(file=out, width=80).print(result_table(RunResult(rows, Stats())))
    heading, _, first, optimum, *_ = out.getvalue().splitlines()
    assert heading.split() == [
        "policy",
        "won",
        "%",
        "95",
        "%",
        "interval",
        "as",
        "O",
        "as",
        "X",
        "drawn",
        "lost",
        "best",
        "moves",
    ]
    assert first.split() == ["untrained", "43.8", "39.5", "..", "48.1", "58.5", "28.8", "12.7", "43.6", "58.1"]
    assert optimum.split() == ["optimum", "(exact)", "96.7", "99.5", "93.9", "0.8", "2.5"]


def test_the_table_of_values_alone():
    row = ResultRow("iteration 1", None, values=0.855, values_interval=(0.842, 0.867))
    out = io.StringIO()
    Console(file=out, width=80).print(result_table(RunResult((row,), Stats())))
    heading, _, first, *_ = out.getvalue().splitlines()
    assert heading.split() == ["policy", "values", "right", "95", "%", "of", "values"]
    assert first.split() == ["iteration", "1", "85.50", "%", "84.20", "..", "86.70"]
