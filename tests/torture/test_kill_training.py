"""A run killed while a student trains, writes its checkpoint or puts its weights back ends as the never-killed one."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("accelerate")

from killing import is_whole, start
from tiny_students import make_student

from nlrl.store import RunReader
from nlrl.store_export import digest
from nlrl.store_loops import trainings

KILLS = 12
RUN = [
    "tic_tac_toe", "--engine", "oracle", "-s", "roles.value.kind=torch", "-s", "roles.value.prompts=arithmetic",
    "-s", "roles.value.attempts=1", "-s", "training.iterations=2", "-s", "training.games=4", "-s", "training.samples=2",
    "-s", "training.evaluation_games=2", "-s", "distil.epochs=8", "-s", "distil.batch=8", "-s", "distil.device=cpu",
    "-s", "distil.threads=1", "-s", "exact=false",
]  # fmt: skip


@pytest.mark.torture
def test_sigkill_around_trainings(tmp_path: Path, row):
    base = make_student("transformer", tmp_path / "tiny")
    arguments = [*RUN, "-s", f"roles.value.backbone={base}"]
    whole = start(["run", *arguments, "--id", "whole", *place(tmp_path)], tmp_path / "whole.log")
    whole.join(300)
    assert whole.exitcode == 0, (tmp_path / "whole.log").read_text()
    rng, kills, runs = np.random.default_rng(5), 0, 0
    while kills < KILLS:
        runs += 1
        kills += killed(f"run-{runs}", arguments, tmp_path, rng, KILLS - kills)
        assert digest_of(tmp_path / f"run-{runs}") == digest_of(tmp_path / "whole")
    with RunReader.open(tmp_path / "whole") as reader:
        taught = [one for one in trainings(reader) if one.student == "value"]
        assert [one.checkpoint for one in taught] == ["value-1", "value-2"]
        assert all(one.losses_T for one in taught)
    row(f"{kills} kills around the trainings of {runs} runs: every record equals the never-killed one row for row")


def killed(run_id: str, arguments: list[str], root: Path, rng: np.random.Generator, kills: int) -> int:
    """Run and kill up to so many times, each a moment after a training began; returns how often."""
    begun, count, log = False, 0, root / f"{run_id}.log"
    while True:
        rest = ["resume", run_id] if begun else ["run", *arguments, "--id", run_id]
        process, seen = start([*rest, *place(root)], log), trained(log)
        while count < kills and process.is_alive() and trained(log) == seen:
            time.sleep(0.005)
        process.join(float(rng.uniform(0, 1.5)) if count < kills else 300)
        if not process.is_alive():
            assert process.exitcode == 0, log.read_text()
            return count
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        begun, count = True, count + 1
        assert is_whole(root / run_id)


def place(root: Path) -> list[str]:
    return ["--runs", str(root), "--plain"]


def trained(log: Path) -> int:
    """Trainings that began, by what the run said."""
    return log.read_text().count("training the value student") if log.exists() else 0


def digest_of(path: Path) -> str:
    with RunReader.open(path) as reader:
        assert reader.status == "finished"
        return digest(reader)
