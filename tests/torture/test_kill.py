"""A run that is killed again and again ends as if it never had been, with no answer lost or asked twice."""

from pathlib import Path

import numpy as np
import pytest
from arithmetic_server import OVER_HTTP, arithmetic_answers
from killing import Killed, kill_until_done, recorded_calls, scripted
from scripted_server import ScriptedServer

from nlrl.store import RunReader
from nlrl.store_export import digest

SIZES = [pytest.param(3, 1, id="short"), pytest.param(200, 6, id="full", marks=pytest.mark.torture)]
AT_ONCE = 64
"""Requests in flight at most: `engine.at_once`."""


@pytest.mark.parametrize(("kills", "games"), SIZES)
def test_sigkill_at_random_moments(kills, games, tmp_path: Path, row):
    rng, all_found, runs = np.random.default_rng(7), Killed(), 0
    with ScriptedServer(scripted(arithmetic_answers())) as server:
        arguments = ["maze", "--base-url", server.url, *OVER_HTTP, "-s", f"env.starts={games}"]
        kill_until_done(server, tmp_path, "never-killed", arguments, rng, 0)
        wanted, calls = _digest(tmp_path / "never-killed"), len(recorded_calls(tmp_path / "never-killed"))
        assert calls > 20 * games
        while all_found.kills < kills:
            runs += 1
            found = kill_until_done(server, tmp_path, f"killed-{runs}", arguments, rng, kills - all_found.kills)
            assert _digest(tmp_path / f"killed-{runs}") == wanted
            all_found.add(found)
    row(
        f"{all_found.kills} kills over {runs} runs of {calls} calls: every record equals the never-killed one row for "
        f"row; files damaged {all_found.damaged}, answers lost {all_found.lost}, asked again {all_found.asked_twice} "
        f"(in flight at a kill, most at one: {all_found.most_at_one_kill})"
    )
    assert (all_found.damaged, all_found.lost) == (0, 0)
    assert all_found.most_at_one_kill <= AT_ONCE


def _digest(path: Path) -> str:
    with RunReader.open(path) as reader:
        assert reader.status == "finished"
        return digest(reader)
