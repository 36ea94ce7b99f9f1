"""Games under any agent, as streams of events that logging, saving and drawing consume.

In games of two the run's player takes seat g mod 2 in game g, so that it has each seat equally often; rewards are those
of the run's player, whoever moved, so a loss by the opponent's last move is seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nlrl.agents import Agent, seat_in
from nlrl.types import CallId, Decision, Event, GameEnd, GameStart, History, Situation, Step, truncate_history
from nlrl.values.games import Root
from nlrl_envs.base import TextEnv, rewards_of, seat_of, seats_of


async def play(
    env: TextEnv,
    start: Hashable,
    agent: Agent,
    *,
    game: int,
    rng: np.random.Generator,
    history_items: int,
    optimal_return: float | None = None,
) -> AsyncIterator[Event]:
    """One game from `start`. The agent sees the last `history_items` items of history.

    An agent without a usable move forfeits: the game ends there, with the reward an illegal move costs. Rewards are
    those of the run's player, whoever moved: a loss by the opponent's last move is among them.
    """
    history: History = (env.reset(rng, start),)
    yield GameStart(game, env.describe_start(start), history[0], env.render(), optimal_return)
    total, step, seat = 0.0, 0, seat_in(env, game)
    while True:
        history = truncate_history(history, history_items)
        known = {"actions": env.legal_actions, "player": seats_of(env)[seat_of(env)]}
        decision = replace(await agent(env, history, CallId(game, step, "policy"), rng), **known)
        action = "" if decision.choice is None else decision.choice.action
        result = env.step(action)
        reward = rewards_of(result)[seat]
        total += reward
        yield Step(game, step, decision, action, reward, total, result.observation, env.render(), result.legal)
        history = (*history, action, result.observation)
        step += 1
        if decision.choice is None:
            yield GameEnd(game, total, step, "forfeit", env.terminal_text or "")
            return
        if result.terminated or result.truncated:
            success = reward > 0 if result.rewards_P else result.success
            outcome = "success" if success else "horizon" if result.truncated else "failure"
            yield GameEnd(game, total, step, outcome, env.terminal_text or "")
            return


@dataclass(frozen=True, slots=True)
class Games:
    """Which games are to be played."""

    starts_G: Sequence[Hashable]
    """Where each begins."""
    optimal_returns_G: Sequence[float] | None = None
    """V* of each start, for the record, when a solver knows it."""
    first: int = 0
    """Number of the first one in its run."""
    done: frozenset[int] = frozenset()
    """Numbers of those that were played to their end before the run was resumed; they are left out."""


async def play_all(
    env: TextEnv, games: Games, agent: Agent, *, seed: int, history_items: int = 7, at_once: int = 64
) -> AsyncIterator[Event]:
    """Up to `at_once` games at a time, so that the engine's batch is full; events as they come.

    Game g draws from a generator of its own, seeded by (`seed`, g): how the games interleave changes none of them.
    """
    events: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
    waiting = iter([i for i in range(len(games.starts_G)) if games.first + i not in games.done])

    async def one_after_another() -> None:
        for index in waiting:
            game = games.first + index
            events_of_game = play(
                env.clone(),
                games.starts_G[index],
                agent,
                game=game,
                rng=np.random.default_rng((seed, game)),
                history_items=history_items,
                optimal_return=None if games.optimal_returns_G is None else games.optimal_returns_G[index],
            )
            async for event in events_of_game:
                events.put_nowait(event)
                # An agent that never waits would keep the loop to itself: nobody would see events, Ctrl-C included.
                await asyncio.sleep(0)

    async def all_games() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, len(games.starts_G))):
                    group.create_task(one_after_another())
            events.put_nowait(None)
        except BaseExceptionGroup as group_error:
            events.put_nowait(group_error.exceptions[0])

    running = asyncio.create_task(all_games())
    try:
        while (event := await events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def deal(env: TextEnv, count: int, first: int, rng: np.random.Generator) -> Games:
    """So many games: the starts in a random order, each from every seat, over again until there are enough."""
    starts, seats = env.starts(), len(seats_of(env))
    order = rng.permutation(len(starts))
    return Games([starts[order[(g // seats) % len(starts)]] for g in range(count)], first=first)


async def decide_in(roots_S: Sequence[Root], agent: Agent, *, seed: int, at_once: int = 64) -> list[Decision]:
    """The agent's decision in each situation, for whoever is to move there; nothing is played."""
    places = asyncio.Semaphore(at_once)

    async def one(env: TextEnv, situation: Situation) -> Decision:
        call = situation.call
        async with places:
            rng = np.random.default_rng((seed, call.game, call.step))
            decision = await agent(env, situation.history, call, rng)
        return replace(decision, actions=situation.actions, player=situation.player)

    return await asyncio.gather(*(one(env, situation) for env, situation in roots_S))
