"""Natural-language reinforcement learning on one page.

Source: Feng et al., "Natural Language Reinforcement Learning", arXiv 2411.14251. What the paper does in numbered
algorithms stands here in functions that read like them; each is a stream of events that recording, drawing and grading
consume, and none of them grades, prints or touches a file.

- `decide`: one step of language policy iteration. Look ahead from every legal action, describe each look-ahead in words
  (V^L), aggregate the descriptions (G1 with G2), improve the move from them (I). At K variations that is 4 K + 4 + 1
  calls in three waves for a state with four actions.
- `policy_iteration` (Algorithm 1): decide wherever the games lead, and teach a student the plain policy from it.
- `td_values` (Algorithm 2): V^L of a fixed policy by language TD, again and again from the student's own last V^L.
- `actor_critic` (Algorithm 3): games, language Monte Carlo, a value student, improvement, a policy student.
- `sweep`: one synchronous language TD backup over a set of states, then one improvement in each: value iteration in
  words, which with the oracle engine is value iteration in numbers.

Iteration 0 of a loop evaluates the untrained student. A loop is a function of its arguments and of the answers it gets:
to resume one, run it again from the start over recorded answers (`nlrl.recorded`).

Deviations from the authors' code are listed in the modules that hold the operators; of the loops: iteration 0 exists,
lost games count (`nlrl.play`), and every call and game of a run has a number of its own (`games_of`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from nlrl import stages
from nlrl.agents import Agent, opponent_agent, plain_agent, random_agent, remembering, through_the_eyes_of
from nlrl.ask import Asker
from nlrl.distill.examples import policy_examples, value_examples
from nlrl.knobs import EIGHT_OF_THREE, ActorCriticKnobs, LookAheadKnobs, PolicyIterationKnobs, TdKnobs
from nlrl.learn import Student, Students
from nlrl.operators.agree import agreed
from nlrl.operators.improve import improve
from nlrl.operators.masked import Models, improve_masked, unique
from nlrl.play import Games, deal, decide_in
from nlrl.stages import games_of, rng_of
from nlrl.types import (
    CallId,
    Decision,
    Event,
    Example,
    Failure,
    Group,
    History,
    Improved,
    ImprovedPolicy,
    LanguageValue,
    LookAhead,
    LoopEvent,
    PhaseStart,
    Step,
)
from nlrl.values.buffer import merge
from nlrl.values.direct import language_values
from nlrl.values.games import Root, root_at
from nlrl.values.look_ahead import NextActions, as_read, continuations, draw_ahead, look_ahead, uniform_random
from nlrl.values.monte_carlo import language_monte_carlo
from nlrl.values.td import language_td, language_td_values
from nlrl_envs.base import TextEnv, seat_of, seats_of
from nlrl_envs.opponents import Opponent

Key = TypeVar("Key", bound=Hashable)


async def decide(
    env: TextEnv,
    history: History,
    call: CallId,
    rng: np.random.Generator,
    *,
    ask: Asker,
    value_ask: Asker | None = None,
    knobs: LookAheadKnobs = EIGHT_OF_THREE,
) -> Decision:
    """Language policy iteration at one state: evaluate every legal action in words, then improve."""
    ask, value_ask = (through_the_eyes_of(seats_of(env)[seat_of(env)], a) for a in (ask, value_ask or ask))
    ahead = look_ahead if knobs.distinct else draw_ahead
    looks_A_K, lost = await ahead(
        env, history, call, variations=knobs.variations, steps=knobs.steps, rollout=knobs.rollout, rng=rng
    )
    looks_A_K = [as_read(looks_K, knobs.leaf_items) for looks_K in looks_A_K]
    estimate = await language_td(looks_A_K, history, call, ask=ask, value_ask=value_ask, combine=knobs.combine)
    choice, answer = await improve(estimate.candidates_A, history, call, ask=ask, rng=rng)
    failures = (*lost, *estimate.failures, *(answer.failures if answer else ()))
    return Decision(call.game, call.step, history, choice, failures, estimate.calls + (answer.calls if answer else 0))


def policy_iteration_agent(ask: Asker, knobs: LookAheadKnobs, value_ask: Asker | None = None) -> Agent:
    """The agent that improves its move before it makes it."""

    async def agent(env: TextEnv, history: History, call: CallId, rng: np.random.Generator) -> Decision:
        return await decide(env, history, call, rng, ask=ask, value_ask=value_ask, knobs=knobs)

    return agent


async def policy_iteration(
    env: TextEnv,
    *,
    models: Models,
    students: Students | None,
    knobs: PolicyIterationKnobs,
    starts: Sequence[Hashable],
    opponent: Opponent | None = None,
    seed: int,
) -> AsyncIterator[LoopEvent]:
    """Algorithm 1: decide wherever the games from `starts` lead; a student learns the choices as its plain policy."""
    agent = policy_iteration_agent(models.improver, knobs.look_ahead, models.value)
    other = None if opponent is None else opponent_agent(opponent)
    sets_K: list[Improved] = []
    for iteration in range(knobs.iterations + 1):
        if iteration:
            decisions: list[Decision] = []
            yield PhaseStart(iteration, "improve", len(starts))
            if knobs.sweep:
                roots = stages.roots_at(env, starts, games_of(iteration, "improve"))
                decisions = await decide_in(roots, agent, seed=seed, at_once=knobs.play.at_once)
            else:
                async for event in stages.play_games(
                    env, Games(starts, first=games_of(iteration, "improve")), agent, other, knobs.play, seed
                ):
                    decisions += [event.decision] if isinstance(event, Step) and event.decision.own else []
                    yield event
            improved = stages.decided(iteration, decisions)
            yield improved
            if students is None:
                continue
            # What was decided with look-ahead is what the plain policy is to say without it.
            sets_K = [*sets_K, improved][-knobs.buffer :]
            taught_S = [situation for one in sets_K for situation in one.situations_S]
            choices_S = [choice for one in sets_K for choice in one.choices_S]
            if knobs.agreed:
                choices_S = agreed(taught_S, choices_S, models.policy.policy_items, once=not knobs.every_occurrence)
            lessons = policy_examples(taught_S, choices_S, ask=models.policy, iteration=iteration)
            yield PhaseStart(iteration, "distil policy", len(lessons))
            yield await students.policy.learn(lessons, iteration=iteration, student="policy", seed=seed)
        async for event in stages.evaluation(env, iteration, models.policy, other, knobs.play, seed):
            yield event


async def td_values(
    env: TextEnv,
    roots_S: Sequence[Hashable],
    *,
    models: Models,
    student: Student,
    knobs: TdKnobs,
    rollout: NextActions,
    seed: int,
) -> AsyncIterator[LoopEvent]:
    """Algorithm 2: V^L of the fixed policy `rollout` in the states `roots_S`, by TD over K variations of l moves.

    The variations are drawn once. At their ends V^L is the teacher's in the first iteration, then the student's.
    """
    variations_S: list[Group] = []
    lost: list[Failure] = []
    sets_K: list[list[Example]] = []
    for iteration in range(knobs.iterations + 1):
        if iteration == 1:
            yield PhaseStart(iteration, "collect", len(roots_S))
            variations_S, lost = await continuations(
                stages.roots_at(env, roots_S, games_of(iteration, "collect")),
                variations=knobs.variations,
                steps=knobs.steps,
                distinct=knobs.distinct,
                rollout=rollout,
                rng=rng_of(seed, iteration, "collect"),
            )
            variations_S = [replace(g, games_K=tuple(as_read(g.games_K, knobs.history_items))) for g in variations_S]
        if iteration:
            yield PhaseStart(iteration, "estimate", len(variations_S))
            found = await language_td_values(
                stages.renumbered(variations_S, games_of(iteration, "estimate")),
                ask=models.estimator,
                value_ask=models.estimator if iteration == 1 else models.value,
                combine=knobs.combine,
            )
            yield stages.estimated(iteration, found, lost if iteration == 1 else [])
            sets_K.append(value_examples(found.evaluations, ask=models.value, iteration=iteration))
            lessons = merge(sets_K, knobs.buffer, rng_of(seed, iteration, "distil value"), how=knobs.merge)
            yield PhaseStart(iteration, "distil value", len(lessons))
            yield await student.learn(lessons, iteration=iteration, student="value", seed=seed)
        if knobs.held_out:
            yield PhaseStart(iteration, "evaluate", len(knobs.held_out))
            roots = stages.roots_at(env, knobs.held_out, games_of(iteration, "evaluate"))
            yield stages.estimated(
                iteration, await language_values([(one, None) for _, one in roots], ask=models.value)
            )


async def actor_critic(
    env: TextEnv,
    *,
    models: Models,
    students: Students,
    knobs: ActorCriticKnobs,
    opponent: Opponent | None,
    seed: int,
) -> AsyncIterator[LoopEvent]:
    """Algorithm 3: games by pi_L, G1 over them, a value student, I over its words, a policy student.

    Without an opponent, a game of two is played against the policy itself.
    """
    pi = replace(models.policy, temperature=knobs.play.temperature)
    other = None if opponent is None else opponent_agent(opponent)
    past: list[Agent] = []
    sets_K: list[list[Example]] = []
    for iteration in range(knobs.iterations + 1):
        if iteration:
            # Games of the present policy, and what its player met in them.
            at_random = iteration == 1 and knobs.random_first
            states: dict[tuple[int, int], Hashable] = {}
            events: list[Event] = []
            player = remembering(random_agent() if at_random else plain_agent(pi), states)
            facing = stages.drawn(other or plain_agent(pi), past, knobs.past_share)
            yield PhaseStart(iteration, "collect", knobs.games)
            games = deal(env, knobs.games, games_of(iteration, "collect"), rng_of(seed, iteration, "collect"))
            async for event in stages.play_games(env, games, player, facing, knobs.play, seed):
                events.append(event)
                yield event
            situations_I = stages.own_situations(events)
            # Their values in words.
            rollout = stages.rollout(None if at_random else pi, opponent, knobs.play.history_items)
            roots = [root_at(env, states[s.call.game, s.call.step], s) for s in unique(situations_I)]
            groups, lost = await stages.evidence(events, roots, knobs, rollout, rng_of(seed, iteration, "estimate"))
            yield PhaseStart(iteration, "estimate", len(groups))
            found = await language_monte_carlo(groups, ask=models.estimator)
            yield stages.estimated(iteration, found, lost)
            sets_K.append(value_examples(found.evaluations, ask=models.value, iteration=iteration))
            lessons = merge(sets_K, knobs.buffer, rng_of(seed, iteration, "distil value"), how=knobs.merge)
            yield PhaseStart(iteration, "distil value", len(lessons))
            yield await students.value.learn(lessons, iteration=iteration, student="value", seed=seed)
            # A better move in each situation, by the value student's words.
            yield PhaseStart(iteration, "improve", len(roots))
            improved = await _improve(iteration, env, roots, models=models, knobs=knobs, opponent=opponent, seed=seed)
            yield improved
            choice = dict(zip((s.key for s in improved.situations_S), improved.choices_S, strict=True))
            taught = situations_I if knobs.every_occurrence else improved.situations_S
            lessons = policy_examples(taught, [choice[s.key] for s in taught], ask=models.policy, iteration=iteration)
            yield PhaseStart(iteration, "distil policy", len(lessons))
            trained = await students.policy.learn(lessons, iteration=iteration, student="policy", seed=seed)
            yield trained
            past += [plain_agent(models.past(trained))] if models.past else []
        async for event in stages.evaluation(env, iteration, models.policy, other, knobs.play, seed):
            yield event


async def _improve(
    iteration: int,
    env: TextEnv,
    roots_S: Sequence[Root],
    *,
    models: Models,
    knobs: ActorCriticKnobs,
    opponent: Opponent | None,
    seed: int,
) -> Improved:
    """I over the masked candidates' Q^L; or, where V^L is learned, over what each move and the reply to it lead to."""
    if knobs.form == "Q":
        situations_S = tuple(situation for _, situation in roots_S)
        speakers = replace(models, policy=replace(models.policy, temperature=knobs.mask_temperature))
        rng = rng_of(seed, iteration, "improve")
        found = await improve_masked(situations_S, knobs.mask, models=speakers, rng=rng)
        return Improved(iteration, situations_S, found.choices_S, found.failures, found.calls)
    items = knobs.play.history_items
    replies = stages.rollout(models.policy, opponent, items)
    look = LookAheadKnobs(knobs.k_mc, len(seats_of(env)) - 1, rollout=replies, distinct=False, leaf_items=items)
    agent = policy_iteration_agent(models.improver, look, models.value)
    return stages.decided(iteration, await decide_in(roots_S, agent, seed=seed, at_once=knobs.play.at_once))


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
