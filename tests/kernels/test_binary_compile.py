"""What the machine code of binary layers must keep to on an H100; compiled here, run nowhere."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_signs_go_from_registers_into_the_tensor_core_and_nothing_spills(tmp_path):
    script = Path(__file__).parent / "compile_binary.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 22
    assert all("'stack': 0," in line for line in lines)
    products = [line for line in lines if "weights" in line]
    assert len(products) == 16
    assert all("GMMA': " in line for line in products)
    # Only what scales x itself stores anything to shared memory, and that is x.
    assert all(("'STS': 0," in line) == ("fused=True" not in line) for line in products)
