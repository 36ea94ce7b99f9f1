"""What a run would cost, without asking anything: `nlrl run RECIPE --dry-run`.

A few decisions are made for real, with every prompt rendered, by an engine that answers each question with the shortest
reply its form allows. How many decisions a game has is taken from games played at random. So calls and prompts of a
decision are exact for those states, and the totals are a range. Of a loop that learns, one small iteration is gone
through instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlrl import registry
from nlrl.ask import Asker
from nlrl.budget import Use
from nlrl.cast import load_prompts, role_tables
from nlrl.config import RunConfig
from nlrl.config_parts import EngineConfig, TrainingConfig
from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.errors import ConfigError
from nlrl.learn import Students
from nlrl.operators.masked import Models
from nlrl.run import loop, stages
from nlrl.task import Task, positions
from nlrl.types import CallId, Example, PhaseStart, StudentName, Trained
from nlrl_envs.base import seats_of

BYTES_PER_TOKEN = 4
"""Usual for English and a large vocabulary; the models in the box have a small one and read about twice as many."""
SAMPLED_STARTS = 6
RANDOM_GAMES = 30


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would use: at least, with short games and the shortest replies; at most, with long ones of both."""

    games: int
    least: Use
    most: Use


class DryEngine:
    """Answers with the shortest reply that a form allows, and adds up what was asked."""

    def __init__(self, prompt_set: str) -> None:
        self.prompt_set = prompt_set
        self.least = Use()
        self.most = Use()

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One made-up reply a request."""
        return [self._answer(request) for request in requests]

    def describe(self) -> EngineInfo:
        """What runs."""
        return EngineInfo("dry", "none", "none")

    async def close(self) -> None:
        """Nothing is held."""

    def _answer(self, request: Request) -> Completion:
        text = shortest_reply(request)
        read = _tokens(sum(len(m.content.encode("utf-8", "surrogatepass")) for m in request.messages))
        self.least += Use(1, read, _tokens(len(text)))
        self.most += Use(1, read, request.sampling.max_tokens)
        return Completion(text)


async def estimate(config: RunConfig, task: Task) -> Estimate:
    """What the run would use; raises `ConfigError` when the form of a reply cannot be filled."""
    engines = {}
    for table in role_tables(config).values():
        prompts = load_prompts(_prompt_set(table), config.env.id)
        engines.setdefault(table.model_dump_json(), (DryEngine(prompts.name), prompts))
    asked = [engines[table.model_dump_json()] for table in role_tables(config).values()]
    policy, value, teacher = (Asker(engine, prompts, task.env.task, attempts=1) for engine, prompts in asked)
    models = Models(policy, value, teacher)
    counted = [engine for engine, _ in engines.values()]
    if config.loop == "policy_iteration":
        return await _of_games(config, task, models, counted)
    return await _of_a_loop(config, task, models, counted)


async def _of_games(config: RunConfig, task: Task, models: Models, engines: Sequence[DryEngine]) -> Estimate:
    """Some decisions for real, times the lengths and numbers of games."""
    training, count = config.training, len(task.starts_G)
    if config.learns:
        planned = stages(config.model_copy(update={"distil": None, "baseline": ("plain",)}), task, models, None)
        games = [training.iterations * count, (training.iterations + 1) * training.evaluation_games]
    else:
        planned = stages(config, task, models, None)
        games = [count] * len(planned)
    starts = task.starts_G[:: max(1, count // SAMPLED_STARTS)]
    # Of a game of two the run's player makes every second move.
    lengths, least, most = _random_lengths(task, config.seed), Use(), Use()
    for stage, many in zip(planned, games, strict=True):
        assert stage.agent is not None
        before = _used(engines)
        for game, start in enumerate(starts):
            env, rng = task.env.clone(), np.random.default_rng((config.seed, game))
            history = (env.reset(rng, start),)
            await stage.agent(env, history, CallId(game, 0, "policy"), rng)
        low, high = (now - was for now, was in zip(_used(engines), before, strict=True))
        share = many / len(starts) / len(seats_of(task.env))
        least += _times(low, share * min(lengths))
        most += _times(high, share * max(lengths))
    return Estimate(sum(games), least, most)


async def _of_a_loop(config: RunConfig, task: Task, models: Models, engines: Sequence[DryEngine]) -> Estimate:
    """One small iteration for real, times how much larger and how many they are.

    Situations that come twice are worked on once, and the more games there are the more often that happens: so a small
    iteration, enlarged, is usually more than a large one; what is said is no strict bound.
    """
    training, lengths = config.training, _random_lengths(task, config.seed)
    small = config.model_copy(update={"baseline": (), "training": _small(training)})
    nobody = _NoStudent()
    used: dict[tuple[str, int], Use] = {}
    most: dict[tuple[str, int], Use] = {}
    key, before, before_most = ("", 0), Use(), Use()
    async for event in loop(small, task, models, Students(nobody, nobody)):
        if isinstance(event, PhaseStart):
            used[key], most[key] = (now - was for now, was in zip(_used(engines), (before, before_most), strict=True))
            key, (before, before_most) = (event.phase, event.iteration), _used(engines)
    used[key], most[key] = (now - was for now, was in zip(_used(engines), (before, before_most), strict=True))
    larger, games = _enlarged(config, small, task)
    longest = max(lengths) / float(np.mean(lengths))
    least_sum, most_sum = Use(), Use()
    for (phase, iteration), use in used.items():
        times = larger.get(phase, 1.0) * (training.iterations if iteration else 1)
        least_sum += _times(use, times)
        most_sum += _times(most[phase, iteration], times * longest)
    return Estimate(games, least_sum, most_sum)


SMALL_GAMES = 16
"""Games of the iteration that is gone through."""


def _small(training: TrainingConfig) -> TrainingConfig:
    few = {name: min(getattr(training, name), SMALL_GAMES) for name in ("games", "evaluation_games", "held_out")}
    positions = None if training.positions is None else min(training.positions, SMALL_GAMES)
    return training.model_copy(update={**few, "iterations": 1, "positions": positions})


def _enlarged(config: RunConfig, small: RunConfig, task: Task) -> tuple[dict[str, float], int]:
    """How much more each phase has than in the small iteration, and how many games the run has."""
    training, few = config.training, small.training
    if config.loop == "td_values":
        large, few_positions = map(len, positions(task, config)), map(len, positions(task, small))
        estimated, evaluated = (many / max(few, 1) for many, few in zip(large, few_positions, strict=True))
        return {"estimate": estimated, "evaluate": evaluated}, 0
    played, evaluated = training.games / few.games, training.evaluation_games / max(few.evaluation_games, 1)
    games = training.iterations * training.games + (training.iterations + 1) * training.evaluation_games
    return {"collect": played, "estimate": played, "improve": played, "evaluate": evaluated}, games


class _NoStudent:
    """Learns nothing."""

    async def learn(self, examples: Sequence[Example], *, iteration: int, student: StudentName, seed: int) -> Trained:
        return Trained(iteration, student, "", len(examples), 0)


def _used(engines: Sequence[DryEngine]) -> tuple[Use, Use]:
    """At least and at most, by all engines so far."""
    return sum((one.least for one in engines), Use()), sum((one.most for one in engines), Use())


def lines(found: Estimate, config: RunConfig) -> list[str]:
    """The estimate in words."""
    low, high, budget = found.least, found.most, config.budget
    said = [
        *([f"Games:  {found.games:,}"] if found.games else []),
        f"Calls:  {low.calls:,} to {high.calls:,}",
        f"Tokens: {low.read:,} to {high.read:,} read, {low.written:,} to {high.written:,} written",
    ]
    if budget.price_read or budget.price_written:
        said.append(f"Money:  {low.money(budget):,.2f} to {high.money(budget):,.2f}")
    return [*said, "Nothing was asked. Short games and replies against long ones; set budget.* to stop earlier."]


def shortest_reply(request: Request) -> str:
    """A reply that has the form its request asks for."""
    form = request.constraint
    if form is None:
        return "."
    if form.kind == "choice":
        return min(form.value, key=len)
    if form.kind == "json":
        return json.dumps(_of_schema(json.loads(str(form.value))))
    text = "".join(_of_pattern(re._parser.parse(str(form.value))))  # type: ignore[attr-defined]
    if re.fullmatch(str(form.value), text) is None:
        raise ConfigError(f"The cost cannot be estimated: no reply was found for the form '{str(form.value)[:80]}'.")
    return text


def _of_schema(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            return {name: _of_schema(schema["properties"][name]) for name in schema.get("required", ())}
        case "array":
            return []
        case "string":
            return "." * max(1, schema.get("minLength", 1))
        case "boolean":
            return False
    return 0


def _of_pattern(parsed: Any) -> list[str]:
    """A text for each item of a parsed regular expression: first alternatives, fewest repetitions."""
    said: list[str] = []
    for kind, value in parsed:
        match str(kind):
            case "LITERAL":
                said.append(chr(value))
            case "NOT_LITERAL" | "ANY":
                said.append("." if value != ord(".") else ",")
            case "IN":
                said.append(_of_class(value))
            case "BRANCH":
                said += _of_pattern(value[1][0])
            case "SUBPATTERN":
                said += _of_pattern(value[3])
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                said += _of_pattern(value[2]) * value[0]
    return said


def _of_class(items: Any) -> str:
    ordinary = "a0. AZz9-"
    pattern = {"CATEGORY_DIGIT": "0", "CATEGORY_WORD": "a", "CATEGORY_SPACE": " "}
    kind, value = items[0]
    if str(kind) == "NEGATE":
        barred = {chr(v) for k, v in items[1:] if str(k) == "LITERAL"}
        return next(char for char in ordinary if char not in barred)
    if str(kind) == "RANGE":
        return chr(value[0])
    return chr(value) if str(kind) == "LITERAL" else pattern.get(str(value), ".")


def _prompt_set(table: EngineConfig) -> str:
    """The prompt set that an engine would ask for."""
    if table.prompts != "auto":
        return table.prompts
    if table.kind == "oracle":
        return "arithmetic"
    if table.kind in ("vllm", "torch"):
        return registry.resolve_model(table.backbone).prompt_set or "full"
    return "full"


def _random_lengths(task: Task, seed: int) -> list[int]:
    """Moves of games played at random."""
    rng, lengths = np.random.default_rng((seed, 2)), []
    for number in range(RANDOM_GAMES):
        env, over, moves = task.env.clone(), False, 0
        env.reset(rng, task.starts_G[number % len(task.starts_G)])
        while not over:
            result = env.step(str(rng.choice(env.legal_actions)))
            over, moves = result.terminated or result.truncated, moves + 1
        lengths.append(moves)
    return lengths


def _times(use: Use, factor: float) -> Use:
    return Use(round(use.calls * factor), round(use.read * factor), round(use.written * factor))


def _tokens(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)
