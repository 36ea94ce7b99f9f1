"""Natural-language reinforcement learning on one page.

Source: Feng et al., "Natural Language Reinforcement Learning", arXiv 2411.14251. Three loops stand here:

- `decide`: one step of language policy iteration by prompting (Algorithm 1). Look ahead from every legal action,
  describe each look-ahead in words (V^L), aggregate the descriptions (G1 with G2), improve the move from them (I). At
  K variations that is 4 K + 4 + 1 calls in three waves for a state with four actions.
- `play` and `play_all`: games under any agent, as streams of events that logging, saving and drawing consume. In games
  of two the run's player takes seat g mod 2 in game g, so that it has each seat equally often.
- `sweep`: one synchronous language TD backup over a set of states, then one improvement in each: value iteration in
  words, which with the oracle engine is value iteration in numbers.

Deviations from the authors' code are listed in the modules that hold the operators.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import numpy as np

from nlrl.ask import Asker
from nlrl.operators.improve import improve
from nlrl.policy import act
from nlrl.types import (
    CallId,
    Decision,
    Event,
    GameEnd,
    GameStart,
    History,
    ImprovedPolicy,
    LanguageValue,
    LookAhead,
    Step,
    truncate_history,
)
from nlrl.values.look_ahead import NextActions, draw_ahead, look_ahead, uniform_random
from nlrl.values.td import language_td
from nlrl_envs.base import SeatedEnv, TextEnv, rewards_of, seat_of, seats_of
from nlrl_envs.opponents import Opponent

Key = TypeVar("Key", bound=Hashable)

Agent = Callable[[TextEnv, History, CallId, np.random.Generator], Awaitable[Decision]]
"""(game in progress, history, game and step as a `CallId`, randomness) -> decision."""


@dataclass(frozen=True, slots=True)
class LookAheadKnobs:
    """K variations of l steps, and who plays them."""

    variations: int = 8
    """K: distinct variations an action."""
    steps: int = 3
    """l: steps of the roll-out policy after the candidate action."""
    combine: Literal["fused", "split"] = "fused"
    """G1 and G2 in one call, or G2 for each variation and then G1."""
    rollout: NextActions = field(default=uniform_random)
    distinct: bool = True
    """Variations that differ, as in the paper; False: independent draws, whose mean estimates the expectation."""


async def decide(
    env: TextEnv,
    history: History,
    call: CallId,
    rng: np.random.Generator,
    *,
    ask: Asker,
    value_ask: Asker | None = None,
    knobs: LookAheadKnobs = LookAheadKnobs(),
) -> Decision:
    """Language policy iteration at one state: evaluate every legal action in words, then improve."""
    ask, value_ask = (through_the_eyes_of(seats_of(env)[seat_of(env)], a) for a in (ask, value_ask or ask))
    ahead = look_ahead if knobs.distinct else draw_ahead
    looks_A_K, lost = await ahead(
        env, history, call, variations=knobs.variations, steps=knobs.steps, rollout=knobs.rollout, rng=rng
    )
    estimate = await language_td(looks_A_K, history, call, ask=ask, value_ask=value_ask, combine=knobs.combine)
    choice, answer = await improve(estimate.candidates_A, history, call, ask=ask, rng=rng)
    failures = (*lost, *estimate.failures, *(answer.failures if answer else ()))
    return Decision(call.game, call.step, history, choice, failures, estimate.calls + (answer.calls if answer else 0))


def through_the_eyes_of(player: str, ask: Asker) -> Asker:
    """The same model, asked on behalf of a seat."""
    return ask if ask.player == player else replace(ask, player=player)


def policy_iteration_agent(ask: Asker, knobs: LookAheadKnobs, value_ask: Asker | None = None) -> Agent:
    """The agent that improves its move before it makes it."""

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        return await decide(env, history, call, rng, ask=ask, value_ask=value_ask, knobs=knobs)

    return agent


def plain_agent(ask: Asker) -> Agent:
    """The language policy by itself, without look-ahead: the baseline every gain is measured from."""

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        return await act(through_the_eyes_of(seats_of(env)[seat_of(env)], ask), history, env.legal_actions, call)

    return agent


def random_agent() -> Agent:
    """Every legal action with the same probability; no language model."""

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        action = str(rng.choice(env.legal_actions))
        return Decision(call.game, call.step, history, ImprovedPolicy(action, "at random"))

    return agent


def opponent_agent(opponent: Opponent) -> Agent:
    """An opponent of `nlrl_envs.opponents` as an agent; its moves are recorded as an opponent's."""

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        assert isinstance(env, SeatedEnv), "opponents are for games of two"
        (action,) = opponent([env], rng)
        return Decision(call.game, call.step, history, ImprovedPolicy(action, "opponent"), own=False)

    return agent


def seated_agent(player: Agent, opponent: Agent) -> Agent:
    """For games of two: `player` moves for the seat it has in a game (`seat_in`), `opponent` for the other one."""

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        own = seat_of(env) == seat_in(env, call.game)
        decision = await (player if own else opponent)(env, history, call, rng)
        return replace(decision, own=own)

    return agent


def seat_in(env: TextEnv, game: int) -> int:
    """The seat that the run's player takes in a game: each in turn; 0 in games of one."""
    return game % len(seats_of(env))


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
            yield GameEnd(game, total, step, "forfeit")
            return
        if result.terminated or result.truncated:
            success = reward > 0 if result.rewards_P else result.success
            outcome = "success" if success else "horizon" if result.truncated else "failure"
            yield GameEnd(game, total, step, outcome)
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


async def sweep(
    env: TextEnv,
    values_S: Mapping[Key, LanguageValue],
    *,
    ask: Asker,
    key: Callable[[TextEnv], Key],
    states_S: Sequence[Hashable],
    order: Sequence[str] | None = None,
) -> dict[Hashable, ImprovedPolicy]:
    """One synchronous language TD backup of every state over all its actions, then one improvement in each.

    `values_S` holds the language values before the sweep, by `key` of the state; each state's new value is that of the
    candidate its improved policy chose. One-step look-ahead, one variation an action: for games whose moves are
    deterministic. Candidates are shown in the game's order, or in `order`, which decides ties.

    Raises:
        ValueError: a reply cannot be used; a sweep with holes is not a sweep.
    """
    improved: dict[Hashable, ImprovedPolicy] = {}
    for number, state in enumerate(states_S):
        env.set_state(state)
        history: History = (env.observation,)
        call = CallId(0, number, "value")
        looks_A_K, _ = await look_ahead(
            env, history, call, variations=1, steps=0, rollout=uniform_random, rng=np.random.default_rng(0)
        )
        table = {look.history: values_S.get(_key_after(env, look, key)) for looks_K in looks_A_K for look in looks_K}
        estimate = await language_td(
            looks_A_K, history, call, ask=ask, leaf_value=lambda look, table=table: table[look.history]
        )
        candidates_A = sorted(estimate.candidates_A, key=lambda c: order.index(c.action) if order else 0)
        choice, _ = await improve(candidates_A, history, call, ask=ask)
        if choice is None:
            raise ValueError(f"State {state!r} got no usable reply, so the sweep has no result.")
        improved[state] = choice
    return improved


def chosen_value(policy: ImprovedPolicy) -> LanguageValue:
    """The language value of the candidate that was chosen."""
    return next(c.value for c in policy.candidates_A if c.action == policy.action)


def _key_after(env: TextEnv, look: LookAhead, key: Callable[[TextEnv], Key]) -> Key:
    after = env.clone()
    for action in look.actions:
        after.step(action)
    return key(after)
