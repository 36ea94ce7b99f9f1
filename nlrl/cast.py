"""Who speaks in a run: an engine with its prompts for each role, opened once where roles have equal tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nlrl import registry
from nlrl.config import RunConfig
from nlrl.config_parts import EngineConfig
from nlrl.engine.base import Engine
from nlrl.engine.oracle import OracleEngine, TableStudent
from nlrl.errors import ConfigError, PromptError
from nlrl.task import Task, exact_values
from nlrl_prompts import PromptSet, PromptSetError, load

ROLES = ("policy", "value", "teacher")
EXPLORE = 0.2
"""Share of random moves in a table's games: without any it would never see what it does not choose."""


@dataclass(frozen=True, slots=True, eq=False)
class Speaker:
    """A model as a run opened it."""

    config: EngineConfig
    engine: Engine
    prompts: PromptSet
    table: TableStudent | None = None
    """What an oracle learns into."""


@dataclass(frozen=True, slots=True)
class Cast:
    """The speaker of each role; one object in several places is one model."""

    policy: Speaker
    value: Speaker
    teacher: Speaker

    @property
    def speakers(self) -> dict[str, Speaker]:
        """Each speaker once, by the first of its roles."""
        found: dict[str, Speaker] = {}
        for role in ROLES:
            speaker: Speaker = getattr(self, role)
            if all(speaker is not other for other in found.values()):
                found[role] = speaker
        return found

    async def close(self) -> None:
        """Close every engine."""
        for speaker in self.speakers.values():
            await speaker.engine.close()


def role_tables(config: RunConfig) -> dict[str, EngineConfig]:
    """The engine table of each role."""
    return {role: getattr(config.roles, role) or config.engine for role in ROLES}


async def open_cast(config: RunConfig, task: Task) -> Cast:
    """Start the engines that a config asks for; when one of them cannot be used, all are closed again.

    Raises:
        EngineError: an engine cannot start, in one sentence.
        PromptError: a prompt set lacks what the game needs.
    """
    opened: list[Speaker] = []
    engines: list[Engine] = []
    try:
        speakers: dict[str, Speaker] = {}
        for role, table in role_tables(config).items():
            same = next((one for one in opened if one.config == table), None)
            if same is None:
                learned = TableStudent() if table.kind == "oracle" else None
                engines.append(build_engine(table, config, task, learned))
                same = Speaker(table, engines[-1], prompts_of(table, engines[-1], config), learned)
                opened.append(same)
            speakers[role] = same
        return Cast(**speakers)
    except BaseException:
        for engine in engines:
            await engine.close()
        raise


def prompts_of(table: EngineConfig, engine: Engine, config: RunConfig) -> PromptSet:
    """The prompts that a role's model reads; raises `PromptError` with one sentence."""
    return load_prompts(engine.prompt_set if table.prompts == "auto" else table.prompts, config.env.id)


def build_engine(table: EngineConfig, config: RunConfig, task: Task, learned: TableStudent | None = None) -> Engine:
    """The engine that a table asks for, started; raises an `EngineError` with one sentence."""
    make = registry.load("engine", table.kind)
    if table.batch_invariant and table.kind != "vllm":
        raise ConfigError(f"Only vLLM has a batch-invariant mode, and this engine is '{table.kind}': leave it off.")
    if table.kind == "oracle":
        if config.loop == "policy_iteration":
            return OracleEngine(exact_values(task), seed=config.seed, student=learned)
        return OracleEngine({}, seed=config.seed, student=learned, unknown=0.0, explore=EXPLORE)
    if table.kind == "http":
        if not table.base_url:
            raise ConfigError("The http engine needs the server's address: add --base-url http://127.0.0.1:8000/v1.")
        settings = registry.resolve("nlrl.engine.http_server:HttpSettings")(
            table.at_once,
            table.http_attempts,
            table.timeout_seconds,
            table.outage_seconds,
            table.requests_per_minute,
            table.tokens_per_minute,
            table.api_key_env,
        )
        return make(table.base_url, model=table.model, settings=settings)
    if table.kind not in ("vllm", "torch"):
        raise ConfigError(f"Engine '{table.kind}' cannot be started from a recipe; use it from Python.")
    more = {name: True for name in ("apart", "batch_invariant") if table.kind == "vllm" and getattr(table, name)}
    return make(registry.resolve_model(table.backbone), seed=config.seed, **more)


def load_prompts(name: str, env_id: str) -> PromptSet:
    """A prompt set for a game; raises `PromptError` with one sentence."""
    try:
        return load(name, env_id, registry.prompt_root(name))
    except PromptSetError as error:
        raise PromptError(str(error)) from error


def prompt_rows(sets: Mapping[str, PromptSet]) -> list[tuple[str, str, str, str]]:
    """(set, name, hash, text) of each template of the sets, for the record."""
    return [
        (prompts.name, prompt.name, prompt.sha256, "\n---\n".join(filter(None, (prompt.system, prompt.user))))
        for prompts in sets.values()
        for prompt in prompts.prompts.values()
    ]
