"""Each loop of the paper for one iteration on a real pretrained model, by its recipe, with distillation by LoRA.

Few games, for this model writes some tens of tokens a second on two cores. Passes of 1,024 tokens bound the memory of a
training: a vocabulary of 49,152 makes the logits of 8,192 tokens, the default, 1.6 GB a copy.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_model import model_folder

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.real]

SMALL = (
    "training.iterations=1", "distil.epochs=1", "distil.lora_rank=8", "distil.learning_rate=1e-4", "distil.batch=8",
    "distil.tokens_per_pass=1024",
)  # fmt: skip
LOOPS = {
    "tic_tac_toe": ("training.games=2", "training.samples=1", "training.evaluation_games=1"),
    "breakthrough": (
        "training.positions=3", "training.held_out=3", "training.games=2", "look_ahead.steps=2",
        "look_ahead.rollout=random", "env.opponent=random", "exact=false",
    ),
    "maze_policy_iteration": (
        "env.id=frozen_lake", "env.map=4x4", "env.options.horizon=2", "env.history_items=1", "env.starts=1",
        "look_ahead.variations=1", "look_ahead.steps=1", "training.evaluation_games=1",
    ),
}  # fmt: skip
STUDENTS = {"tic_tac_toe": ("value", "policy"), "breakthrough": ("value",), "maze_policy_iteration": ("policy",)}


@pytest.mark.parametrize("recipe", LOOPS)
def test_one_iteration_trains_and_evaluates(recipe: str, tmp_path: Path, row: Callable[[str], None]) -> None:
    settings = [part for setting in (*SMALL, *LOOPS[recipe]) for part in ("-s", setting)]
    nlrl = [sys.executable, "-c", "from nlrl.cli import main; main()", "run", recipe]
    model = ["--backbone", str(model_folder()), "--plain", "--runs", str(tmp_path)]
    done = subprocess.run([*nlrl, *model, *settings], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for student in STUDENTS[recipe]:
        assert re.search(rf"{student} student learned [1-9]\d* examples, loss \d", done.stdout), done.stdout[-2000:]
    said = re.search(r"Replies: .*(?:\n.*)*?Tokens: .*", done.stdout)
    assert said, done.stdout[-2000:]
    row(" ".join(said[0].split()))
