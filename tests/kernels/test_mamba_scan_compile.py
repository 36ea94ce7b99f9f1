"""The scan at Hymba-1.5B's shape is bound by its exponentials, as far as its machine code can tell without a GPU."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.full
def test_exponentials_take_the_time_and_registers_suffice(tmp_path):
    script = Path(__file__).parent / "compile_mamba_scan.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for line in done.stdout.splitlines():
        name, figures = line.split(" ", 1)
        found[name] = ast.literal_eval(figures)
    assert len(found) == 15
    for name, figures in found.items():
        assert figures["shared"] <= 48 * 1024, (name, figures)
    for name in ("whole", "whole_plain", "even", "local", "chunks"):
        figures = found[name]
        assert figures["registers"] <= 128, (name, figures)
        assert figures["special"] >= figures["issue"], (name, figures)
        assert figures["special"] >= 2 * figures["memory"], (name, figures)
        assert figures["spills in loop"] <= 16, (name, figures)
    for name in ("update", "update_plain"):
        assert found[name]["stack"] == 0
        assert found[name]["wide"] >= 8, "states are read and written 16 bytes at a time"
