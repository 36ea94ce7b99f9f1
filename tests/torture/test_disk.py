"""A disk that fills, may not be written, or goes read-only: one sentence, exit code 3, and the run can go on."""

import os
import random
import subprocess
from pathlib import Path

import pytest
from killing import is_whole, start
from small_runs import digest_of

from nlrl.store import RunReader

SIZES = [pytest.param(2, id="short"), pytest.param(50, id="full", marks=pytest.mark.torture)]
SMALL = ["--engine", "oracle", "-s", "env.map=umaze", "-s", "look_ahead.variations=2", "-s", "look_ahead.steps=1"]
MIB = 1 << 20
FAULTS = ("full", "read-only", "no permission")


@pytest.fixture
def disk(tmp_path):
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def run(arguments, log: Path) -> tuple[int, str]:
    log.unlink(missing_ok=True)
    process = start(arguments, log)
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode, log.read_text()


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@pytest.mark.parametrize("rounds", SIZES)
def test_every_fault_of_the_disk_is_one_sentence_and_passes(rounds, disk, tmp_path, row):
    rng, log, done = random.Random(3), tmp_path / "log", dict.fromkeys(FAULTS, 0)
    arguments = ["run", "maze", *SMALL, "-s", "env.starts=2", "--plain"]
    assert run([*arguments, "--runs", str(tmp_path), "--id", "whole"], log)[0] == 0
    wanted, needed = digest_of(tmp_path, "whole"), (tmp_path / "whole" / "run.sqlite").stat().st_size
    for number in range(rounds):
        fault, name = FAULTS[number % 2 if number % 10 != 9 else 2], f"run-{number}"
        runs = disk / "runs"
        runs.mkdir(exist_ok=True)
        if fault == "full":
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "filler").write_bytes(bytes(free - rng.randrange(needed // 3, needed)))
        elif fault == "no permission":
            runs.rmdir()
            runs.write_text("in the way")
        else:
            run([*arguments, "-s", f"budget.calls={rng.randrange(20, 90)}", "--runs", str(runs), "--id", name], log)
            remount(disk, "ro")
        begin = ["resume", name, "--plain"] if fault == "read-only" else [*arguments, "--id", name]
        code, said = run([*begin, "--runs", str(runs)], log)
        assert code == 3, said
        assert [line for line in said.splitlines() if line.startswith("nlrl: ")] == said.splitlines()[-1:]
        assert "Traceback" not in said
        if fault == "read-only":
            remount(disk, "rw")
        (disk / "filler").unlink(missing_ok=True)
        if fault == "no permission":
            runs.unlink()
        begun = (runs / name).is_dir()
        assert not begun or is_whole(runs / name)
        again = ["resume", name, "-s", "budget.calls=99999", "--plain"] if begun else [*arguments, "--id", name]
        code, said = run([*again, "--runs", str(runs)], log)
        assert code == 0, said
        assert digest_of(runs, name) == wanted
        done[fault] += 1
        with RunReader.open(runs / name) as reader:
            assert reader.status == "finished"
        for file in (runs / name).iterdir():
            file.unlink()
        (runs / name).rmdir()
    row(
        f"{rounds} runs on a disk of 8 MiB, {done}: each time one sentence and exit code 3, the "
        "record whole, and the run ended as planned once the fault was gone"
    )
