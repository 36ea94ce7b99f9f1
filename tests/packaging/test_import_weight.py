"""What an import costs: the light parts must load, and work, where there is no torch at all."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "vllm", "transformers")
LIGHT = (
    "nlrl",
    "nlrl.cli",
    "nlrl.config",
    "nlrl.doctor",
    "nlrl.iterate",
    "nlrl.registry",
    "nlrl.run",
    "nlrl.store",
    "nlrl.engine.http",
    "nlrl.engine.oracle",
    "nlrl_backbones",
    "nlrl_backbones.vllm_plugin",
    "nlrl_envs.maze",
    "nlrl_prompts",
)
BLOCKED = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", LIGHT)
def test_an_import_loads_nothing_heavy(module):
    done = python(f"import {module}, sys; print(*(name for name in {HEAVY!r} if name in sys.modules))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_the_base_install_has_a_command_line_without_torch():
    done = python(BLOCKED + "from nlrl.cli import main; main()", "--help")
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_a_missing_engine_is_one_sentence():
    code = BLOCKED + "from nlrl.cli import main; main()"
    done = python(code, "run", "maze", "--engine", "torch", "--backbone", ".", "--plain")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
