"""The same requests to the same engine, as one offline batch: what `nlrl bench loop` holds a loop against."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nlrl.ask import Asker
from nlrl.cast import Speaker
from nlrl.policy import act
from nlrl.task import Task
from nlrl.types import CallId
from nlrl_envs.base import seat_of, seats_of

if TYPE_CHECKING:
    from nlrl.bench_loop import Phase

WARM_GAMES = 64


async def warm_up(engine: Any, speaker: Speaker, task: Task) -> None:
    """Ask from situations of several lengths, alone and together, so that nothing is compiled while time is taken."""
    import asyncio

    env, rng = task.env.clone(), np.random.default_rng(0)
    ask = Asker(engine, speaker.prompts, env.task, attempts=1, seed=0)
    waiting = []
    for game in range(WARM_GAMES):
        env = task.env.clone()
        env.reset(rng, task.starts_G[game % len(task.starts_G)])
        for _ in range(int(rng.integers(4))):
            result = env.step(str(rng.choice(env.legal_actions)))
            if result.terminated or result.truncated:
                break
        else:
            seen = Asker(engine, ask.prompts, env.task, seats_of(env)[seat_of(env)], attempts=1, seed=0)
            one = act(seen, (env.observation,), env.legal_actions, CallId(game, 0, "policy"))
            if game < 4:
                await one
            else:
                waiting.append(one)
    await asyncio.gather(*waiting)


def replays(engine: Any, phases: Sequence[Phase], *, until: float) -> Iterator[tuple[str, dict[str, float]]]:
    """Each phase's requests as one batch by the weights of the phase, then all of them by the last; (name, figures).

    Prompts are token ids and every form has been accepted, so that nothing but vLLM itself is timed. The prefix cache
    is emptied before each. Nothing is begun after `until`, on `time.perf_counter`'s clock.
    """
    for phase in phases:
        if time.perf_counter() < until:
            if phase.weights:
                engine.update_weights(phase.weights)
            yield phase.name, _batch(engine, phase.asked)
    if time.perf_counter() < until:
        yield "all", _batch(engine, [one for phase in phases for one in phase.asked])


def _batch(engine: Any, asked: Sequence[tuple[list[int], Any]]) -> dict[str, float]:
    inner, written = engine._engine, 0
    inner.reset_prefix_cache()
    begun = time.perf_counter()
    for number, (ids, params) in enumerate(asked):
        inner.add_request(f"replay-{number}", {"type": "token", "prompt_token_ids": ids}, params)
    taken = time.perf_counter() - begun
    while inner.has_unfinished_requests():
        written += sum(len(output.outputs[0].token_ids) for output in inner.step() if output.finished)
    seconds = time.perf_counter() - begun
    return {"requests": len(asked), "seconds": round(seconds, 3), "taken_s": round(taken, 3), "written": written}
