"""A crash at any file operation of a checkpoint leaves the last complete one; written again it is complete."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nlrl.checkpoints import STATE, complete_checkpoints, prune_states, save_checkpoint
from nlrl.engine.base import EngineInfo
from nlrl.errors import ConfigError, StoreError
from nlrl.store import Manifest, RunReader, RunStore

EVENTS = ("open", "os.", "shutil.", "tempfile.", "sqlite3.")


def write(text: str):
    def into(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        (folder / "parts").mkdir()
        for part in ("one", "two"):
            (folder / "parts" / f"{part}.safetensors").write_text(text * 1000)

    return into


def new_store(root: Path) -> RunStore:
    return RunStore.create(root, "run", Manifest({}, 0, {}, EngineInfo("scripted", "script", "none")))


def save_second(store: RunStore) -> None:
    save_checkpoint(store, "round-2", write("new"))


def crash_at(path: Path, operation: int, do: Callable[[RunStore], object] = save_second) -> bool:
    """Do it in a child that kills itself at its `operation`-th file operation; whether it came that far."""
    child = os.fork()
    if child == 0:
        store, count = RunStore.resume(path.parent, path.name), 0

        def hook(event: str, arguments: object) -> None:
            nonlocal count
            if event.startswith(EVENTS):
                count += 1
                if count == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        do(store)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_a_crash_at_every_operation(tmp_path, row):
    operation, crashed = 0, True
    while crashed:
        operation += 1
        folder = tmp_path / str(operation)
        store = new_store(folder)
        save_checkpoint(store, "round-1", write("old"))
        store.close()
        crashed = crash_at(folder / "run", operation)
        with RunReader.open(folder / "run") as reader:
            found = complete_checkpoints(reader)
        assert list(found) == (["round-1"] if crashed else ["round-1", "round-2"])
        again = RunStore.resume(folder, "run")
        place = save_checkpoint(again, "round-2", write("new"))
        again.close()
        with RunReader.open(folder / "run") as reader:
            assert complete_checkpoints(reader)["round-2"] == place
        assert sorted(path.name for path in place.parent.iterdir()) == ["round-1", "round-2"]
        assert (place / "parts" / "two.safetensors").read_text() == "new" * 1000
    assert operation > 15
    row(
        f"killed at each of {operation - 1} file operations: the last complete checkpoint each time, then written again"
    )


def state_of(folder: Path) -> None:
    write("weights")(folder)
    (folder / STATE).mkdir()
    for part in ("parameters", "optimizer"):
        (folder / STATE / f"{part}.safetensors").write_text("state")


def test_a_crash_at_every_operation_of_pruning_leaves_what_is_needed(tmp_path):
    operation, crashed = 0, True
    while crashed:
        operation += 1
        store = new_store(tmp_path / str(operation))
        places = [save_checkpoint(store, name, state_of) for name in ("one", "two", "three")]
        store.close()
        crashed = crash_at(store.path, operation, lambda run: prune_states(run.path, ["one", "two"]))
        with RunReader.open(store.path) as reader:
            assert list(complete_checkpoints(reader).values()) == sorted(places)
        assert len(list((places[2] / STATE).iterdir())) == 2
        prune_states(store.path, ["one", "two"])
        assert not list((places[0] / STATE).iterdir()) + list((places[1] / STATE).iterdir())
        assert (places[0] / "parts" / "two.safetensors").exists()
    assert operation > 4


def test_a_checkpoint_that_changed_is_not_used(tmp_path):
    store = new_store(tmp_path)
    place = save_checkpoint(store, "round-1", write("old"))
    assert save_checkpoint(store, "round-1", write("other")) == place
    store.close()
    (place / "parts" / "one.safetensors").write_text("changed")
    with RunReader.open(tmp_path / "run") as reader, pytest.raises(StoreError, match=r"parts/one\.safetensors"):
        complete_checkpoints(reader)


@pytest.mark.parametrize("name", ["../x", "/x", "", "a/b", "A", ".x", "x" * 65])
def test_names_are_plain(tmp_path, name):
    store = new_store(tmp_path)
    with pytest.raises(ConfigError, match="checkpoint name"):
        save_checkpoint(store, name, write("x"))
    store.close()
