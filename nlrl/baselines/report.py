"""Any agent played and graded in the same way: results by seat, agreement with the solver, replies."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nlrl.agents import Agent, opponent_agent, player_against
from nlrl.evaluate.grades import Grades, grade_games, grade_moves, grade_replies, make_grader
from nlrl.play import deal, play_all
from nlrl.types import CallId, Failure, GameEnd, Step
from nlrl_envs.base import TextEnv, seats_of
from nlrl_envs.opponents import Opponent


async def evaluate(
    env: TextEnv,
    agent: Agent,
    opponent: Opponent | None,
    *,
    games: int,
    seed: int,
    history_items: int = 1,
    exact: bool = True,
) -> Grades:
    """Plays `games` games, seats alternating, and grades them.

    Args:
        env: the game.
        agent: who is graded.
        opponent: of games of two; None lets the agent play itself, and in games of one there is none.
        games: how many, over the game's starts.
        seed: of all of them.
        history_items: what the agent remembers.
        exact: whether moves are held against the solver, where there is one.
    """
    player = player_against(env, agent, None if opponent is None else opponent_agent(opponent))
    steps: list[Step] = []
    ends: list[GameEnd] = []
    dealt = deal(env, games, 0, np.random.default_rng((seed, 0)))
    async for event in play_all(env, dealt, player, seed=seed, history_items=history_items):
        if isinstance(event, Step):
            steps.append(event)
        elif isinstance(event, GameEnd):
            ends.append(event)
    grader = make_grader(env) if exact else None
    return Grades(
        games=grade_games(ends, seats_of(env)),
        moves=None if grader is None else grade_moves(steps, grader),
        replies=grade_replies(_calls(steps)) if all(map(_asks_one_question, steps)) else {},
    )


def _asks_one_question(step: Step) -> bool:
    return step.decision.calls <= len(step.decision.failures) + 1


def _calls(steps: Iterable[Step]) -> Iterable[tuple[CallId, Failure | None]]:
    """The calls of an agent that asks its policy once a move: each failure, and the answer that was used in the end.

    What others asked their decisions do not tell; a run's record does.
    """
    for step in steps:
        failures = step.decision.failures
        yield from ((failure.call, failure) for failure in failures)
        if step.decision.own and step.decision.calls > len(failures):
            yield CallId(step.game, step.step, "policy", attempt=len(failures)), None
