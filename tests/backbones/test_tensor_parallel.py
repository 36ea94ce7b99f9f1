"""Every backbone split over two processes gives the tokens of the official code, or says why it cannot be split."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from goldens import FOLDERS, greedy_cases, loadable
from random_models import build

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.full]

SCRIPT = Path(__file__).parents[1] / "support" / "tensor_parallel.py"
LIMIT_S = 240
"""Of all models together; each process imports vLLM once, which takes most of the time."""
TINY = {"num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 16, "max_position_embeddings": 64}
INDIVISIBLE = {
    "hymba": TINY
    | {"num_attention_heads": 6, "num_key_value_heads": 3, "global_attn_idx": [0], "kv_reuse_group": None},
    "diff_transformer": TINY | {"num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 4},
    "ngpt": {"n_layer": 1, "n_embd": 24, "n_head": 3, "block_size": 64},
    "bimamba": {
        "n_layer": 1, "d_model": 24, "ssm_cfg": {"layer": "Mamba2", "headdim": 8, "expand": 1, "d_state": 4},
    },
}  # fmt: skip
"""Three heads, pairs of heads, or cached heads of each family: no two processes can share them."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What two processes answered for all models."""
    scratch = tmp_path_factory.mktemp("split")
    jobs = [
        {"name": name, "folder": str(loadable(name, scratch)), "prompts": [ids for ids, _ in greedy_cases(folder)]}
        for name, folder in FOLDERS.items()
    ] + [
        {"name": f"three of {family}", "folder": str(build(keys | {"model_type": family}, 0, scratch / f"3-{family}"))}
        for family, keys in INDIVISIBLE.items()
    ]
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    run_both(scratch)
    return json.loads((scratch / "result.json").read_text())


def run_both(scratch):
    """Run the script in two processes; both are gone afterwards, and so is the memory that they shared."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    files = [str(scratch / "jobs.json"), str(scratch / "result.json")]
    log = scratch / "log"
    with log.open("w") as stream:
        both = [
            subprocess.Popen(
                [sys.executable, str(SCRIPT), str(rank), str(port), *files],
                stdout=stream, stderr=subprocess.STDOUT, env=environment,
            )
            for rank in range(2)
        ]  # fmt: skip
    deadline = time.monotonic() + LIMIT_S
    try:
        # One that fails leaves the other waiting for it.
        while any(process.poll() is None for process in both) and not any(process.poll() for process in both):
            assert time.monotonic() < deadline, f"not done in {LIMIT_S} s: {log.read_text()[-3000:]}"
            time.sleep(0.1)
    finally:
        for process in both:
            process.kill()
            process.wait()
        for left in Path("/dev/shm").glob(f"{port}-*-cpushm_*"):
            left.unlink()
    assert [process.returncode for process in both] == [0, 0], log.read_text()[-3000:]


@pytest.mark.parametrize("name", FOLDERS)
def test_two_processes_give_the_tokens_of_one(answers, name):
    assert "failed" not in answers[name], answers[name]["failed"]
    assert answers[name] == {"ids": [ids for _, ids in greedy_cases(FOLDERS[name])]}


@pytest.mark.parametrize("family", INDIVISIBLE)
def test_heads_that_cannot_be_split_are_refused_in_one_sentence(answers, family):
    """In ours, or where the number of query heads suffices to tell, in vLLM's own."""
    refused = answers[f"three of {family}"].get("refused", "")
    assert re.search(r"split (evenly )?over 2|must be divisible by tensor parallel size \(2\)", refused), answers
