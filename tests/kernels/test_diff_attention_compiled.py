"""The machine code of differential attention for an H100: on the tensor cores, and without spills where time goes."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    script = Path(__file__).parent / "compile_diff_attention.py"
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {kernel["name"]: kernel for kernel in map(json.loads, done.stdout.splitlines())}


def test_what_is_launched_spills_nothing_inside_its_loops(found):
    launched = [kernel for name, kernel in found.items() if name.startswith(("prefill", "decode"))]
    assert len(launched) == 5
    for kernel in launched:
        assert kernel["registers"] <= 255
        assert kernel["shared"] <= 227 * 1024
        assert len(kernel["loops"]) == (2 if kernel["name"].startswith("decode") else 4)
        for loop in kernel["loops"]:
            assert loop["spills"] == 0, kernel
            assert loop["copies"] > 0, kernel


def test_prefill_multiplies_by_wgmma_and_decode_by_mma(found):
    """A decode's tile of 16 rows is smaller than wgmma's 64."""
    for name, kernel in found.items():
        kind = "mma" if name.startswith("decode") else "wgmma"
        assert all(loop[kind] > 0 for loop in kernel["loops"]), kernel


def test_the_walks_of_maps_in_turn_are_shorter_than_the_other_ways(found):
    """Instructions a key and map, in the loop over keys that every query sees: what a warp's scheduler issues."""
    in_turn = found["prefill, packed"]["loops"][0]["instructions"] / 64
    sums, values = (found["sums first, packed"]["loops"][i]["instructions"] / 32 for i in (0, 2))
    assert in_turn < (sums + values) / 2
