"""What a run would cost, without asking anything: `nlrl run RECIPE --dry-run`.

A few decisions are made for real, with every prompt rendered, by an engine that answers each question with the shortest
reply its form allows. How many decisions a game has is taken from games played at random. So calls and prompts of a
decision are exact for those states, and the totals are a range.
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
from nlrl.config import RunConfig
from nlrl.engine.base import Completion, EngineInfo, Request
from nlrl.errors import ConfigError
from nlrl.run import Task, load_prompts, phases
from nlrl.types import CallId

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
    prompts = load_prompts(config, _prompt_set(config))
    engine = DryEngine(prompts.name)
    planned = phases(config, Asker(engine, prompts, task.env.task, attempts=1), len(task.starts_G))
    starts = task.starts_G[:: max(1, len(task.starts_G) // SAMPLED_STARTS)]
    for phase in planned:
        for game, start in enumerate(starts):
            env, rng = task.env.clone(), np.random.default_rng((config.seed, game))
            history = (env.reset(rng, start),)
            await phase.agent(env, history, CallId(game, 0, "policy"), rng)
    games, lengths = len(task.starts_G), _random_lengths(task, config.seed)
    share = games / len(starts)
    return Estimate(
        games * len(planned), _times(engine.least, share * min(lengths)), _times(engine.most, share * max(lengths))
    )


def lines(found: Estimate, config: RunConfig) -> list[str]:
    """The estimate in words."""
    low, high, budget = found.least, found.most, config.budget
    said = [
        f"Games:  {found.games:,}",
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


def _prompt_set(config: RunConfig) -> str:
    """The prompt set that the config's engine would ask for."""
    if config.engine.prompts != "auto":
        return config.engine.prompts
    if config.engine.kind == "oracle":
        return "arithmetic"
    if config.engine.kind in ("vllm", "torch"):
        return registry.resolve_model(config.engine.backbone).prompt_set or "full"
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
