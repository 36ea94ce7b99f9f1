"""Canary keys through every success and failure: none in anything written, nor in a child that needs none."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from arithmetic_server import OVER_HTTP, arithmetic_answers
from scripted_server import Script, ScriptedServer, chat

NLRL = [sys.executable, "-m", "nlrl.cli"]
CANARIES = {
    "NLRL_API_KEY": "sk-canary-one-0123456789abcdef",
    "VALUE_API_KEY": "sk-canary-six-0123456789abcdef",
    "TEACHER_TOKEN": "sk-canary-seven-0123456789abcd",
    "OPENAI_API_KEY": "sk-canary-two-0123456789abcdef",
    "HF_TOKEN": "hf_canarythree0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "canary/four+0123456789abcdef",
    "DB_PASSWORD": "canary five 0123456789",
}
CRASH = """
import logging, os, sys
logging.basicConfig(level=logging.DEBUG)
from nlrl import cli, session
async def crash(*args):
    key = os.environ["NLRL_API_KEY"]
    logging.getLogger("httpx2").debug("Authorization: %s", key)
    try:
        raise ValueError(f"Illegal header value {key!r}")
    except ValueError as error:
        logging.exception("failed with %s", error)
        raise RuntimeError(f"{os.environ['HF_TOKEN']} {os.environ['DB_PASSWORD']}") from error
session.run_recorded = crash
sys.argv = ["nlrl", "run", "maze", "--engine", "oracle"]
cli.main()
"""

SEVERAL = """
import sys
from nlrl import cli
for line in sys.argv[1:]:
    sys.argv = ["nlrl", *line.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, (line, end.code)
"""


class Trail:
    """Runs commands with the canaries in their environment and keeps all that they say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said = folder, []

    def run(self, *command: str, code: int | None = 0, **changes: str) -> str:
        environment = {**os.environ, **CANARIES, **changes}
        done = subprocess.run(command, capture_output=True, env=environment, cwd=self.folder, timeout=120, check=False)
        said = (done.stdout + done.stderr).decode()
        self.said.append(said)
        assert code is None or done.returncode == code, said
        return said

    def check(self) -> int:
        """No canary in what was said or written; returns the bytes looked at."""
        written = b"".join(path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file())
        everything = written + "\n".join(self.said).encode()
        for name, canary in CANARIES.items():
            for form in (canary, canary[:20], json.dumps(canary)[1:-1]):
                assert form.encode() not in everything, name
        return len(everything)


def echoing(script: Script):
    """Answers that repeat the key, in the reply and in its reason to end."""
    right = arithmetic_answers(0)

    def answer(body):
        key = max(script.keys, key=len).removeprefix("Bearer ")
        if len(script.seen) % 7 == 0:
            return chat(f"Your key is {key}", finish_reason="stop")
        if len(script.seen) % 7 == 1:
            return chat("", finish_reason=key)
        return right(body)

    return answer


def test_no_key_is_ever_written(tmp_path, row):
    trail = Trail(tmp_path)
    script = Script(lambda body: chat(""), owner="vllm")
    script.answer = echoing(script)
    options = [*OVER_HTTP, "-s", "env.starts=1", "-s", "baseline=false", "--plain", "--runs", "runs"]
    with ScriptedServer(script) as server:
        place = ["run", "maze", "--base-url", server.url, *options]
        trail.run(*NLRL, *place, "--id", "good", code=None)
        assert any(CANARIES["NLRL_API_KEY"] in key for key in script.keys)
        trail.run(*NLRL, *place, "--id", "newline", NLRL_API_KEY=f"\n{CANARIES['NLRL_API_KEY']}\n", code=None)
        broken = CANARIES["NLRL_API_KEY"].replace("-one", "\none")
        assert "set it again" in trail.run(*NLRL, *place, "--id", "broken", NLRL_API_KEY=broken, code=2)
        script.fault = lambda number, body: "401 echo"
        assert "refuses the key" in trail.run(*NLRL, *place, "--id", "refused", code=2)
        in_url = server.url.replace("http://", f"http://me:{CANARIES['NLRL_API_KEY']}@")
        assert "password" in trail.run(*NLRL, "run", "maze", "--base-url", in_url, *options, code=2)
    looks = [
        "runs",
        "replay good",
        "replay good --svg game.svg",
        "replay good --cast game.cast",
        "export good chat.jsonl",
    ]
    trail.run(sys.executable, "-c", SEVERAL, *(f"{look} --runs runs" for look in looks))
    assert {"game.svg", "chat.jsonl"} <= {path.name for path in tmp_path.iterdir()}
    said = trail.run(sys.executable, "-c", CRASH, code=1)
    assert "RuntimeError: [HF_TOKEN] [DB_PASSWORD]" in said
    assert "Illegal header value '[NLRL_API_KEY]'" in said
    looked_at = trail.check()
    row(f"{len(CANARIES)} canaries, {len(trail.said)} commands, {looked_at:,} bytes written or said: 0 occurrences")


def test_each_role_sends_its_own_key_and_none_is_written(tmp_path, row):
    trail, right = Trail(tmp_path), arithmetic_answers(0)
    scripts = {name: Script(right) for name in ("NLRL_API_KEY", "VALUE_API_KEY", "TEACHER_TOKEN")}
    for script in scripts.values():
        script.answer = echoing(script)
    options = ["-s", "env.starts=1", "-s", "baseline=false", "--plain", "--runs", "runs"]
    with contextlib.ExitStack() as stack:
        policy, value, teacher = (stack.enter_context(ScriptedServer(script)).url for script in scripts.values())
        roles = [
            f"roles.{role}.{key}={said}"
            for role, url, own in (("value", value, "VALUE_API_KEY"), ("teacher", teacher, "TEACHER_TOKEN"))
            for key, said in (("base_url", url), ("api_key_env", own), ("prompts", "arithmetic"), ("attempts", "8"))
        ]
        words = [word for role in roles for word in ("-s", role)]
        trail.run(*NLRL, "run", "maze", "--base-url", policy, *OVER_HTTP, *options, *words, code=None)
        for name, script in scripts.items():
            assert script.keys == {f"Bearer {CANARIES[name]}"}, name
    looked_at = trail.check()
    row(f"three servers, a key each: each saw its own alone, {looked_at:,} bytes written or said: 0 occurrences")


def test_children_that_need_no_key_get_none(tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\necho A GPU\n")
    tool.chmod(0o755)
    script = "from nlrl.machine import look_around; print(look_around().gpu)"
    trail = Trail(tmp_path)
    assert "A GPU" in trail.run(sys.executable, "-c", script, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "PATH=" in (tmp_path / "environment").read_text()
    trail.check()


def test_vllm_is_started_without_keys(monkeypatch):
    from nlrl.redact import hidden_secrets, redact, secrets, without_secrets

    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MONKEY", "banana bread")
    with hidden_secrets():
        assert not set(CANARIES) & set(os.environ)
        assert os.environ["MONKEY"] == "banana bread"
    assert set(CANARIES) <= set(secrets())
    assert not set(CANARIES) & set(without_secrets())
    assert "MONKEY" not in secrets()
    assert redact(f"a {CANARIES['HF_TOKEN']} b") == "a [HF_TOKEN] b"


@pytest.mark.parametrize("name", ["PATH", "KEYBOARD", "TOKENIZERS_PARALLELISM", "MONKEYS", "HOME"])
def test_ordinary_variables_are_no_secrets(name):
    from nlrl.redact import secrets

    assert not secrets({name: "some ordinary value"})
