"""The pretrained model of `make real`, SmolLM2-135M-Instruct: where it lies, and what every operator asks of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from nlrl import registry
from nlrl.ask import Asker
from nlrl.engine.base import Completion, Engine, EngineInfo, Request
from nlrl.evaluate.replies import grade_replies
from nlrl.operators.masked import Mask, Models, improve_masked
from nlrl.types import CallId, Failure, Situation
from nlrl.values.games import FreshGames, fresh_games
from nlrl.values.look_ahead import look_ahead, uniform_random
from nlrl.values.monte_carlo import language_monte_carlo
from nlrl.values.td_lambda import Trace, language_td_lambda
from nlrl_envs.base import TextEnv, seat_of, seats_of
from nlrl_prompts import load

NAME = "smollm2-135m-instruct"
HEAD = "| | calls | of the form | legal among these | bad replies | tokens a reply: mean, most |"
ROLES = ("policy", "value", "combine", "aggregate", "monte_carlo", "blend", "improve")


def model_folder() -> Path:
    """The converted model that `make real-model` puts into the user's cache; skips the test when it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("NLRL_REAL_MODEL") or cache / "nlrl" / NAME)
    if not (folder / "config.json").is_file():
        pytest.skip(f"There is no {NAME} in {folder}: run make real-model.")
    return folder


@dataclass
class Watched:
    """An engine that keeps every request with its reply; ``free`` asks without the form's constraint."""

    inner: Engine
    free: bool = False
    prompt_set: str = "full"
    asked: list[tuple[Request, Completion]] = field(default_factory=list)

    async def generate(self, requests: Sequence[Request]) -> list[Completion]:
        sent = [replace(request, constraint=None) for request in requests] if self.free else list(requests)
        completions = await self.inner.generate(sent)
        self.asked += zip(requests, completions, strict=True)
        return completions

    def describe(self) -> EngineInfo:
        return self.inner.describe()

    async def close(self) -> None:
        await self.inner.close()


@dataclass(frozen=True)
class Asked:
    """What one game's operators asked: calls with what was wrong with each, and the replies."""

    game: str
    calls: list[tuple[CallId, Failure | None]]
    replies: list[Completion]


async def ask_everything(game: str, engine: Engine, *, free: bool = False, prompt_set: str = "full") -> Asked:
    """Monte Carlo of one move, TD(lambda) of it with G2 apart, and masked improvement, in a game's first position, or
    second of two seats: every role, with few questions.

    Each question is asked once: what is counted is how a model replies, not how often it may try.
    """
    watched, failures = Watched(engine, free), dict[CallId, Failure]()
    env = _position(game)
    player = seats_of(env)[seat_of(env)]
    ask = Asker(
        watched, load(prompt_set, game), env.task, player, attempts=1, seed=0,
        record=lambda request, failure: failures.update({failure.call: failure}),
    )  # fmt: skip
    await _operators(env, Situation((env.observation,), CallId(0, 0, "policy"), env.legal_actions, player), ask)
    calls = [(request.call, failures.get(request.call)) for request, _ in watched.asked if request.call]
    return Asked(game, calls, [completion for _, completion in watched.asked])


async def _operators(env: TextEnv, situation: Situation, ask: Asker) -> None:
    rng = np.random.default_rng(0)
    groups, _ = await fresh_games([(env, situation)], FreshGames(2, uniform_random), rng)
    await language_monte_carlo(groups[:1], ask=ask)
    looks_A_K, _ = await look_ahead(
        env, situation.history, situation.call, variations=2, steps=2, rollout=uniform_random, rng=rng
    )
    await language_td_lambda(looks_A_K[:1], situation.history, situation.call, trace=Trace(0.5, "split"), ask=ask)
    await improve_masked([situation], Mask(samples=3), models=Models(ask, ask, ask), rng=rng)


def _position(game: str) -> TextEnv:
    env = registry.load("env", game)()
    env.reset(np.random.default_rng(0))
    if len(seats_of(env)) > 1:
        env.step(env.legal_actions[0])
    return env


def table(asked: Sequence[Asked], seconds: float) -> str:
    """Rates by game and by role as rows of Markdown, and what the whole took."""
    calls = [(asked_, call) for asked_ in asked for call in asked_.calls]
    replies = [reply for asked_ in asked for reply in asked_.replies]
    rows = [(a.game, a.calls, a.replies) for a in asked]
    for role in ROLES:
        chosen = [i for i, (_, (call, _)) in enumerate(calls) if call.role == role]
        rows.append((role, [calls[i][1] for i in chosen], [replies[i] for i in chosen]))
    rows.append(("all", [call for _, call in calls], replies))
    lines = [HEAD, "|---|---|---|---|---|---|"]
    for name, of_row, written in rows:
        if not of_row:  # what it would have been asked about got no usable reply
            lines.append(f"| {name} | 0 | | | never asked | |")
            continue
        grade, counts = grade_replies(of_row)["all"], [reply.completion_tokens for reply in written]
        bad = ", ".join(f"{kind} {n}" for kind, n in grade.failures) or "none"
        shares = f"{grade.parsed.share:.0%} | {grade.legal.share:.0%}"
        lines.append(f"| {name} | {len(of_row)} | {shares} | {bad} | {np.mean(counts):.0f}, {max(counts)} |")
    tokens = sum(reply.completion_tokens for reply in replies)
    read = sum(reply.prompt_tokens for reply in replies)
    speed = f"{read:,} tokens read, {tokens:,} written in {seconds:.0f} s: {tokens / seconds:.0f} a second"
    return "\n".join([*lines, speed])
