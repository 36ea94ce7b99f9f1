"""What the command line does around a run: start or resume it, watch it, record it, grade it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from nlrl.archive import recorded, table_of
from nlrl.ask import Asker
from nlrl.budget import Gate, is_limited
from nlrl.cast import Cast, Speaker, open_cast, prompt_rows
from nlrl.config import RunConfig, with_overrides
from nlrl.errors import NlrlError
from nlrl.estimate import estimate, lines
from nlrl.limits import exact_rows
from nlrl.manifest import check_same, flat, identity, is_free
from nlrl.recorded import Answers, RecordedEngine
from nlrl.run import Stage, asker, build_models, stages, title_of, versions
from nlrl.safe_text import as_text
from nlrl.scores import Scores
from nlrl.store import Manifest, RunReader, RunStore, new_run_id
from nlrl.store_schema import check_run_id
from nlrl.students import build_students, check_students, fixed_roles, open_past
from nlrl.task import Task, build_task
from nlrl.terminal.live import View, open_view
from nlrl.terminal.notes import engines_text, fixed_text, model_name, note_of, phase_text
from nlrl.terminal.result import RunResult, result_table
from nlrl.terminal.stats import Stats
from nlrl.types import GameEnd, LoopEvent, PhaseStart, Trained
from nlrl_envs.base import seats_of

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
    """Begin a run: go through the config's stages, record them, print the table; returns an exit code.

    Answers that the run `reuse` has to the very same questions are taken from there.
    """
    if place.run_id is not None:
        check_run_id(place.run_id)
    check_students(config)
    console, task = Console(), build_task(config)
    reused = None if reuse is None else RunReader.open(place.runs / check_run_id(reuse))
    console.print(as_text(f"{config.recipe}: starting {engines_text(config)} ..."))
    cast = await open_cast(config, task)
    try:
        run_id = place.run_id or new_run_id(place.runs, config.recipe, model_name(config.engine))
        store = RunStore.create(place.runs, run_id, manifest_of(config, cast, task))
        run = Run(config, task, cast, store, console, place.plain)
        return await run.play(None if reused is None else reused.answer)
    finally:
        await cast.close()
        if reused is not None:
            reused.close()


async def print_estimate(config: RunConfig) -> None:
    """Print what the run would cost; nothing is asked and nothing recorded."""
    check_students(config)
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
    console.print(as_text(f"{config.recipe}: starting {engines_text(config)} ..."))
    cast = await open_cast(config, task)
    try:
        check_same(place.run_id, before, dict(manifest_of(config, cast, task).identity))
        store = RunStore.resume(place.runs, place.run_id)
        return await Run(config, task, cast, store, console, place.plain).play()
    finally:
        await cast.close()


def manifest_of(config: RunConfig, cast: Cast, task: Task) -> Manifest:
    """What is known about a run before it begins."""
    tree, game = config.model_dump(mode="json"), type(task.env).__module__
    voices = {role: (one.prompts, one.engine.describe()) for role, one in cast.speakers.items()}
    (_, first), *_ = voices.values()
    return Manifest(tree, config.seed, versions(), first, identity(tree, voices, game))


@dataclass(slots=True)
class Run:
    """A run that is about to be gone through, once; its engines stay the caller's."""

    config: RunConfig
    task: Task
    cast: Cast
    store: RunStore
    console: Console
    plain: bool
    _engines: dict[Speaker, RecordedEngine] = field(default_factory=dict)
    _games: int = 0
    """Ended in this run."""

    async def play(self, reused: Answers | None = None) -> int:
        """Do what is not done yet, record how it ended, print the table; returns an exit code."""
        config, store, begun = self.config, self.store, time.perf_counter()
        status: Literal["finished", "interrupted", "failed"] = "failed"
        look = config.look_ahead
        labels = {"policy iteration": f"policy iteration, K={look.variations} N={look.steps}"}
        code, scores = 1, Scores(self.task, exact=config.exact, moves=config.learns, labels=labels)
        try:
            planned = self._plan(reused)

            def stats() -> Stats:
                return self._stats(time.perf_counter() - begun)

            if said := fixed_text(fixed_roles(config)):
                self.console.print(said)
            title, two = f"{title_of(config, self.task)}, {engines_text(config)}", len(seats_of(self.task.env)) > 1
            with open_view(stats, title=title, plain=self.plain, console=self.console, two=two) as view:
                for stage in planned:
                    await self._go_through(stage, view, scores)
                self._settle(scores, view, scores.settle())
            status, code = "finished", 0
        except (asyncio.CancelledError, KeyboardInterrupt):
            status, code = "interrupted", INTERRUPTED
        except NlrlError as error:
            status = "interrupted" if error.exit_code == 4 else "failed"
            raise
        finally:
            paid = [one for one in self._engines.items() if one[1].under_way and one[0].config.kind == "http"]
            if paid:
                self.console.print("Waiting for the answers that are being paid for; Ctrl-C again drops them.")
            for model in self._engines.values():
                with suppress(NlrlError):  # what stopped the run is told already
                    await model.drain()
            for speaker in self._engines.keys() - set(self.cast.speakers.values()):
                await speaker.engine.close()
            seconds = time.perf_counter() - begun
            outcome = self._outcome(scores, seconds, whole=status == "finished")
            self._finish(status, outcome, seconds)
        self.console.print(result_table(outcome))
        if status == "interrupted":
            self.console.print(
                as_text(f"Interrupted; what was played is recorded. Go on with: nlrl resume {store.path.name}")
            )
        self.console.print(as_text(f"Recorded in {store.path}; watch it again with: nlrl replay {store.path.name}"))
        return code

    def _plan(self, reused: Answers | None) -> list[Stage]:
        """Put the record between the run and its engines; what is to be done with them."""
        config, store = self.config, self.store
        # A run that is resumed may have been stopped before this.
        store.record_prompts(prompt_rows({role: one.prompts for role, one in self.cast.speakers.items()}))
        gate = Gate(config.budget, store.totals) if is_limited(config.budget) else None

        def put_between(speaker: Speaker) -> RecordedEngine:
            strict = speaker.config.constraints == "require"
            engine = RecordedEngine(speaker.engine, store, gate=gate, reused=reused, require_constraints=strict)
            self._engines[speaker] = engine
            return engine

        def past(trained: Trained) -> Asker:
            speaker = open_past(config, self.task, self.cast.policy, trained, store.path)
            return asker(speaker, put_between(speaker), self.task, config.seed)

        for speaker in self.cast.speakers.values():
            put_between(speaker)
        students = build_students(config, self.task, self.cast, self._engines, store)
        models = build_models(config, self.task, self.cast, self._engines)
        if config.env.opponent == "pool" or config.training.past_share:
            models = replace(models, past=past)
        return stages(config, self.task, models, students)

    async def _go_through(self, stage: Stage, view: View, scores: Scores) -> None:
        self.store.begin_stage(stage.name)
        done: frozenset[int] = frozenset()
        if stage.games is not None:
            with RunReader.open(self.store.path) as reader:
                done = frozenset(end.game for _, end in reader.ended(stage.games.start, stage.games.stop))
        async for event in stage.events(done):
            self._settle(scores, view, scores.take(stage.name, event))
            self.store.record_event(event)
            self._show(stage, view, event)
            if isinstance(event, PhaseStart) and done:
                self._show_again(stage, view, scores, sorted(done))

    def _show_again(self, stage: Stage, view: View, scores: Scores, games: list[int]) -> None:
        """What was played before the run was resumed."""
        with RunReader.open(self.store.path) as reader:
            for game in games:
                for event in reader.events(game):
                    scores.take(stage.name, event)
                    self._show(stage, view, event)

    def _show(self, stage: Stage, view: View, event: LoopEvent) -> None:
        self._games += isinstance(event, GameEnd)
        if isinstance(event, PhaseStart):
            view.begin(*phase_text(self.config, stage.name, event))
        elif note := note_of(event):
            view.note(note)
        view.show(event)

    def _settle(self, scores: Scores, view: View, figures: Mapping[str, tuple[int, float]]) -> None:
        """Record the figures of a phase that is over, and say the one that matters."""
        for name, (iteration, value) in figures.items():
            self.store.record_metric(name, iteration, value)
        if figures and self.config.learns and (said := scores.phases[-1].headline(len(seats_of(self.task.env)))):
            view.note(said)

    def _stats(self, seconds: float) -> Stats:
        totals = self.store.totals
        count = 0 if self.config.learns else len(self.task.starts_G) * (1 + len(self.config.baseline))
        return Stats(
            calls=totals.calls,
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            bad_replies=sum(totals.failures.values()),
            seconds=totals.seconds + seconds,
            games_done=self._games,
            games_total=count,
        )

    def _outcome(self, scores: Scores, seconds: float, *, whole: bool) -> RunResult:
        scores.settle()  # of an interrupted run, what it has
        # Writing a game's table down takes seconds, for which nobody waits who has pressed Ctrl-C.
        known = whole or self.task.reference is not None
        rows = (*scores.rows(), *(exact_rows(self.config, self.task) if known else ()))
        return RunResult(rows, self._stats(seconds), dict(sorted(self.store.totals.failures.items())))

    def _finish(self, status: Literal["finished", "interrupted", "failed"], outcome: RunResult, seconds: float) -> None:
        engines = {role: asdict(one.engine.describe()) for role, one in self.cast.speakers.items()}
        results = {**asdict(outcome), "engine": next(iter(engines.values())), "engines": engines}
        if status == "finished":
            self.store.finish(status, results, seconds)
            return
        with suppress(NlrlError):  # the record may be what failed; what stopped the run is told, not this
            self.store.finish(status, results, seconds)
