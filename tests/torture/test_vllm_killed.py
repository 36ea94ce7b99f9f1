"""vLLM itself killed in the middle of a batch: what it had answered stays, and the run goes on to its end."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

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


KEY = "a-key-for-this-test-alone"


def serve(port: int, log: Path) -> subprocess.Popen[bytes]:
    """`nlrl serve hymba`, in a session of its own, without waiting for it."""
    command = [sys.executable, "-m", "nlrl.cli", "serve", "hymba", "--port", str(port)]
    with log.open("ab") as said:
        environment = {**os.environ, "VLLM_API_KEY": KEY}
        return subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)


def engine_of(server: subprocess.Popen[bytes]) -> int:
    """The process of vLLM's engine, a child of the server."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, status = (folder / "comm").read_text(), (folder / "stat").read_text()
        except OSError:
            continue
        if name.startswith("VLLM::EngineCor") and int(status.rpartition(")")[2].split()[1]) == server.pid:
            return int(folder.name)
    raise AssertionError("The server has no engine process.")


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 600
    while time.monotonic() < until:
        assert server.poll() is None
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("The server did not come up.")


@pytest.mark.vllm
@pytest.mark.torture
def test_the_engine_process_of_a_server_killed_in_the_middle_of_a_batch(tmp_path, row, monkeypatch):
    """The run itself lives: it waits while nothing answers, and goes on when another server stands there."""
    monkeypatch.setenv("NLRL_API_KEY", KEY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log, url = tmp_path / "log", f"http://127.0.0.1:{port}/v1"
    servers = [serve(port, tmp_path / "server")]
    try:
        wait_for(port, servers[0])
        options = ["-s", "baseline=false", "-s", "env.starts=3", "-s", "env.map=umaze", "-s", "engine.http_attempts=20"]
        place = ["--id", "run", "--runs", str(tmp_path), "--plain"]
        running = start(["run", "maze", "--base-url", url, *options, *place], log)
        while len(recorded_calls(tmp_path / "run")) < 60:
            assert running.is_alive(), log.read_text()
            time.sleep(0.01)
        os.kill(engine_of(servers[0]), signal.SIGKILL)
        kept = answers(tmp_path / "run")
        servers[0].wait(120)
        servers.append(serve(port, tmp_path / "server"))
        running.join(900)
        assert running.exitcode == 0, log.read_text()
    finally:
        for server in servers:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(60)
    after = answers(tmp_path / "run")
    assert after.items() >= kept.items()
    with RunReader.open(tmp_path / "run") as reader:
        assert (reader.status, reader.counts()) == ("finished", (3, 3))
    row(f"engine process killed after {len(kept)} of {len(after)} answers: all kept, the run waited and went on")
