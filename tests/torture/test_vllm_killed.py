"""vLLM itself killed in the middle of a batch: what it had answered stays, and the run goes on to its end."""

import os
import signal
import subprocess
import sys
import time

import pytest
from killing import is_whole, recorded_calls

from nlrl.store import RunReader

pytest.importorskip("vllm")
RUN = ["maze", "--backbone", "hymba", "--map", "umaze", "-s", "baseline=false", "-s", "env.starts=3"]


@pytest.mark.vllm
@pytest.mark.torture
def test_vllm_killed_in_the_middle_of_a_batch(tmp_path, row):
    place = ["--runs", str(tmp_path), "--plain"]
    nlrl = [sys.executable, "-m", "nlrl.cli"]
    with subprocess.Popen([*nlrl, "run", *RUN, "--id", "run", *place], stdout=subprocess.DEVNULL) as running:
        while len(recorded_calls(tmp_path / "run")) < 60:
            assert running.poll() is None
            time.sleep(0.01)
        before = answers(tmp_path / "run")
        os.kill(running.pid, signal.SIGKILL)
    assert is_whole(tmp_path / "run")
    kept = answers(tmp_path / "run")
    assert kept.items() >= before.items()
    subprocess.run([*nlrl, "resume", "run", *place], check=True, timeout=300, stdout=subprocess.DEVNULL)
    after = answers(tmp_path / "run")
    assert after.items() >= kept.items()
    with RunReader.open(tmp_path / "run") as reader:
        assert reader.status == "finished"
        assert reader.counts() == (3, 3)
    row(f"killed after {len(kept)} of {len(after)} answers: all of them kept, the run ended as planned")


def answers(path):
    with RunReader.open(path) as reader:
        return {call.key: call.completion for call in reader.calls()}
