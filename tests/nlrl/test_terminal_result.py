"""The final table."""

import io

import pytest
from rich.console import Console
from terminal_games import HOSTILE, foreign_bytes

from nlrl.terminal.result import ResultRow, RunResult, result_table
from nlrl.terminal.stats import Stats

RESULT = RunResult(
    (
        ResultRow("policy iteration, K=8 N=3", -9.31, (-10.7, -7.9), 1.0),
        ResultRow("plain policy", -84.2, (-91.0, -77.4), 0.26),
        ResultRow("random policy (exact)", -85.89, None, 0.2468),
        ResultRow("optimum (exact)", -6.84, None, 1.0),
    ),
    Stats(calls=1000, prompt_tokens=90_000, completion_tokens=12_000, bad_replies=12, seconds=97.0),
    {"format": 6, "cut": 2, "illegal": 4, "empty": 0},
)


def printed(result: RunResult, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(result_table(result))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_table_fits_80_columns():
    lines = printed(RESULT)
    assert [line.split("  ")[0].strip() for line in lines[2:6]] == [row.name for row in RESULT.rows]
    assert " ".join(lines[2].split()) == "policy iteration, K=8 N=3 -9.31 -10.70 .. -7.90 100.0 % 2.47"
    assert lines[5].split() == ["optimum", "(exact)", "-6.84", "100.0", "%", "0.00"]
    assert lines[6:] == [
        " Replies: 1,000, parsed 99.20 %, legal 99.60 %",
        " Bad:     12 (cut 2, format 6, illegal 4)",
        " Tokens:  90,000 read, 12,000 written, 124 written a second, 1:37 in all",
    ]


def test_rates():
    assert RESULT.parse_rate == pytest.approx(0.992)
    assert RESULT.legality_rate == pytest.approx(988 / 992)
    assert RunResult((), Stats()).parse_rate is None
    assert RunResult((), Stats(calls=2), {"format": 2}).legality_rate is None


def test_without_an_optimum_and_without_calls():
    lines = printed(RunResult((ResultRow("policy", -3.0, (-4.0, -2.0), 0.5),), Stats()))
    assert lines[2].split() == ["policy", "-3.00", "-4.00", "..", "-2.00", "50.0", "%"]
    assert lines[-1] == "No language model was asked."


def test_hostile_names():
    lines = printed(RunResult((ResultRow(HOSTILE, 0.0),), Stats()), 200)
    assert foreign_bytes("\n".join(lines)) == []
    assert "[up] [/foo]" in "\n".join(lines)
