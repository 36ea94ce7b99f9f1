"""Killing a run again and again at random moments, and what must hold of its record afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scripted_server import Script, ScriptedServer

from nlrl.store import RunReader
from nlrl.store_schema import FILE_NAME

_SPAWN = multiprocessing.get_context("forkserver")
# The children are forked from a process that has imported all this, so that the kills hit runs and not imports.
# It gets its path from the environment: Python 3.11 does not hand sys.path on to it.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
_SPAWN.set_forkserver_preload(["warm"])


def command(arguments: Sequence[str], output: str) -> None:
    """A command line of nlrl in a process of its own, its output in a file."""
    from nlrl.cli import main

    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import sys

    sys.argv = ["nlrl", *arguments]
    main()


def start(arguments: Sequence[str], output: Path) -> multiprocessing.Process:
    """Begin a command; it is killed with the tests."""
    process = _SPAWN.Process(target=command, args=(list(arguments), str(output)), daemon=True)
    process.start()
    return process  # type: ignore[return-value]


@dataclass(slots=True)
class Killed:
    """What came of a run that was killed many times."""

    kills: int = 0
    damaged: int = 0
    """Files that `PRAGMA integrity_check` did not like after a kill."""
    lost: int = 0
    """Answers that a reader had seen in the record right before a kill and that were not there after it."""
    asked_twice: int = 0
    """Requests that the server saw more often than the record needed them."""
    most_at_one_kill: int = 0
    """Most answers that were under way at one kill, that is asked for again."""

    def add(self, other: Killed) -> None:
        """Count what came of another run too."""
        self.kills += other.kills
        self.damaged += other.damaged
        self.lost += other.lost
        self.asked_twice += other.asked_twice
        self.most_at_one_kill = max(self.most_at_one_kill, other.most_at_one_kill)


def kill_until_done(
    server: ScriptedServer, runs: Path, run_id: str, arguments: Sequence[str], rng: np.random.Generator, kills: int
) -> Killed:
    """Run `nlrl run ARGUMENTS` and kill it up to `kills` times, then let it end; each time it is resumed."""
    found, script = Killed(), server.script
    place = ["--runs", str(runs), "--plain"]
    begun = False
    while True:
        rest = ["resume", run_id, *place] if begun else ["run", *arguments, "--id", run_id, *place]
        seen_before, had = len(script.seen), recorded_calls(runs / run_id)
        process = start(rest, runs / f"{run_id}.log")
        if found.kills < kills:
            wait_for_the_moment(process, script, rng)
        else:
            process.join(300)
        if not process.is_alive():
            assert process.exitcode == 0, (runs / f"{run_id}.log").read_text()
            break
        assert process.pid is not None
        seen = recorded_calls(runs / run_id)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found.kills += 1
        time.sleep(3 * script.delay_s + 0.02)  # what was under way reaches the server's log
        begun = (runs / run_id).is_dir()
        found.damaged += begun and not is_whole(runs / run_id)
        kept = recorded_calls(runs / run_id)
        found.lost += len(seen - kept)
        again = len(script.seen) - seen_before - len(kept - had)
        found.asked_twice += again
        found.most_at_one_kill = max(found.most_at_one_kill, again)
    return found


def wait_for_the_moment(process: multiprocessing.Process, script: Script, rng: np.random.Generator) -> None:
    """Return at a random moment of a process: one in five in its first second, the others after some more requests."""
    if rng.random() < 0.2:
        process.join(float(rng.uniform(0.0, 1.0)))
        return
    wanted = len(script.seen) + int(rng.integers(1, 120))
    while len(script.seen) < wanted and process.is_alive():
        time.sleep(0.001)
    process.join(float(rng.uniform(0.0, 0.01)))


def recorded_calls(path: Path) -> set[str]:
    """The keys of the calls in a record, which need not exist yet."""
    if not path.is_dir():
        return set()
    with RunReader.open(path) as reader:
        return {key for (key,) in reader.rows("SELECT key FROM calls")}


def is_whole(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a record."""
    with closing(sqlite3.connect(f"file:{path / FILE_NAME}?mode=ro", uri=True)) as db:
        return db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def scripted(answer: object, delay_s: float = 0.004) -> Script:
    """A script with a usual delay."""
    return Script(answer, delay_s=delay_s)  # type: ignore[arg-type]
