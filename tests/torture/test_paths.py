"""Two hundred strange names in every place that makes a path: nothing is written outside the folder of runs."""

import random
import shutil
from pathlib import Path

import pytest
from small_runs import config, play
from typer.testing import CliRunner

from nlrl import cli
from nlrl.errors import NlrlError
from nlrl.store import RunReader, list_runs
from nlrl.store_schema import RUN_ID

NAMES = [
    "../x", "..", ".", "/tmp/x", "a/b", "a\\b", "a\x00b", "CON", "con", "nul.txt", "com1", "x" * 300, "", " ", "a b",
    "é", "\u202ex", "x.", "-x", "--yes", "~", "~root", "$HOME", "`id`", "a\nb", "%2e%2e", "..%2fx", "x\u200b", "*", "?",
    "file:///x", "a:b", "UPPER", ".hidden", "_x", "runs/../../x", "\ud800", "\uff0e\uff0e/x",
]  # fmt: skip
SIZES = [pytest.param(16, id="short"), pytest.param(200, id="full", marks=pytest.mark.torture)]


def names(count: int) -> list[str]:
    rng = random.Random(2)
    parts = [*NAMES, "x", "/", "..", "\\", "\u2215"]
    made = ("".join(rng.choices(parts, k=3)) for _ in range(2 * count))
    return [*NAMES, *(name for name in made if not RUN_ID.fullmatch(name))][:count]


def listing(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with something to spoil on each side of the runs."""
    root = tmp_path_factory.mktemp("world")
    (root / "x").write_text("precious")
    (root / "runs").mkdir()
    play(root / "runs", "good", config(env__starts=1, baseline=False))
    return root


@pytest.mark.parametrize("count", SIZES)
def test_nothing_is_written_outside_the_runs(count, world, row, monkeypatch):
    monkeypatch.chdir(world)
    before, runner, refused = listing(world), CliRunner(), 0
    for name in names(count):
        for command in (
            ["run", "maze", "--engine", "oracle", "--id", name, "--runs", "runs", "-s", "env.starts=1", "--plain"],
            ["resume", name, "--runs", "runs"],
            ["replay", name, "--runs", "runs"],
            ["export", name, "out.jsonl", "--runs", "runs"],
            ["rm", name, "--yes", "--runs", "runs"],
        ):
            try:
                result = runner.invoke(cli.app, command)
            except (ValueError, UnicodeError):  # of the test runner: no process can be given such an argument
                refused += 1
                continue
            assert result.exit_code != 0, command
            assert result.exception is None or isinstance(result.exception, NlrlError | SystemExit), result.exception
            refused += 1
        assert listing(world) == before, name
    row(f"{count} names in 5 commands: {refused} refused, no file made, changed or removed")


def test_a_folder_that_is_a_link_is_no_run(world, tmp_path):
    shutil.copytree(world / "runs" / "good", tmp_path / "elsewhere")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "good").symlink_to(tmp_path / "elsewhere")
    before = listing(tmp_path / "elsewhere")
    assert list_runs(runs) == []
    for command in ("rm", "resume", "replay"):
        result = CliRunner().invoke(
            cli.app, [command, "good", *(["--yes"] if command == "rm" else []), "--runs", str(runs)]
        )
        assert isinstance(result.exception, NlrlError), (command, result.output)
    result = CliRunner().invoke(cli.app, ["run", "maze", "--engine", "oracle", "--id", "good", "--runs", str(runs)])
    assert "exists already" in str(result.exception)
    assert listing(tmp_path / "elsewhere") == before


def test_a_link_in_place_of_the_lock_or_the_record_is_not_followed(world, tmp_path):
    shutil.copytree(world / "runs" / "good", tmp_path / "runs" / "good")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock = tmp_path / "runs" / "good" / "run.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(victim)
    result = CliRunner().invoke(cli.app, ["rm", "good", "--yes", "--runs", str(tmp_path / "runs")])
    assert isinstance(result.exception, NlrlError)
    assert victim.read_text() == "precious"
    record = tmp_path / "runs" / "good" / "run.sqlite"
    record.rename(tmp_path / "moved.sqlite")
    record.symlink_to(tmp_path / "moved.sqlite")
    with pytest.raises(NlrlError, match="no recorded run"):
        RunReader.open(tmp_path / "runs" / "good")
