"""A day of calls through the whole stack: memory and open files stay, readers never hold the writer up."""

import asyncio
import gc
import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from line_world import LineWorld

from nlrl.agents import plain_agent
from nlrl.ask import Asker
from nlrl.engine.base import Completion, EngineInfo
from nlrl.engine.scripted import ScriptedEngine
from nlrl.play import Games, play_all
from nlrl.recorded import RecordedEngine
from nlrl.store import Manifest, RunReader, RunStore
from nlrl.store_schema import FILE_NAME
from nlrl.types import GameEnd
from nlrl_prompts import load

SIZES = [pytest.param(300, id="short"), pytest.param(115_000, id="full", marks=pytest.mark.torture)]
READER = """
import sys, time
from pathlib import Path
from nlrl.store import RunReader, list_runs
root, looks, slowest = Path(sys.argv[1]), 0, 0.0
print("reading", flush=True)
while not (root / "over").exists():
    begun = time.perf_counter()
    assert [run.status for run in list_runs(root)] == ["running"]
    with RunReader.open(root / "run") as reader:
        games, ended = reader.counts()
        if ended:
            assert reader.events(ended // 2)
    looks, slowest = looks + 1, max(slowest, time.perf_counter() - begun)
    time.sleep(0.05)
print(looks, round(slowest, 3), flush=True)
"""


def reply(request) -> Completion:
    right = (request.sampling.seed or 0) % 16 < 9
    return Completion(f"table: {'right' if right else 'left'}", (1, 2), (3, 4, 5), "stop", None, 3, 2)


class Forgetful(ScriptedEngine):
    """A script that keeps no list of its requests."""

    async def generate(self, requests):
        return [reply(request) for request in requests]


def memory_mib() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


class Measured:
    """What is looked at while the games are played."""

    def __init__(self) -> None:
        self.memory_before = self.memory_after = 0.0
        self.files: set[int] = set()

    async def play(self, store: RunStore, games: int) -> None:
        ask = Asker(RecordedEngine(Forgetful(reply), store), load("arithmetic", "line"), LineWorld.task, seed=1)
        env, ended = LineWorld(), 0
        starts = [env.starts()[g % 4] for g in range(games)]
        async for event in play_all(env, Games(starts), plain_agent(ask), seed=1):
            store.record_event(event)
            if not isinstance(event, GameEnd):
                continue
            ended += 1
            if ended == games // 10:
                self.memory_before = memory_mib()
            if ended >= games // 10 and ended % (games // 20) == 0:
                self.files.add(open_files())
        self.memory_after = memory_mib()


def compressed_text(path: Path) -> int:
    """Bytes of the calls' texts, each call's compressed by itself; there are few different ones."""
    query = "SELECT system, prompt, reply, count(*) FROM main.calls GROUP BY 1, 2, 3"
    with RunReader.open(path) as reader:
        said = [("".join(reader.text(i) for i in ids if i is not None), n) for *ids, n in reader.rows(query)]
    return sum(n * len(zlib.compress(text.encode())) for text, n in said)


@pytest.mark.parametrize("games", SIZES)
def test_a_day_of_calls(games, tmp_path, row):
    store = RunStore.create(tmp_path, "run", Manifest({}, 1, {}, EngineInfo("scripted", "script", "none")))
    # Without patience: the first time a reader keeps the writer waiting, it fails.
    store._file._db.execute("PRAGMA busy_timeout = 0")
    measured = Measured()
    with subprocess.Popen([sys.executable, "-c", READER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        cpu, wall = time.process_time(), time.perf_counter()
        asyncio.run(measured.play(store, games))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        (tmp_path / "over").touch()
        looks, slowest = reader.stdout.read().split()
    calls = store.totals.calls
    store.finish()
    growth = measured.memory_after - measured.memory_before
    size, text = (tmp_path / "run" / FILE_NAME).stat().st_size, compressed_text(tmp_path / "run")
    row(
        f"{calls:,} calls in {games:,} games: {1000 * cpu / calls:.3f} ms of CPU a call ({1000 * wall / calls:.3f} ms "
        f"elapsed, the script included), memory {growth:+.1f} MiB after the first tenth, open files "
        f"{sorted(measured.files)}, {looks} looks by a reader, the slowest {slowest} s, none of which held the writer "
        f"up; {size / calls:.0f} bytes a call on disk, {size / text:.2f} times its {text / calls:.0f} bytes of "
        "compressed text (of a size that chats have: test_record_size.py)"
    )
    assert calls > 5 * games
    assert growth < 50
    assert len(measured.files) == 1
    assert float(slowest) < 1
    if games > 10_000:
        assert calls >= 1_000_000
        assert cpu / calls < 0.0003
        assert size / calls < 150
