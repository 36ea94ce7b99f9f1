"""make, without letting it install anything."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def clone(tmp_path) -> Path:
    """What make reads, in a folder where nothing has been installed."""
    for name in ("Makefile", "pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def test_help_describes_every_target():
    declared = set(re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    described = set(re.findall(r"^  make (\S+) +\S", make("help").stdout, re.MULTILINE))
    assert {"demo", "test", "check", "lock", "doctor"} <= declared
    assert described == declared


def test_an_unknown_device_is_refused_in_one_sentence():
    done = make("install", "DEVICE=tpu")
    assert done.returncode != 0
    assert "use DEVICE=cpu or DEVICE=gpu" in done.stderr


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_everything_is_installed_from_locks(clone, device):
    steps = make("-n", "test", f"DEVICE={device}", cwd=clone).stdout
    assert f"requirements/{device}.lock" in steps
    assert ("torch-cpu.lock" in steps) == (device == "cpu")
    installs = [line for line in steps.splitlines() if re.search(r"-m pip .* install ", line)]
    unlocked = [line for line in installs if "--require-hashes" not in line and "--editable ." not in line]
    assert installs
    assert [line for line in unlocked if "--python" not in line] == []


def test_a_cpu_environment_is_not_turned_into_a_gpu_one(clone):
    stamps = clone / ".venv" / ".stamps"
    stamps.mkdir(parents=True)
    for name in ("venv", "cpu"):
        (stamps / name).touch()
    done = make("install", "DEVICE=gpu", cwd=clone)
    assert done.returncode != 0
    assert "run make clean first" in done.stdout


def test_an_old_python_is_named(clone):
    old = clone / "oldpython"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("install", "DEVICE=cpu", f"PYTHON={old}", cwd=clone)
    assert done.returncode != 0
    assert "older than Python 3.11" in done.stdout


def test_continuous_integration_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.search(r"^exec make test$", script.read_text(), re.MULTILINE)
