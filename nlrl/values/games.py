"""Games as evidence: a run's own ones grouped by what was moved where, or fresh ones from given situations.

Source: arXiv 2411.14251, eq. 5 and section 4.3: Q^L(s, a) is estimated from up to K_MC whole games that went on from
(s, a). As in the authors' code, occurrences are grouped by (s, a), shuffled and cut into chunks of at most K.

Deviations from the authors' code, on purpose:
- the V form works (theirs crashes), and fresh roll-outs exist, so that K can be what was asked for: 87 % of the moves
  in 512 random games of Tic-Tac-Toe occur once, whatever K_MC says;
- the K really achieved is on every group and summed up by `achieved`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from nlrl.types import (
    CallId,
    Decision,
    Event,
    Failure,
    GameEnd,
    GameStart,
    Group,
    LookAhead,
    Situation,
    Step,
    Trajectory,
    truncate_history,
)
from nlrl.values.look_ahead import TO_THE_END, Branch, NextActions, first_move, walk
from nlrl_envs.base import TextEnv, seat_of, seats_of

Form = Literal["Q", "V"]

Root = tuple[TextEnv, Situation]
"""A game in progress, which nobody steps, and the situation that its mover is in."""

ENDINGS = {
    "success": "The player has succeeded.",
    "failure": "The player has not succeeded.",
    "horizon": "The moves are used up.",
    "forfeit": "The player made no usable move and gives up the game.",
}
"""How a game ended that does not say so itself."""


def trajectories(events: Iterable[Event]) -> list[Trajectory]:
    """The finished games among events that may be interleaved, in the order of their numbers.

    Games without a move of the run's own player are left out. Rewards are those of that player (`nlrl.play.play`).
    """
    starts: dict[int, GameStart] = {}
    steps: dict[int, list[Step]] = {}
    ends: dict[int, GameEnd] = {}
    for event in events:
        if isinstance(event, GameStart):
            starts[event.game] = event
        elif isinstance(event, Step):
            steps.setdefault(event.game, []).append(event)
        else:
            ends[event.game] = event
    played = [game for game in sorted(ends) if any(step.decision.own for step in steps.get(game, ()))]
    return [_trajectory(starts[game], steps[game], ends[game]) for game in played]


def own_turns(trajectory: Trajectory, history_items: int) -> list[tuple[int, Situation]]:
    """Each move of the player: its place in the game and the situation as the agent saw it."""
    return [(t, _situation(trajectory, t, history_items)) for t in range(len(trajectory.actions)) if trajectory.own[t]]


def situation_of(decision: Decision) -> Situation:
    """What was decided about."""
    return Situation(
        decision.history, CallId(decision.game, decision.step, "policy"), decision.actions, decision.player
    )


def root_at(env: TextEnv, state: Hashable, situation: Situation | CallId) -> Root:
    """A copy of the game in a state, with what its mover knows: a situation, or at some place just the state."""
    game = env.clone()
    game.set_state(state)
    if isinstance(situation, CallId):
        situation = Situation((game.observation,), situation, game.legal_actions, seats_of(game)[seat_of(game)])
    return game, situation


def what_followed(trajectory: Trajectory, turn: int, situation: Situation) -> LookAhead:
    """The rest of a game from a turn on, the move there included."""
    observations, actions = trajectory.observations[turn + 1 :], trajectory.actions[turn:]
    moved = [item for pair in zip(actions, observations, strict=True) for item in pair]
    return LookAhead(
        (*situation.history, *moved), actions, trajectory.rewards[turn:], trajectory.ending, trajectory.game
    )


def group(games_G: Sequence[Trajectory], *, history_items: int, form: Form = "Q") -> list[Group]:
    """The player's turns by situation and move (or situation alone), in the order of their first occurrence.

    The sizes of the groups add up to the number of the player's moves. Moves that were not legal are left out: what
    followed from them is a forfeit.
    """
    found: dict[tuple, list[LookAhead]] = {}
    first: dict[tuple, Situation] = {}
    for trajectory in games_G:
        for turn, situation in own_turns(trajectory, history_items):
            action = trajectory.actions[turn]
            if action not in (situation.actions or (action,)):
                continue
            key = (situation.key, action if form == "Q" else None)
            first.setdefault(key, situation)
            found.setdefault(key, []).append(what_followed(trajectory, turn, situation))
    return [Group(first[key], key[1], tuple(looks)) for key, looks in found.items()]


def chunk(groups: Sequence[Group], most: int, rng: np.random.Generator) -> list[Group]:
    """Groups of at most `most` games (K_MC): each group's games shuffled and dealt out, nothing left out.

    Raises:
        ValueError: `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"A Monte Carlo estimate reads at least one game, not {most}.")
    dealt = []
    for one in groups:
        order = rng.permutation(len(one.games_K))
        for begin in range(0, len(order), most):
            dealt.append(replace(one, games_K=tuple(one.games_K[i] for i in order[begin : begin + most])))
    return dealt


def achieved(groups: Iterable[Group]) -> dict[int, int]:
    """How many groups have how many games, ascending: the K really achieved."""
    return dict(sorted(Counter(len(one.games_K) for one in groups).items()))


@dataclass(frozen=True, slots=True)
class FreshGames:
    """How games are played on from a situation, for evidence."""

    count: int
    """K: games an action, or a situation in the V form."""
    rollout: NextActions
    """Who moves, for all seats: see `nlrl.values.look_ahead.against`."""
    form: Form = "Q"
    most_moves: int = TO_THE_END
    """A game that has not ended by then is no evidence and is left out."""


async def fresh_games(
    roots_S: Sequence[Root], knobs: FreshGames, rng: np.random.Generator
) -> tuple[list[Group], list[Failure]]:
    """`knobs.count` games to their end from each situation, or from each of its legal moves; independent draws.

    `roots_S` pairs each situation with its game, which is not stepped. All games advance together. A group has fewer
    games than asked only where the roll-out policy failed, which is returned, or where games did not end.
    """
    branches: list[Branch] = []
    owner: dict[CallId, tuple[int, str | None]] = {}
    for s, (env, situation) in enumerate(roots_S):
        for action in env.legal_actions if knobs.form == "Q" else (None,):
            for k in range(knobs.count):
                call = replace(situation.call, action=action, variation=k)
                owner[call] = (s, action)
                root = Branch(env.clone(), LookAhead(situation.history, (), ()), call, seat_of(env))
                branches.append(root if action is None else first_move(env, situation.history, action, call))
    if len(owner) != len(branches):
        raise ValueError("Two situations have the same place in the run; give each a CallId of its own.")
    finished, failures = await walk(branches, knobs.most_moves, knobs.rollout, rng)
    games: dict[tuple[int, str | None], list[LookAhead]] = {place: [] for place in owner.values()}
    for branch in finished:
        if branch.look.terminal_text is not None:
            games[owner[branch.call]].append(branch.look)
    return [Group(roots_S[s][1], action, tuple(looks)) for (s, action), looks in games.items()], failures


def _trajectory(start: GameStart, steps: Sequence[Step], end: GameEnd) -> Trajectory:
    steps = sorted(steps, key=lambda step: step.step)
    return Trajectory(
        game=start.game,
        observations=(start.observation, *(step.observation for step in steps)),
        actions=tuple(step.action for step in steps),
        rewards=tuple(step.reward for step in steps),
        own=tuple(step.decision.own for step in steps),
        legal_T_A=tuple(step.decision.actions for step in steps),
        ending=end.ending or ENDINGS[end.outcome],
        player=next(step.decision.player for step in steps if step.decision.own),
    )


def _situation(trajectory: Trajectory, turn: int, history_items: int) -> Situation:
    moved = [x for pair in zip(trajectory.observations, trajectory.actions[:turn], strict=False) for x in pair]
    history = truncate_history((*moved, trajectory.observations[turn]), history_items)
    call = CallId(trajectory.game, turn, "policy")
    return Situation(history, call, trajectory.legal_T_A[turn], trajectory.player)
