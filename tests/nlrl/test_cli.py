"""The command line from outside: a whole run with the oracle, its record and replay, and every foreseen mistake."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from nlrl.store import RunReader

NLRL = [sys.executable, "-m", "nlrl.cli"]
EXACT = ["-s", "look_ahead.variations=1", "-s", "look_ahead.steps=0"]


def nlrl(*arguments, cwd=None):
    return subprocess.run([*NLRL, *arguments], capture_output=True, text=True, timeout=120, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    done = nlrl("run", "maze", "--engine", "oracle", *EXACT, "--runs", str(runs), "--id", "exact", "--plain")
    assert done.returncode == 0, done.stderr
    return runs, done.stdout


def test_a_run_ends_with_the_table_and_the_exact_optimum(finished):
    _, printed = finished
    rows = {line.split("  ")[0].strip(): line for line in printed.splitlines()}
    assert "-6.84" in rows["policy iteration, K=1 N=0"]
    assert "-85.89" in rows["random policy (exact)"]
    assert "-6.84" in rows["optimum (exact)"]
    assert "parsed 100.00 %, legal 100.00 %" in printed


def test_the_record_holds_every_step_and_call(finished):
    runs, _ = finished
    with RunReader.open(runs / "exact") as reader:
        assert reader.status == "finished"
        assert len(reader.games()) == 50
        assert reader.config["env"]["map"] == "double_t"
        events = reader.events(0)
        assert len(events) == 14
        assert reader.results["stats"]["calls"] == sum(1 for _ in reader.calls())


def test_the_record_replays_and_becomes_a_picture(finished, tmp_path):
    runs, _ = finished
    shown = nlrl("replay", "exact", "--runs", str(runs), "--game", "24")
    assert "move down: 0, return 0" in shown.stdout
    assert "exact" in nlrl("runs", "--runs", str(runs)).stdout
    picture = tmp_path / "game.svg"
    assert nlrl("replay", "exact", "--runs", str(runs), "--svg", str(picture)).returncode == 0
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "maze", "--map", "nope"], "Unknown map 'nope'; known: double_t, umaze, medium, large"),
        (["run", "mazes"], "Did you mean 'maze'?"),
        (["run", "maze", "--engine", "jax"], "Unknown engine 'jax'; known: http, oracle"),
        (["run", "maze", "--backbone", "hymbo"], "Unknown backbone 'hymbo'; known: "),
        (["run", "maze", "--backbone", "./nowhere"], "There is no folder './nowhere'"),
        (["run", "maze", "-s", "env.mpa=umaze"], "Did you mean 'env.map'?"),
        (["run", "maze", "--engine", "http"], "needs the server's address"),
        (["run", "maze", "--base-url", "http://127.0.0.1:1/v1"], "No server answers at http://127.0.0.1:1/v1"),
        (["run", "maze", "--engine", "oracle", "-s", "env.starts=0"], "positive number of games"),
        (["sweep", "--map", "nope"], "Unknown map 'nope'"),
        (["replay", "none"], "There is no run 'none'"),
        (["export", "none", "x.jsonl"], "There is no run 'none'"),
        (["resume", "none"], "There is no run 'none'"),
        (["resume", "../x"], "The run id '../x' cannot be used"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(arguments, says, tmp_path):
    done = nlrl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_dry_run_asks_and_records_nothing(tmp_path):
    said = nlrl("run", "maze", "--dry-run", "-s", "budget.price_written=2", "--runs", str(tmp_path / "runs")).stdout
    assert "Calls:  6,275 to" in said
    assert "Money:" in said
    assert not (tmp_path / "runs").exists()


def test_a_run_can_be_deleted_and_asks_first(finished, tmp_path):
    shutil.copytree(finished[0] / "exact", tmp_path / "copy")
    refused = subprocess.run(
        [*NLRL, "rm", "copy", "--runs", str(tmp_path)], input="n\n", capture_output=True, text=True, check=False
    )
    assert (refused.returncode, (tmp_path / "copy").exists()) == (1, True)
    assert nlrl("rm", "copy", "--yes", "--runs", str(tmp_path)).returncode == 0
    assert not (tmp_path / "copy").exists()
    assert nlrl("rm", "../copy", "--yes", "--runs", str(tmp_path)).returncode == 2


def test_a_budget_stops_a_run_that_can_be_resumed(tmp_path):
    place = ["--runs", str(tmp_path), "--plain"]
    stopped = nlrl("run", "maze", "--engine", "oracle", *EXACT, "-s", "budget.calls=20", "--id", "short", *place)
    assert stopped.returncode == 4
    assert stopped.stderr.strip() == "nlrl: The budget is used up (calls: 20 of 20); resume the run with a greater one."
    resumed = nlrl("resume", "short", "-s", "budget.calls=1000000", *place)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "-6.84" in resumed.stdout
    again = nlrl("resume", "short", "-s", "budget.calls=1000000", *place)
    assert "nothing is left to be asked" in again.stdout


def test_ctrl_c_leaves_a_run_that_replays(tmp_path):
    arguments = ["run", "maze", "--engine", "oracle", "-s", "env.starts=1500", "--runs", str(tmp_path), "--id", "cut"]
    running = subprocess.Popen(
        [*NLRL, *arguments, "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore the signal, and so would this child of theirs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("game "):
            break
    os.kill(running.pid, signal.SIGINT)
    printed, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Interrupted; what was played is recorded." in printed
    assert "Traceback" not in errors
    with RunReader.open(tmp_path / "cut") as reader:
        assert reader.status == "interrupted"
        finished = [start.game for start, end in reader.games() if end is not None]
    assert "The goal is reached" in nlrl("replay", "cut", "--runs", str(tmp_path), "--game", str(finished[0])).stdout
