"""Window attention at Hymba-1.5B's shape uses what an H100 has, as far as its machine code can tell without one."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.full
def test_todays_tiles_use_the_tensor_cores_and_hardly_spill(tmp_path):
    script = Path(__file__).parent / "compile_window_attention.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for line in done.stdout.splitlines():
        dtype, what, figures = line.split(" ", 2)
        found[dtype, what] = ast.literal_eval(figures)
    assert len(found) == 20
    for (dtype, what), figures in found.items():
        assert figures["shared"] <= 227 * 1024, (dtype, what, figures)
        if dtype == "bf16":
            assert figures["stack"] <= 160, (what, figures)  # outside the inner loops
    for what in ("prefill", "prefill_small_pages", "rows", "queries", "keys", "pinned_keys"):
        assert found["bf16", what]["HGMMA"] > 0
        assert found["bf16", what]["LDGSTS"] > 0
    assert found["bf16", "decode"]["HMMA"] > 0
    assert found["bf16", "decode"]["stack"] == 0
