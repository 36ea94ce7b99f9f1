"""What the command line does around a run: watch it, record it, replay it, list what was recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nlrl.ask import Asker
from nlrl.config import RunConfig
from nlrl.engine.base import Engine
from nlrl.errors import StoreError
from nlrl.run import (
    Meter,
    Phase,
    Task,
    build_engine,
    build_prompts,
    build_task,
    phases,
    play_phase,
    prompt_rows,
    result,
    versions,
)
from nlrl.safe_text import as_text
from nlrl.store import RunReader, RunStore, list_runs, new_run_id
from nlrl.terminal.frame import frames_of
from nlrl.terminal.live import View, open_view
from nlrl.terminal.replay import export_svg, replay
from nlrl.terminal.result import ResultRow, RunResult, result_table
from nlrl.terminal.stats import Stats
from nlrl.types import GameEnd

INTERRUPTED = 130
"""Exit code of a run that was stopped with Ctrl-C, by the shells' convention."""


async def run_recorded(config: RunConfig, runs: Path, run_id: str | None, *, plain: bool) -> int:
    """Start the engine, play the config's phases, record them under `runs`, print the table; returns an exit code."""
    console = Console()
    task = build_task(config)
    console.print(as_text(f"{config.recipe} {config.env.map}: starting {_engine_name(config)} ..."))
    engine = build_engine(config, task)
    try:
        prompts = build_prompts(config, engine)
        run_id = run_id or new_run_id(runs, config.recipe, _model_name(config))
        store = RunStore.create(
            runs,
            run_id,
            config=config.model_dump(mode="json"),
            seed=config.seed,
            versions=versions(),
            engine=engine.describe(),
        )
        store.record_prompts(prompt_rows(prompts))
        meter = Meter(store.record_call)
        ask = Asker(engine, prompts, task.env.task, attempts=config.engine.attempts, record=meter.record)
        return await _play(config, task, ask, meter, store, console, plain=plain)
    finally:
        await engine.close()


async def _play(
    config: RunConfig, task: Task, ask: Asker, meter: Meter, store: RunStore, console: Console, *, plain: bool
) -> int:
    planned = phases(config, ask, len(task.starts_G))
    ends: dict[str, list[GameEnd]] = {phase.name: [] for phase in planned}

    def stats() -> Stats:
        return meter.stats(sum(map(len, ends.values())), len(task.starts_G) * len(planned))

    status, code = "failed", 1
    try:
        with open_view(stats, title=_title(config, ask.engine), plain=plain) as view:
            for phase in planned:
                await _show_phase(config, task, phase, view, store, ends[phase.name])
        status, code = "finished", 0
    except (asyncio.CancelledError, KeyboardInterrupt):
        status, code = "interrupted", INTERRUPTED
    finally:
        outcome = result(config, task, ends, meter)
        store.finish(status, _results_json(outcome, ask.engine))
    console.print(result_table(outcome))
    if status == "interrupted":
        console.print("Interrupted; what was played is recorded.")
    console.print(as_text(f"Recorded in {store.path}; watch it again with: nlrl replay {store.path.name}"))
    return code


async def _show_phase(
    config: RunConfig, task: Task, phase: Phase, view: View, store: RunStore, ended: list[GameEnd]
) -> None:
    view.begin(phase.name, len(task.starts_G))
    async for event in play_phase(config, task, phase):
        store.record_event(event)
        if isinstance(event, GameEnd):
            ended.append(event)
        view.show(event)


def replay_recorded(runs: Path, run_id: str, game: int, svg: Path | None = None, frame: int = -1) -> None:
    """Step through a recorded game on the terminal, or write one moment of it, with the run's table, as a picture."""
    with RunReader.open(_folder(runs, run_id)) as reader:
        frames = frames_of(reader.events(game)) if _has_game(reader, game) else []
        if not frames:
            raise StoreError(f"Run '{run_id}' has no game {game}; it has {_games_text(reader)}.")
        if svg is None:
            replay(frames, title=f"{run_id}, game {game}")
            return
        outcome = _result_of(reader.results)
    try:
        index = frame if -len(frames) <= frame < len(frames) else -1
        below = None if outcome is None else result_table(outcome)
        export_svg(frames, svg, index=index, title=f"nlrl replay {run_id}", below=below)
    except OSError as error:
        raise StoreError(f"The picture cannot be written to {svg}: {error.strerror}.") from error
    Console().print(as_text(f"Wrote {svg}"))


def list_recorded(runs: Path) -> None:
    """Print the recorded runs, newest first."""
    console = Console()
    found = list_runs(runs)
    if not found:
        console.print(as_text(f"No runs are recorded in {runs}; make one with: nlrl run maze"))
        return
    table = Table("run", "status", "started", "games", box=None)
    for run in found:
        table.add_row(*map(Text, (run.id, run.status, run.started, f"{run.finished_games}/{run.games}")))
    console.print(table)


def _folder(runs: Path, run_id: str) -> Path:
    folder = runs / run_id
    if run_id not in {run.id for run in list_runs(runs)}:
        known = ", ".join(run.id for run in list_runs(runs)[:5]) or "none yet"
        raise StoreError(f"There is no run '{run_id}' in {runs}; the latest are: {known}.")
    return folder


def _has_game(reader: RunReader, game: int) -> bool:
    return any(start.game == game for start, _ in reader.games())


def _games_text(reader: RunReader) -> str:
    numbers: Sequence[int] = [start.game for start, _ in reader.games()]
    return f"games {min(numbers)} to {max(numbers)}" if numbers else "none"


def _results_json(outcome: RunResult, engine: Engine) -> dict[str, Any]:
    return {**asdict(outcome), "engine": asdict(engine.describe())}


def _result_of(results: dict[str, Any]) -> RunResult | None:
    """The table of a record; None when the run did not get that far."""
    if not {"rows", "stats", "failures"} <= results.keys():
        return None
    rows = [
        ResultRow(**{**row, "interval": tuple(row["interval"]) if row["interval"] else None}) for row in results["rows"]
    ]
    return RunResult(tuple(rows), Stats(**results["stats"]), results["failures"])


def _model_name(config: RunConfig) -> str:
    chosen = config.engine
    local = chosen.kind in ("vllm", "torch")
    return chosen.backbone.rstrip("/").rsplit("/", 1)[-1] if local else chosen.model or chosen.kind


def _engine_name(config: RunConfig) -> str:
    chosen = config.engine
    where = (
        f" at {chosen.base_url}" if chosen.kind == "http" else f" on {chosen.kind}" if chosen.kind != "oracle" else ""
    )
    return f"{_model_name(config)}{where}"


def _title(config: RunConfig, engine: Engine) -> str:
    look, info = config.look_ahead, engine.describe()
    return f"{config.recipe} {config.env.map}, K={look.variations} N={look.steps}, {info.model} on {info.kind}"
