"""What the loops of `nlrl.iterate` are made of beside the operators: numbers, games, evidence, and their records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from nlrl.agents import Agent, plain_agent, player_against, pool_agent
from nlrl.ask import Asker
from nlrl.knobs import ActorCriticKnobs, GameKnobs
from nlrl.play import Games, deal, play_all
from nlrl.types import (
    CallId,
    Decision,
    Estimated,
    Evaluations,
    Event,
    Failure,
    Group,
    Improved,
    LoopEvent,
    PhaseName,
    PhaseStart,
    Situation,
    Step,
)
from nlrl.values.games import FreshGames, Root, chunk, fresh_games, group, root_at, situation_of, trajectories
from nlrl.values.look_ahead import NextActions, against, language_policy, opponent_policy, uniform_random
from nlrl_envs.base import TextEnv
from nlrl_envs.opponents import Opponent

PHASES: tuple[PhaseName, ...] = ("collect", "estimate", "distil value", "improve", "distil policy", "evaluate")
A_PHASE = 1_000_000
"""Numbers of games that a phase may use."""


def games_of(iteration: int, phase: PhaseName) -> int:
    """The number of the first game or root of a phase; in decimal: the iteration, a digit for the phase, six for games.

    Games and calls of a run are told apart by these numbers (`CallId`), so no two phases share any.
    """
    return (iteration * 10 + PHASES.index(phase)) * A_PHASE


def number_in_phase(game: int) -> int:
    """A game's number as people are told it: counted from the first of its phase."""
    return game % A_PHASE


def rng_of(seed: int, iteration: int, phase: PhaseName) -> np.random.Generator:
    """A phase's own randomness, apart from that of its games."""
    return np.random.default_rng((seed, games_of(iteration, phase), 0))


async def play_games(
    env: TextEnv, games: Games, player: Agent, opponent: Agent | None, knobs: GameKnobs, seed: int
) -> AsyncIterator[Event]:
    """The games of a phase; without an opponent, the player takes all seats."""
    agent = player_against(env, player, opponent)
    async for event in play_all(env, games, agent, seed=seed, history_items=knobs.history_items, at_once=knobs.at_once):
        yield event


async def evaluation(
    env: TextEnv, iteration: int, policy: Asker, opponent: Agent | None, knobs: GameKnobs, seed: int
) -> AsyncIterator[LoopEvent]:
    """Games of the plain policy at temperature 0, from the same starts after each iteration."""
    if not knobs.evaluation_games:
        return
    player, starts = plain_agent(replace(policy, temperature=0.0)), rng_of(seed, 0, "evaluate")
    games = deal(env, knobs.evaluation_games, games_of(iteration, "evaluate"), starts)
    yield PhaseStart(iteration, "evaluate", knobs.evaluation_games)
    async for event in play_games(env, games, player, opponent, knobs, seed):
        yield event


def drawn(opponent: Agent, past: Sequence[Agent], share: float) -> Agent:
    """The opponent of an iteration's games: in a share of them one of the past policies, once there are any."""
    if not past or not share:
        return opponent
    return pool_agent([opponent, *past], [1 - share, *[share / len(past)] * len(past)])


def rollout(policy: Asker | None, opponent: Opponent | None, history_items: int) -> NextActions:
    """Who plays on where evidence is wanted: the policy, or random moves without one, against the opponent if any."""
    learner = uniform_random if policy is None else language_policy(policy, history_items)
    return learner if opponent is None else against(learner, opponent_policy(opponent))


def own_situations(events: Iterable[Event]) -> list[Situation]:
    """Where the run's player had to move, by game and step."""
    found = [situation_of(event.decision) for event in events if isinstance(event, Step) and event.decision.own]
    return sorted(found, key=lambda situation: (situation.call.game, situation.call.step))


async def evidence(
    events: Sequence[Event],
    roots: Sequence[Root],
    knobs: ActorCriticKnobs,
    next_actions: NextActions,
    rng: np.random.Generator,
) -> tuple[list[Group], list[Failure]]:
    """What G1 reads: the iteration's own games in chunks of K_MC, or fresh ones from each situation."""
    if knobs.fresh:
        return await fresh_games(roots, FreshGames(knobs.fresh, next_actions, knobs.form), rng)
    groups = group(trajectories(events), history_items=knobs.play.history_items, form=knobs.form)
    return chunk(groups, knobs.k_mc, rng), []


def roots_at(env: TextEnv, states_S: Sequence[Hashable], first: int) -> list[Root]:
    """The game in each state, numbered from `first`; its mover knows the state alone."""
    return [root_at(env, state, CallId(first + s, 0, "policy")) for s, state in enumerate(states_S)]


def renumbered(groups_S: Sequence[Group], first: int) -> list[Group]:
    """The same evidence under numbers of another phase, from `first`."""
    return [
        replace(one, situation=replace(one.situation, call=replace(one.situation.call, game=first + s)))
        for s, one in enumerate(groups_S)
    ]


def estimated(iteration: int, found: Evaluations, lost: Sequence[Failure] = ()) -> Estimated:
    """What an estimate found, and what was lost in making its evidence."""
    achieved_K = tuple(found.achieved_K.items())
    return Estimated(iteration, found.evaluations, (*lost, *found.failures), found.calls, achieved_K)


def decided(iteration: int, decisions_S: Sequence[Decision]) -> Improved:
    """Decisions as choices in situations, by game and step."""
    ordered = sorted(decisions_S, key=lambda decision: (decision.game, decision.step))
    return Improved(
        iteration,
        tuple(situation_of(decision) for decision in ordered),
        tuple(decision.choice for decision in ordered),
        tuple(failure for decision in ordered for failure in decision.failures),
        sum(decision.calls for decision in ordered),
    )
