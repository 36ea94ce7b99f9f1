"""`nlrl serve`: the command it becomes, and the real server answering the openai client on a small random Hymba."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nlrl.errors import ConfigError, UnsafeFileError
from nlrl.registry import ResolvedModel
from nlrl.serve import serve, server_command, server_environment
from nlrl.serving import as_flags, engine_args

MODEL = ResolvedModel("tiny", "folder", Path("models/tiny"), "compact")


def test_the_users_options_come_last() -> None:
    command = server_command(MODEL, "cpu", "127.0.0.1", 8000, ("--max-model-len", "512"))
    assert command[-2:] == ["--max-model-len", "512"]
    assert command[command.index("--served-model-name") + 1] == "tiny"
    assert "--enforce-eager" in command
    assert command[command.index("--load-format") + 1] == "safetensors"


def test_flags_of_every_kind_of_value() -> None:
    flags = as_flags({"max_num_seqs": 8, "enforce_eager": False, "compilation_config": {"mode": 0}})
    assert flags == ["--max-num-seqs", "8", "--no-enforce-eager", "--compilation-config", '{"mode": 0}']


def test_graphs_are_on_for_a_gpu_unless_refused() -> None:
    on = engine_args("m", "cuda")
    assert on["compilation_config"]["cudagraph_mode"] == "FULL_AND_PIECEWISE"
    assert "enforce_eager" not in on
    assert engine_args("m", "cuda", graphs="full_decode_only")["compilation_config"]["mode"] == 0
    assert engine_args("m", "cuda", graphs="none")["enforce_eager"] is True


def test_settings_of_the_engine_in_one_process_are_not_handed_on() -> None:
    ours = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HOME": "x"}
    handed = server_environment(ours, set_by_user={"HOME"})
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in handed
    assert handed["VLLM_NO_USAGE_STATS"] == "1"
    assert server_environment(ours, set_by_user=set(ours))["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_the_server_inherits_no_key_but_its_own() -> None:
    ours = {"OPENAI_API_KEY": "canary-1", "HF_TOKEN": "canary-2", "VLLM_API_KEY": "its own", "HOME": "x"}
    assert server_environment(ours, set_by_user=set(ours)) == {
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_API_KEY": "its own",
        "HOME": "x",
    }


def test_a_folder_is_looked_at_before_the_server_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlrl.serve.prepare_environment", lambda: None)
    monkeypatch.setattr("nlrl.serve.find_device", lambda wanted: "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "hymba"}')
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(UnsafeFileError, match="is damaged"):
        serve(str(tmp_path))


def test_a_port_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one from 1 to 65535"):
        serve("hymba", port=0)


@pytest.fixture(scope="module")
def server(random_hymba: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and key of a running server, as it prints them; stopped by its process id."""
    pytest.importorskip("vllm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = random_hymba(num_hidden_layers=2, global_attn_idx=[0], kv_reuse_group=None)
    log = tmp_path_factory.mktemp("server") / "log"
    call = f"from nlrl.serve import serve; serve({str(folder)!r}, port={port}, extra=('--max-model-len', '256'))"
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", call], stdout=stream, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield _wait_until_ready(process, log, port)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path, port: int) -> tuple[str, str]:
    from urllib.error import URLError
    from urllib.request import urlopen

    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
        except (URLError, OSError):
            time.sleep(1)
    said = re.search(r"at (http://\S+/v1) with the API key (\S+)", log.read_text())
    assert said, log.read_text()[-3000:]
    return said[1], said[2]


@pytest.mark.vllm
@pytest.mark.slow
def test_a_chat_completion_obeys_its_pattern(server: tuple[str, str]) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=server[0], api_key=server[1])
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "the board is empty"}],
        max_tokens=24,
        extra_body={"structured_outputs": {"regex": "move [1-9]"}},
    )
    assert re.fullmatch("move [1-9]", answer.choices[0].message.content or "")


@pytest.mark.vllm
@pytest.mark.slow
def test_strangers_are_refused(server: tuple[str, str]) -> None:
    from openai import AuthenticationError, OpenAI

    with pytest.raises(AuthenticationError):
        OpenAI(base_url=server[0], api_key="wrong").models.list()
