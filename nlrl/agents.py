"""Who moves: agents make a decision in one game at a time, and share batches by being asked for many games at once.

A language model's batch is filled by its engine, from all the games that are played at the same time. An opponent of
`nlrl_envs.opponents` is a function of many games, and `opponent_agent` fills its batch in the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np

from nlrl.ask import Asker
from nlrl.policy import act
from nlrl.types import CallId, Decision, History, ImprovedPolicy
from nlrl_envs.base import SeatedEnv, TextEnv, seat_of, seats_of
from nlrl_envs.opponents import Opponent

Agent = Callable[[TextEnv, History, CallId, np.random.Generator], Awaitable[Decision]]
"""(game in progress, history, game and step as a `CallId`, the game's own randomness) -> decision."""


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
    """An opponent of `nlrl_envs.opponents` as an agent; its moves are recorded as an opponent's.

    Games that wait for a move at the same time are moved in one call, each with its own randomness, so that it makes no
    difference which others wait. The call runs in a thread: a search of seconds keeps neither the language models'
    games nor Ctrl-C waiting, and who comes while it runs is moved by the next.
    """
    waiting: list[tuple[SeatedEnv, np.random.Generator, asyncio.Future[str]]] = []
    moving: list[asyncio.Task[None]] = []

    async def move_all() -> None:
        try:
            while waiting:
                # Games whose models answered in one batch come here in the same turn of the event loop.
                await asyncio.sleep(0)
                games, rngs, places = zip(*waiting, strict=True)
                waiting.clear()
                try:
                    moves = await asyncio.to_thread(opponent, games, rngs)
                except Exception as error:
                    _settle(places, [error] * len(places))
                else:
                    _settle(places, moves)
        finally:
            # Here and not in a callback: who comes between the two would wait for a task that has ended.
            moving.clear()

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        assert isinstance(env, SeatedEnv), "opponents are for games of two"
        place = asyncio.get_running_loop().create_future()
        waiting.append((env, rng, place))
        if not moving:
            moving.append(asyncio.create_task(move_all()))
        return Decision(call.game, call.step, history, ImprovedPolicy(await place, "opponent"), own=False)

    return agent


def _settle(places: Sequence[asyncio.Future[str]], outcomes: Sequence[str | Exception]) -> None:
    for place, outcome in zip(places, outcomes, strict=True):
        if place.done():  # its game was given up
            continue
        if isinstance(outcome, Exception):
            place.set_exception(outcome)
        else:
            place.set_result(outcome)


def pool_agent(members: Sequence[Agent], weights: Sequence[float] | None = None) -> Agent:
    """One of several agents a game, drawn by the game's number, and the same until the game ends: past policies, say.

    Args:
        members: to draw from.
        weights: how often each is drawn, relative to the others; None for equally often.

    Raises:
        ValueError: there is no member, or not one weight a member.
    """
    weights = [1.0] * len(members) if weights is None else weights
    if not members or len(weights) != len(members) or min(weights) < 0 or not sum(weights):
        raise ValueError("A pool has at least one agent, and one weight for each or none at all.")
    share = np.array(weights) / sum(weights)

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        member = members[np.random.default_rng(call.game).choice(len(members), p=share)]
        return await member(env, history, call, rng)

    return agent


def seated_agent(player: Agent, opponent: Agent) -> Agent:
    """For games of two: `player` moves for the seat it has in a game (`seat_in`), `opponent` for the other one."""

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        own = seat_of(env) == seat_in(env, call.game)
        decision = await (player if own else opponent)(env, history, call, rng)
        return replace(decision, own=own)

    return agent


def remembering(agent: Agent, states: dict[tuple[int, int], Hashable]) -> Agent:
    """The same agent; notes under (game, step) the state in which each of its decisions is made."""

    async def remembered(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        states[call.game, call.step] = env.state
        return await agent(env, history, call, rng)

    return remembered


def player_against(env: TextEnv, player: Agent, opponent: Agent | None) -> Agent:
    """Who moves in a run's games: the player and, in games of two, its opponent; without one it plays itself."""
    return player if len(seats_of(env)) == 1 else seated_agent(player, opponent or player)


def seat_in(env: TextEnv, game: int) -> int:
    """The seat that the run's player takes in a game: each in turn; 0 in games of one."""
    return game % len(seats_of(env))


def through_the_eyes_of(player: str, ask: Asker) -> Asker:
    """The same model, asked on behalf of a seat."""
    return ask if ask.player == player else replace(ask, player=player)
