"""Running rows: each with several models and seeds, one run after the other, stopped anywhere and gone on with.

A run is an ordinary one (`nlrl.session`): its record is complete at every moment, and the same command goes on with it.
What is finished is not run again.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlrl.config import RunConfig, load_config, recipe_folders, with_overrides
from nlrl.errors import ConfigError, StoreError
from nlrl.machine import look_around
from nlrl.reproduce.results import Result, cell_name, curve_of, read, result_of, write
from nlrl.reproduce.rows import Row
from nlrl.session import INTERRUPTED, Place, resume_recorded, run_recorded
from nlrl.store import RunReader

WATCH_SECONDS = 1.0
STOPPED = 4
"""Exit code when something is left to be done; `nlrl.errors` has the others."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run, and where it goes."""

    table: str
    rows: tuple[Row, ...]
    backbones: tuple[str, ...]
    """Models in the box, folders or hub ids; or, with `models`, names of folders there."""
    seeds: int
    """0 to one less than this."""
    out: Path
    """Records go to `runs/` in it, results to `results/`."""
    models: Path | None = None
    """A folder with a model for each backbone, as `nlrl pretrain --out` leaves it."""
    limit: float | None = None
    """Seconds for the command as a whole."""
    overrides: Mapping[str, Any] | None = None
    """Of every recipe, behind the row's own."""

    @property
    def results(self) -> Path:
        """Where results are written."""
        return self.out / "results"

    def cells(self) -> Iterator[tuple[Row, str, int]]:
        """Each run: seed by seed, so that every model has its first before any has its second."""
        for seed in range(self.seeds):
            for row in self.rows:
                for backbone in self.backbones:
                    yield row, backbone, seed


def recipe_path(name: str) -> Path:
    """The file of a row's recipe.

    Raises:
        ConfigError: it is not installed.
    """
    for folder in recipe_folders():
        if (path := folder / "reproduce" / f"{name}.toml").is_file():
            return path
    raise ConfigError(f"The recipe '{name}' is missing; install nlrl again, or work in a checkout.")


def config_of(plan: Plan, row: Row, backbone: str, seed: int) -> RunConfig:
    """A row's recipe for one model and seed.

    Raises:
        ConfigError: the row cannot be run, or a key does not exist.
    """
    if row.missing:
        raise ConfigError(f"Row '{row.id}' cannot be run yet: {row.missing}")
    model = str(plan.models / backbone) if plan.models else backbone
    named = {"seed": seed, "engine.backbone": model}
    return load_config(str(recipe_path(row.recipe)), {**named, **row.overrides, **(plan.overrides or {})})


async def run_plan(plan: Plan, say: Any = print) -> int:
    """Run what is not finished; returns 0 when everything is, else `STOPPED`.

    Raises:
        NlrlError: a run cannot be begun or gone on with.
    """
    begun, left = time.monotonic(), []
    cells = [cell for cell in plan.cells() if not cell[0].missing]
    if not cells:
        raise ConfigError(f"Nothing of this can be run yet: {plan.rows[0].missing}")
    for row, backbone, seed in cells:
        name = cell_name(row.id, backbone, seed)
        if _finished(plan.results / f"{name}.json"):
            say(f"{name}: finished before")
            continue
        spare = None if plan.limit is None else plan.limit - (time.monotonic() - begun)
        if spare is not None and spare <= 0:
            left.append(name)
            continue
        result = await _run_cell(plan, row, backbone, seed, spare)
        shown = "nothing yet" if result.final is None else row.said(result.final)
        say(f"{name}: {result.status}, {shown}")
        if result.status != "finished":
            left.append(name)
            if spare is None:  # Ctrl-C: the others would be stopped the same way
                return INTERRUPTED
    if left:
        say(f"{len(cells) - len(left)} of {len(cells)} runs are finished; the same command goes on with {left[0]}.")
    return STOPPED if left else 0


def _finished(path: Path) -> bool:
    return path.is_file() and read(path).status == "finished"


async def _run_cell(plan: Plan, row: Row, backbone: str, seed: int, limit: float | None) -> Result:
    name, runs = cell_name(row.id, backbone, seed), plan.out / "runs"
    config = config_of(plan, row, backbone, seed)
    clock = Clock(runs / name)
    deadline = None if limit is None else time.monotonic() + limit
    await _in_time(config, Place(runs, name, plain=True), limit, clock, row.figure)
    with RunReader.open(runs / name) as reader:
        points, status = curve_of(reader, row.figure), reader.status
    final = points[-1].value if points and status == "finished" else None
    if row.afterwards is not None and status == "finished":
        spare = None if deadline is None else deadline - time.monotonic()
        final = await _afterwards(config, row, Place(runs, f"{name}-after", plain=True), runs / name, spare)
        status = "finished" if final is not None else "interrupted"
    with RunReader.open(runs / name) as reader:
        result = result_of(
            reader, row, plan.table, backbone, final=final, clock=clock.read(), said=_said(plan, row, backbone)
        )
    result = replace(result, status=status)
    write(result, plan.results)
    return result


def config_afterwards(config: RunConfig, row: Row, run: Path) -> RunConfig:
    """The config in which the last policy of a finished run plays with a row's other keys, its weights as they are.

    A loop evaluates before its first iteration; that iteration then has as few games as there can be.
    """
    tree = config.model_dump(mode="json")
    tree["training"] |= {"learners": [], "iterations": 1, "games": 2, "samples": 1, "past_share": 0.0}
    last = run / "checkpoints" / f"policy-{config.training.iterations}"
    return with_overrides(tree, {"engine.backbone": str(last), **(row.afterwards or {})})


async def _afterwards(config: RunConfig, row: Row, place: Place, run: Path, limit: float | None) -> float | None:
    """The last policy's games with other keys; None when time is up before."""
    await _in_time(config_afterwards(config, row, run), place, limit, None, row.figure)
    assert place.run_id is not None
    with RunReader.open(place.runs / place.run_id) as reader:
        points = curve_of(reader, row.figure)
        return points[0].value if reader.status == "finished" and points else None


async def _in_time(config: RunConfig, place: Place, limit: float | None, clock: Clock | None, figure: str) -> None:
    """Begin a run or go on with it, for at most so many seconds; what it has by then stays."""
    assert place.run_id is not None
    folder = place.runs / place.run_id
    known = (folder / "run.sqlite").is_file()
    if known and _status(folder) == "finished":
        return
    work = asyncio.create_task(resume_recorded(place, {}) if known else run_recorded(config, place))
    watch = asyncio.create_task(clock.watch(figure)) if clock is not None else None
    try:
        if not await _done_in(work, limit):
            work.cancel()
        with suppress(asyncio.CancelledError):  # before its record was begun
            await work
    finally:
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            assert clock is not None
            clock.look(figure)
    if not (folder / "run.sqlite").is_file():
        raise ConfigError("The time limit is too short to start the model; give more with --limit.")


async def _done_in(work: asyncio.Task[int], limit: float | None) -> bool:
    """Whether a run came to its end within so many seconds."""
    await asyncio.wait({work}, timeout=limit)
    return work.done()


def _status(folder: Path) -> str:
    with RunReader.open(folder) as reader:
        return reader.status


class Clock:
    """When a run's evaluations were there, on the run's own clock, in a file beside its record.

    A record does not hold times of day: two runs with the same answers are the same record. So somebody watches.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "clock.json"
        self._begun = time.monotonic()

    def read(self) -> list[tuple[int, float]]:
        """(iteration, seconds since the run began, all sittings together)."""
        if not self._path.is_file():
            return []
        return [(int(step), float(seconds)) for step, seconds in json.loads(self._path.read_text("utf-8"))]

    def look(self, figure: str) -> None:
        """Note the evaluations that are there and were not."""
        try:
            with RunReader.open(self._folder) as reader:
                ((before, status),) = reader.rows("SELECT seconds, status FROM run")
                steps = [point.iteration for point in curve_of(reader, figure)]
        except StoreError:  # not begun yet
            return
        known = dict(self.read())
        # A run adds its sitting's time when it ends.
        now = before + (time.monotonic() - self._begun if status == "running" else 0.0)
        if new := [step for step in steps if step not in known]:
            known |= dict.fromkeys(new, round(now, 1))
            self._path.write_text(json.dumps(sorted(known.items())) + "\n", encoding="utf-8")

    async def watch(self, figure: str) -> None:
        """Look every second until cancelled."""
        while True:
            self.look(figure)
            await asyncio.sleep(WATCH_SECONDS)


def _said(plan: Plan, row: Row, backbone: str) -> dict[str, str]:
    words = ["nlrl", "reproduce", plan.table, "--row", row.id, "--backbone", backbone, "--seeds", str(plan.seeds)]
    words += ["--models", plan.models.name] if plan.models else []
    for key, value in (plan.overrides or {}).items():
        words += ["-s", f"{key}={json.dumps(value)}"]
    return {"command": shlex.join(words), "commit": commit(), "machine": machine()}


def commit() -> str:
    """The checkout's commit, with "+" when files differ from it; "" outside a checkout."""
    folder = Path(__file__).parents[2]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=10", "HEAD")
        return head + "+" * bool(head and git("status", "--porcelain", "--untracked-files=no"))
    except OSError:
        return ""


def machine() -> str:
    """What computed, in words."""
    seen = look_around()
    return f"{seen.gpu or 'no GPU'}, {os.cpu_count()} cores {platform.machine()}, vLLM {seen.vllm}, torch {seen.torch}"
