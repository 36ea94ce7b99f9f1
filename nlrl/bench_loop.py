"""`nlrl bench loop`: where the time of a loop's iteration goes, and how busy it keeps its engine.

A recipe is run as `nlrl run` does it, with a clock at vLLM's door: what every phase asked, how long any of it was under
way, and what this process did meanwhile. Then the requests of the last iteration are put to the same engine again,
phase by phase with the weights of the phase, each as one offline batch with nothing else to do (`nlrl.bench_replay`):
the tokens a second of the loop over those of the batch are how busy it was kept.

The first iteration compiles what is compiled at first use, and plays at random; the last is the figure. A phase's
tokens a second count its whole time, in which this process also plays, reads, records and grades.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from nlrl.ask import Asker
from nlrl.bench_report import report
from nlrl.cast import Cast, open_cast
from nlrl.config import RunConfig, load_config, parse_override
from nlrl.errors import ConfigError
from nlrl.scores import Scores
from nlrl.session import Run, manifest_of
from nlrl.store import RunStore
from nlrl.students import check_students
from nlrl.task import build_task
from nlrl.types import LoopEvent, PhaseStart


@dataclass(frozen=True, slots=True)
class Choice:
    """What is measured."""

    recipe: str
    settings: tuple[str, ...]
    """As `-s`, over those chosen here."""
    backbone: str
    apart: bool
    """vLLM's core in a process of its own."""
    iterations: int
    profile: bool
    """Also write what Python's profiler counts, which slows everything down: then no figure is one."""
    limit: float
    """Seconds after which nothing more is begun."""
    out: Path


@dataclass(slots=True)
class Phase:
    """A stretch of an iteration."""

    iteration: int
    name: str
    begun: float
    ended: float = 0.0
    weights: str = ""
    """Folder of those that answered; "" for the first."""
    asked: list[tuple[list[int], Any]] = field(default_factory=list)
    """Prompt and vLLM's own parameters of each request that was computed."""
    read: int = 0
    written: int = 0
    """Tokens, of those requests."""
    busy: float = 0.0
    """Seconds in which at least one was under way."""
    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of this process by what it did."""
    processor: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of those, seconds of the processor in the thread that did it."""

    @property
    def seconds(self) -> float:
        """From its beginning to that of the next."""
        return self.ended - self.begun


class Watch:
    """A clock at the door of a vLLM engine and at what a loop does besides."""

    def __init__(self, engine: Any) -> None:
        self.phases: list[Phase] = [Phase(-1, "start", time.perf_counter())]
        self._engine, self._inner = engine, engine._engine
        self._under_way: dict[str, Phase] = {}
        self._since = 0.0
        self._weights = ""
        self._inside: set[str] = set()

    def enter(self, iteration: int, name: str) -> None:
        """The next phase begins."""
        now = time.perf_counter()
        self.phases[-1].ended = now
        self.phases.append(Phase(iteration, name, now, weights=self._weights))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, everything is counted."""
        from nlrl.distill import training

        owners: list[tuple[Any, str, str]] = [
            (Asker, "_request", "prompts"),
            (self._engine, "_prompt_ids", "prompts"),
            (Asker, "_check", "replies read"),
            *((RunStore, f"record_{what}", "record") for what in ("call", "failure", "event", "lessons", "metric")),
            (Scores, "take", "grading"),
            (Scores, "settle", "grading"),
            (training, "train", "training"),
        ]
        with ExitStack() as stack:
            for owner, name, what in owners:
                stack.enter_context(_replaced(owner, name, self._timed(getattr(owner, name), what)))
            hooks = {"add_request": self._add, "step": self._step}
            for name, hook in hooks.items():
                stack.enter_context(_replaced(self._inner, name, hook(getattr(self._inner, name))))
            stack.enter_context(_replaced(self._engine, "update_weights", self._reload(self._engine.update_weights)))
            yield

    def _timed(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            if what in self._inside:  # by another way: it is counted already
                return function(*arguments, **named)
            self._inside.add(what)
            phase, begun, worked = self.phases[-1], time.perf_counter(), time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                self._inside.discard(what)
                phase.spent[what] += time.perf_counter() - begun
                phase.processor[what] += time.thread_time() - worked

        return timed

    def _add(self, add: Callable[..., str]) -> Callable[..., str]:
        timed = self._timed(add, "vLLM takes requests")

        def added(name: str, prompt: Any, params: Any) -> str:
            if not self._under_way:
                self._since = time.perf_counter()
            phase = self.phases[-1]
            self._under_way[name] = phase
            phase.asked.append((prompt["prompt_token_ids"], params))
            phase.read += len(prompt["prompt_token_ids"])
            return timed(name, prompt, params)

        return added

    def _step(self, step: Callable[[], list[Any]]) -> Callable[[], list[Any]]:
        timed = self._timed(step, "vLLM computes")

        def stepped() -> list[Any]:
            outputs = timed()
            for output in outputs:
                if output.finished and (phase := self._under_way.pop(output.request_id, None)) is not None:
                    phase.written += len(output.outputs[0].token_ids)
                    if not self._under_way:
                        phase.busy += time.perf_counter() - self._since
            return outputs

        return stepped

    def _reload(self, update: Callable[..., None]) -> Callable[..., None]:
        timed = self._timed(update, "reload")

        def reloaded(source: Any, **named: Any) -> None:
            self._weights = str(source)
            timed(source, **named)

        return reloaded


class WatchedStore(RunStore):
    """A record that tells a watch which phase it is."""

    watch: Watch

    def record_event(self, event: LoopEvent) -> None:
        """See `RunStore`."""
        if isinstance(event, PhaseStart):
            self.watch.enter(event.iteration, event.phase)
        super().record_event(event)


def bench(choice: Choice) -> int:
    """Run, replay, and write `loop.json` and `loop.md` under `choice.out` after each of the two; returns an exit code.

    Raises:
        ConfigError: the recipe has no loop that trains a single model by the vllm engine.
    """
    begun = time.perf_counter()
    choice.out.mkdir(parents=True, exist_ok=True)
    config = load_config(choice.recipe, _chosen(choice))
    check_students(config)
    if not config.learns or config.engine.kind != "vllm" or any(config.roles.model_dump().values()):
        raise ConfigError("What is measured is a loop that trains, on one model, by engine.kind = 'vllm'.")
    return asyncio.run(_measured(config, choice, begun))


def _chosen(choice: Choice) -> dict[str, Any]:
    """The keys that make a recipe the paper's setting with all games in flight; whatever is given goes over them."""
    usual = {
        "engine.backbone": choice.backbone,
        "engine.apart": choice.apart,
        "engine.at_once": 512,
        "training.iterations": choice.iterations,
        "baseline": [],
    }
    return usual | dict(parse_override(text) for text in choice.settings)


async def _measured(config: RunConfig, choice: Choice, begun: float) -> int:
    from nlrl import bench_replay

    task = build_task(config)
    cast = await open_cast(config, task)
    engine: Any = cast.policy.engine
    facts = {
        "setting": config.model_dump(mode="json"),
        "device": engine.describe().device,
        "versions": engine.describe().versions,
        "start_s": round(time.perf_counter() - begun, 1),
    }
    try:
        with tempfile.TemporaryDirectory(prefix="nlrl-bench-") as folder:
            await bench_replay.warm_up(engine, cast.policy, task)
            phases, code = await _looped(config, choice, cast, task, Path(folder))
            written = report(choice.out, facts, phases, {})
            if code == 0 and not choice.profile:
                last = [phase for phase in phases if phase.iteration == config.training.iterations and phase.asked]
                found: dict[str, Any] = {}
                for name, batch in bench_replay.replays(engine, last, until=begun + choice.limit):
                    found[name] = batch
                    written = report(choice.out, facts, phases, found)
            print(written)
            return code
    finally:
        await cast.close()


async def _looped(config: RunConfig, choice: Choice, cast: Cast, task: Any, runs: Path) -> tuple[list[Phase], int]:
    watch = Watch(cast.policy.engine)
    store = WatchedStore.create(runs, "bench", manifest_of(config, cast, task))
    assert isinstance(store, WatchedStore)
    store.watch = watch
    with (choice.out / "loop.log").open("w", encoding="utf-8") as log, watch.watching(), _profiled(choice):
        code = await Run(config, task, cast, store, Console(file=log, width=100), plain=True).play()
        watch.enter(-1, "over")
    return watch.phases[1:-1], code


@contextmanager
def _profiled(choice: Choice) -> Iterator[None]:
    if not choice.profile:
        yield
        return
    import cProfile
    import pstats

    profile = cProfile.Profile()
    with profile:
        yield
    with (choice.out / "loop.profile.txt").open("w", encoding="utf-8") as stream:
        pstats.Stats(profile, stream=stream).sort_stats("tottime").print_stats(60)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    had = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def phase_facts(phase: Phase) -> dict[str, Any]:
    """A phase as JSON types."""
    forms = {json.dumps(str(params.structured_outputs)) for _, params in phase.asked}
    return {
        "iteration": phase.iteration,
        "phase": phase.name,
        "seconds": round(phase.seconds, 3),
        "busy_s": round(phase.busy, 3),
        "requests": len(phase.asked),
        "forms": len(forms),
        "read": phase.read,
        "written": phase.written,
        "spent_s": {what: round(seconds, 3) for what, seconds in sorted(phase.spent.items())},
        "processor_s": {what: round(seconds, 3) for what, seconds in sorted(phase.processor.items())},
    }
