"""`nlrl serve` on the real pretrained model, in a process of its own that ends by its own id."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

NLRL = (sys.executable, "-c", "from nlrl.cli import main; main()")
START_S = 300


@contextmanager
def serving(folder: Path, log: Path, settings: Mapping[str, Any]) -> Iterator[str]:
    """Gives the address of the server's API; its key is in NLRL_API_KEY meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    of_one_process = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")  # other tests may have set them
    environment = {name: value for name, value in os.environ.items() if name not in of_one_process}
    options = [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    with log.open("w") as stream:
        command = [*NLRL, "serve", str(folder), "--port", str(port), *options]
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        address, key = _address(process, log, port)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NLRL_API_KEY", key)
            yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _address(process: Any, log: Path, port: int) -> tuple[str, str]:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
        except OSError:
            time.sleep(0.5)
    said = re.search(r"at (http://\S+/v1) with the API key (\S+)", log.read_text())
    assert said, log.read_text()[-3000:]
    return said[1], said[2]
