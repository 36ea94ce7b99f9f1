"""vLLM itself killed in the middle of a batch: what it had answered stays, and the run goes on to its end."""

import os
import signal
import time

import pytest
from killing import is_whole, recorded_calls, start

from nlrl.store import RunReader

pytest.importorskip("vllm")
RUN = ["maze", "--backbone", "hymba", "--map", "umaze", "-s", "baseline=false", "-s", "env.starts=3"]


@pytest.mark.vllm
@pytest.mark.torture
def test_vllm_killed_in_the_middle_of_a_batch(tmp_path, row):
    place, log = ["--runs", str(tmp_path), "--plain"], tmp_path / "log"
    running = start(["run", *RUN, "--id", "run", *place], log)
    while len(recorded_calls(tmp_path / "run")) < 60:
        assert running.is_alive(), log.read_text()
        time.sleep(0.01)
    before = answers(tmp_path / "run")
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    running.join()
    assert is_whole(tmp_path / "run")
    kept = answers(tmp_path / "run")
    assert kept.items() >= before.items()
    resumed = start(["resume", "run", *place], log)
    resumed.join(300)
    assert resumed.exitcode == 0, log.read_text()
    after = answers(tmp_path / "run")
    assert after.items() >= kept.items()
    with RunReader.open(tmp_path / "run") as reader:
        assert reader.status == "finished"
        assert reader.counts() == (3, 3)
    row(f"killed after {len(kept)} of {len(after)} answers: all of them kept, the run ended as planned")


def answers(path):
    with RunReader.open(path) as reader:
        return {call.key: call.completion for call in reader.calls()}
