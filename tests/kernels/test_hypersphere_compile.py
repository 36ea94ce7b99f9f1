"""nGPT's steps at the widths of its 1B model are made for memory, as far as machine code can tell without a GPU."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.full
def test_todays_settings_move_16_bytes_a_thread_and_do_not_spill(tmp_path):
    script = Path(__file__).parent / "compile_hypersphere.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for line in done.stdout.splitlines():
        name, _, figures = line.partition(" {")
        found[name] = ast.literal_eval("{" + figures)
    assert len(found) == 9
    for name, figures in found.items():
        # Columns have addresses of their own, some of which may lie in memory rather than leave room for one program.
        assert figures["stack"] <= (48 if name == "normalize_columns" else 0), (name, figures)
        assert figures["LDG128"] + figures["LDGSTS"] > 0, (name, figures)
        assert figures["STG128"] > 0, (name, figures)
        assert figures["STG32"] == 0, (name, figures)
        if "backward" in name:
            assert figures["LDGSTS"] >= 3, (name, figures)
        if name.startswith("normalize"):
            assert figures["LDG64"] + figures["LDG32"] == 4, (name, figures)
        else:
            assert figures["LDG64"] + figures["LDG32"] == 0, (name, figures)
    assert found["normalize_columns"]["occupancy"] == 0.5
