"""What the command line does around a run: start or resume it, watch it, record it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rich.console import Console

from nlrl.archive import recorded, table_of
from nlrl.ask import Asker
from nlrl.budget import Gate, is_limited
from nlrl.config import RunConfig, with_overrides
from nlrl.engine.base import Engine
from nlrl.errors import NlrlError
from nlrl.estimate import estimate, lines
from nlrl.manifest import check_same, flat, identity, is_free
from nlrl.recorded import Answers, RecordedEngine
from nlrl.run import (
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
from nlrl.store import Manifest, RunReader, RunStore, new_run_id
from nlrl.store_schema import check_run_id
from nlrl.terminal.live import View, open_view
from nlrl.terminal.result import RunResult, result_table
from nlrl.terminal.stats import Stats
from nlrl.types import GameEnd
from nlrl_prompts import PromptSet

INTERRUPTED = 130
"""Exit code of a run that was stopped with Ctrl-C, by the shells' convention."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is recorded and how it is shown."""

    runs: Path
    """Folder of all records."""
    run_id: str | None = None
    """Name of the record; made up for a new run when None."""
    plain: bool = False
    """Lines instead of the live view."""


async def run_recorded(config: RunConfig, place: Place, reuse: str | None = None) -> int:
    """Begin a run: play the config's phases, record them, print the table; returns an exit code.

    Answers that the run `reuse` has to the very same questions are taken from there.
    """
    if place.run_id is not None:
        check_run_id(place.run_id)
    console, task = Console(), build_task(config)
    reused = None if reuse is None else RunReader.open(place.runs / check_run_id(reuse))
    console.print(as_text(f"{config.recipe} {config.env.map}: starting {_engine_name(config)} ..."))
    engine = build_engine(config, task)
    try:
        prompts = build_prompts(config, engine)
        run_id = place.run_id or new_run_id(place.runs, config.recipe, _model_name(config))
        manifest = _manifest(config, prompts, engine, task)
        store = RunStore.create(place.runs, run_id, manifest)
        store.record_prompts(prompt_rows(prompts))
        run = Run(config, task, prompts, store, console, place.plain)
        return await run.play(engine, None if reused is None else reused.answer)
    finally:
        await engine.close()
        if reused is not None:
            reused.close()


async def print_estimate(config: RunConfig) -> None:
    """Print what the run would cost; nothing is asked and nothing recorded."""
    found = await estimate(config, build_task(config))
    Console().print(as_text("\n".join(lines(found, config))))


async def resume_recorded(place: Place, overrides: Mapping[str, Any], *, force_new: bool = False) -> int:
    """Go on with the run `place.run_id` where it stopped; returns an exit code.

    Only what does not decide answers may be overridden (`nlrl.manifest.FREE`). With `force_new` the run's config, with
    any overrides, begins a new run instead.

    Raises:
        NoSuchRunError: there is no such run.
        ResumeError: something that decides the answers has changed; the sentence names it.
    """
    assert place.run_id is not None
    check_run_id(place.run_id)
    with RunReader.open(recorded(place.runs, place.run_id)) as reader:
        tree, table = reader.config, table_of(reader.results) if reader.status == "finished" else None
        before = reader.identity
    config = with_overrides(tree, overrides)
    if force_new:
        return await run_recorded(config, Place(place.runs, None, place.plain))
    now = {f"config.{key}": value for key, value in flat(config.model_dump(mode="json")).items() if not is_free(key)}
    check_same(place.run_id, {key: value for key, value in before.items() if key.startswith("config.")}, now)
    console = Console()
    if table is not None:
        console.print(result_table(table))
        console.print(as_text(f"Run '{place.run_id}' is finished; nothing is left to be asked."))
        return 0
    task = build_task(config)
    console.print(as_text(f"{config.recipe} {config.env.map}: starting {_engine_name(config)} ..."))
    engine = build_engine(config, task)
    try:
        prompts = build_prompts(config, engine)
        check_same(place.run_id, before, dict(_manifest(config, prompts, engine, task).identity))
        store = RunStore.resume(place.runs, place.run_id)
        return await Run(config, task, prompts, store, console, place.plain).play(engine)
    finally:
        await engine.close()


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is about to be played: everything but its engine."""

    config: RunConfig
    task: Task
    prompts: PromptSet
    store: RunStore
    console: Console
    plain: bool

    async def play(self, engine: Engine, reused: Answers | None = None) -> int:
        """Play what is not played yet, record how it ended, print the table; returns an exit code."""
        config, store, begun = self.config, self.store, time.perf_counter()
        gate = Gate(config.budget, store.totals) if is_limited(config.budget) else None
        strict = config.engine.constraints == "require"
        model = RecordedEngine(engine, store, gate=gate, reused=reused, require_constraints=strict)
        ask = Asker(
            model,
            self.prompts,
            self.task.env.task,
            attempts=config.engine.attempts,
            record=model.record_failure,
            seed=config.seed,
            logprobs=config.engine.logprobs,
        )
        planned = phases(config, ask, len(self.task.starts_G))
        ends: dict[str, list[GameEnd]] = {phase.name: [] for phase in planned}

        def stats() -> Stats:
            return self._stats(ends, time.perf_counter() - begun)

        status: Literal["finished", "interrupted", "failed"] = "failed"
        code = 1
        try:
            with open_view(stats, title=_title(config, engine), plain=self.plain, console=self.console) as view:
                for phase in planned:
                    await self._show(phase, view, ends[phase.name])
            status, code = "finished", 0
        except (asyncio.CancelledError, KeyboardInterrupt):
            status, code = "interrupted", INTERRUPTED
        except NlrlError as error:
            status = "interrupted" if error.exit_code == 4 else "failed"
            raise
        finally:
            if model.under_way and config.engine.kind == "http":
                self.console.print("Waiting for the answers that are being paid for; Ctrl-C again drops them.")
            with suppress(NlrlError):  # what stopped the run is told already
                await model.drain()
            outcome = result(config, self.task, ends, stats(), store.totals.failures)
            self._finish(status, outcome, engine, time.perf_counter() - begun)
        self.console.print(result_table(outcome))
        if status == "interrupted":
            self.console.print(
                as_text(f"Interrupted; what was played is recorded. Go on with: nlrl resume {store.path.name}")
            )
        self.console.print(as_text(f"Recorded in {store.path}; watch it again with: nlrl replay {store.path.name}"))
        return code

    async def _show(self, phase: Phase, view: View, ended: list[GameEnd]) -> None:
        first, count = phase.first_game, len(self.task.starts_G)
        view.begin(phase.name, count)
        with RunReader.open(self.store.path) as reader:
            played = [(start, end) for start, end in reader.ended(first, first + count)]
        for start, end in played:
            view.show(start)
            view.show(end)
            ended.append(end)
        done = frozenset(end.game for end in ended)
        async for event in play_phase(self.config, self.task, phase, done):
            self.store.record_event(event)
            if isinstance(event, GameEnd):
                ended.append(event)
            view.show(event)

    def _stats(self, ends: Mapping[str, list[GameEnd]], seconds: float) -> Stats:
        totals = self.store.totals
        return Stats(
            calls=totals.calls,
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            bad_replies=sum(totals.failures.values()),
            seconds=totals.seconds + seconds,
            games_done=sum(map(len, ends.values())),
            games_total=len(self.task.starts_G) * len(ends),
        )

    def _finish(
        self, status: Literal["finished", "interrupted", "failed"], outcome: RunResult, engine: Engine, seconds: float
    ) -> None:
        results = {**asdict(outcome), "engine": asdict(engine.describe())}
        if status == "finished":
            self.store.finish(status, results, seconds)
            return
        with suppress(NlrlError):  # the record may be what failed; what stopped the run is told, not this
            self.store.finish(status, results, seconds)


def _manifest(config: RunConfig, prompts: PromptSet, engine: Engine, task: Task) -> Manifest:
    tree, info = config.model_dump(mode="json"), engine.describe()
    game = type(task.env).__module__
    return Manifest(tree, config.seed, versions(), info, identity(tree, prompts, info, game))


def _model_name(config: RunConfig) -> str:
    chosen = config.engine
    local = chosen.kind in ("vllm", "torch")
    return chosen.backbone.rstrip("/").rsplit("/", 1)[-1] if local else chosen.model or chosen.kind


def _engine_name(config: RunConfig) -> str:
    chosen = config.engine
    if chosen.kind == "http":
        # Not the whole URL: somebody may have put a key where it does not belong, and is told so in a moment.
        hosts = [urlsplit(url).netloc.rpartition("@")[2] for url in (chosen.base_url or "").split(",")]
        return f"{_model_name(config)} at {', '.join(hosts)}"
    return _model_name(config) if chosen.kind == "oracle" else f"{_model_name(config)} on {chosen.kind}"


def _title(config: RunConfig, engine: Engine) -> str:
    look, info = config.look_ahead, engine.describe()
    return f"{config.recipe} {config.env.map}, K={look.variations} N={look.steps}, {info.model} on {info.kind}"
