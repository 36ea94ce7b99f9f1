"""A run that is killed again and again ends as if it never had been, with no answer lost or asked twice."""

from pathlib import Path

import numpy as np
import pytest
from arithmetic_server import OVER_HTTP, arithmetic_answers
from killing import Killed, kill_until_done, recorded_calls, scripted
from scripted_server import ScriptedServer

from nlrl.store import RunReader
from nlrl.store_export import digest
from nlrl.store_loops import trainings

SIZES = [pytest.param(3, 1, id="short"), pytest.param(200, 6, id="full", marks=pytest.mark.torture)]
LOOP_SIZES = [pytest.param(1, 2, id="short"), pytest.param(100, 16, id="full", marks=pytest.mark.torture)]
LOOP = [
    "tic_tac_toe", "--engine", "oracle", "-s", "roles.teacher.prompts=arithmetic", "-s", "training.iterations=2",
    "-s", "training.samples=3", "-s", "training.evaluation_games=2",
]  # fmt: skip
"""Policy and value are tables in the run's process, the teacher is asked over HTTP."""
AT_ONCE = 64
"""Requests in flight at most: `engine.at_once`."""


@pytest.mark.parametrize(("kills", "games"), SIZES)
def test_sigkill_at_random_moments(kills, games, tmp_path: Path, row):
    with ScriptedServer(scripted(arithmetic_answers())) as server:
        arguments = ["maze", "--base-url", server.url, *OVER_HTTP, "-s", f"env.starts={games}"]
        all_found, runs, calls = _killed(server, tmp_path, arguments, kills)
        assert calls > 20 * games
    row(
        f"{all_found.kills} kills over {runs} runs of {calls} calls: every record equals the never-killed one row for "
        f"row; files damaged {all_found.damaged}, answers lost {all_found.lost}, asked again {all_found.asked_twice} "
        f"(in flight at a kill, most at one: {all_found.most_at_one_kill})"
    )
    assert (all_found.damaged, all_found.lost) == (0, 0)
    assert all_found.most_at_one_kill <= AT_ONCE


@pytest.mark.parametrize(("kills", "games"), LOOP_SIZES)
def test_sigkill_in_every_phase_of_a_loop_that_learns(kills, games, tmp_path: Path, row):
    with ScriptedServer(scripted(arithmetic_answers())) as server:
        teacher = ["-s", f"roles.teacher.base_url={server.url}", "-s", f"training.games={games}"]
        found, runs, calls = _killed(server, tmp_path, [*LOOP, *teacher], kills)
    row(
        f"{found.kills} kills over {runs} runs of {calls} calls of the actor-critic loop, its teacher over HTTP: every "
        f"record equals the never-killed one row for row; files damaged {found.damaged}, answers lost {found.lost}"
    )
    with RunReader.open(tmp_path / "never-killed") as reader:
        assert len(trainings(reader)) == 4
    assert (found.damaged, found.lost) == (0, 0)
    assert found.most_at_one_kill <= AT_ONCE


def _killed(server: ScriptedServer, runs: Path, arguments: list[str], kills: int) -> tuple[Killed, int, int]:
    """(what was found, how many runs it took, calls of each); asserts that each ends as the one never killed."""
    rng, found, count = np.random.default_rng(7), Killed(), 0
    kill_until_done(server, runs, "never-killed", arguments, rng, 0)
    wanted, calls = _digest(runs / "never-killed"), len(recorded_calls(runs / "never-killed"))
    while found.kills < kills:
        count += 1
        found.add(kill_until_done(server, runs, f"killed-{count}", arguments, rng, kills - found.kills))
        assert _digest(runs / f"killed-{count}") == wanted
    return found, count, calls


def _digest(path: Path) -> str:
    with RunReader.open(path) as reader:
        assert reader.status == "finished"
        return digest(reader)
