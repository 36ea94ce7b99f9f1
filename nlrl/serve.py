"""`nlrl serve`: vLLM's own OpenAI-compatible server on a model in the box, a folder or a hub model."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Sequence
from typing import NoReturn

from nlrl.engine.vllm_setup import ENVIRONMENT, find_device, prepare_environment
from nlrl.errors import ConfigError
from nlrl.model_files import check_model_folder
from nlrl.redact import secrets as secrets_of
from nlrl.registry import ResolvedModel, resolve_model
from nlrl.serving import as_flags, engine_args

_OF_ONE_PROCESS = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")
"""Settings of the engine in our own process that a server must not inherit."""
_SERVER_KEY = "VLLM_API_KEY"
"""Where vLLM's server looks for the key that its clients must show."""


def serve(model: str, host: str = "127.0.0.1", port: int = 8000, extra: Sequence[str] = ()) -> NoReturn:
    """Become vLLM's server for `model`; does not return.

    The process is replaced, so Ctrl-C and signals reach the server itself. The key that clients need is printed once
    with the address, and given to the server through its environment, where other users cannot read it.

    Args:
        model: a boxed id, a folder, or a hub id.
        host: address to listen on; the default is reachable from this machine alone.
        port: TCP port.
        extra: further options for vLLM's server, which win over ours.

    Raises:
        EngineUnavailableError: vLLM is not installed.
        ConfigError, EngineError: there is no such model, or it cannot be fetched.
        UnsafeFileError: a file of the model's could do harm, or is damaged.
    """
    if not 0 < port < 65536:
        raise ConfigError(f"Port {port} does not exist; choose one from 1 to 65535.")
    set_before = set(os.environ)
    prepare_environment()
    device = find_device("auto")
    resolved = resolve_model(model).fetch()
    if resolved.path is not None and resolved.source != "boxed":
        check_model_folder(resolved.path)
    environment = server_environment(dict(os.environ), set_before)
    key = _key_of(extra) or environment.setdefault(_SERVER_KEY, secrets.token_urlsafe(24))
    shown = f"[{host}]" if ":" in host else host
    print(f"Serving {resolved.id} at http://{shown}:{port}/v1 with the API key {key}", flush=True)
    command = server_command(resolved, device, host, port, extra)
    os.execve(sys.executable, command, environment)


def server_command(model: ResolvedModel, device: str, host: str, port: int, extra: Sequence[str]) -> list[str]:
    """The command line of the server; `extra` comes last, so it wins."""
    # vLLM's wheel for CPUs has another distribution name, under which its `vllm serve` cannot find its own version.
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
    address = ["--served-model-name", model.id, "--host", host, "--port", str(port)]
    arguments = engine_args(model.path or model.id, device) | {"load_format": "safetensors"}  # never a pickle
    return [*command, *as_flags(arguments), *address, *extra]


def server_environment(environment: dict[str, str], set_by_user: set[str]) -> dict[str, str]:
    """The environment of the server: ours without what only an engine in one process wants, and without our secrets.

    The model is on this machine by then, so the server needs no key but its own.
    """
    assert set(_OF_ONE_PROCESS) <= set(ENVIRONMENT)
    hidden = secrets_of(environment).keys() - {_SERVER_KEY}
    ours = {name for name in _OF_ONE_PROCESS if name not in set_by_user}
    kept = {name: value for name, value in environment.items() if name not in hidden | ours}
    return {"VLLM_LOGGING_LEVEL": "WARNING", **kept}


def _key_of(extra: Sequence[str]) -> str | None:
    """The key in `--api-key KEY` or `--api-key=KEY`, which vLLM then takes from there."""
    for position, option in enumerate(extra):
        if option == "--api-key" and position + 1 < len(extra):
            return extra[position + 1]
        if option.startswith("--api-key="):
            return option.partition("=")[2]
    return None
