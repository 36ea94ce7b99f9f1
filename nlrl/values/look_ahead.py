"""Looking ahead: K distinct variations of l steps after each candidate action, by a stated roll-out policy.

Source: arXiv 2411.14251, Alg. 2 and section 4.1: a candidate action is tried, a roll-out policy continues for l steps
(the candidate is not counted in l, as in the paper's maze experiments).

Deviations from the authors' code, on purpose:
- their documented maze run continues with the shortest-path policy after one random move; here the roll-out policy is
  uniformly random or the current language policy, never an oracle (the paper's text says "fully random");
- variations are distinct as long as distinct ones can be found, for every K; the number really achieved is
  `len(looks)` and is reported.

Where the paper is silent: in games with chance a variation is told apart by what was observed, so that the same moves
with other luck are another variation, also at 0 further steps; in games of two, rewards are those of the player at the
root, and the roll-out policy moves for every seat (`against` makes one from a learner's and an opponent's).

Distinct variations are not a sample: a mean over them is no estimate of an expectation. `draw_ahead` draws
independently, duplicates kept, for estimates that are to be unbiased.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from nlrl.ask import Asker, Question, history_text
from nlrl.types import CallId, Failure, Group, History, LookAhead, Situation, truncate_history
from nlrl_envs.base import TextEnv, rewards_of, seat_of, seats_of
from nlrl_envs.opponents import Opponent

TRIES_PER_VARIATION = 12
"""Draws spent on finding another distinct variation before K is declared out of reach."""
TRIES_OF_CHANCE = 36
"""Draws in a row without news after which chance is taken to have shown everything: they cost no call. An outcome with
one chance in three is missed once in two million times."""
TO_THE_END = 10_000
"""Moves after which a game that is to be played out is given up."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A variation that is being walked: an environment of its own and what happened in it."""

    env: TextEnv
    look: LookAhead
    call: CallId
    seat: int = 0
    """Whose turn it was at the root: through whose eyes the variation is told."""


NextActions = Callable[[Sequence[Branch], np.random.Generator], Awaitable[tuple[list[str | None], list[Failure]]]]
"""A roll-out policy: the next action of every branch (None when it cannot say), and what went wrong on the way."""


async def uniform_random(
    branches: Sequence[Branch], rng: np.random.Generator
) -> tuple[list[str | None], list[Failure]]:
    """The roll-out policy of the paper: each legal action with the same probability."""
    return [str(rng.choice(branch.env.legal_actions)) for branch in branches], []


def language_policy(ask: Asker, history_items: int) -> NextActions:
    """The current language policy pi_L as roll-out policy; one call a branch and ply, all branches together."""
    items = min(history_items, ask.policy_items or history_items)

    async def next_actions(
        branches: Sequence[Branch], rng: np.random.Generator
    ) -> tuple[list[str | None], list[Failure]]:
        answers = await ask.ask(
            [
                Question(
                    replace(b.call, role="policy", ply=len(b.look.actions)),
                    {
                        "history": history_text(truncate_history(b.look.history, items)),
                        "player": seats_of(b.env)[seat_of(b.env)],
                    },
                    b.env.legal_actions,
                )
                for b in branches
            ]
        )
        moves = [None if a.parsed is None else a.parsed.action for a in answers]
        return moves, [failure for a in answers for failure in a.failures]

    return next_actions


def opponent_policy(opponent: Opponent) -> NextActions:
    """An opponent of `nlrl_envs.opponents` as roll-out policy, for whichever seat it is asked; all branches at once."""

    async def next_actions(
        branches: Sequence[Branch], rng: np.random.Generator
    ) -> tuple[list[str | None], list[Failure]]:
        games: list = [b.env for b in branches]
        return list(opponent(games, rng)), []

    return next_actions


def against(learner: NextActions, opponent: NextActions) -> NextActions:
    """A roll-out policy for games of two: `learner` moves for the player at the root, `opponent` for the other one.

    When both have moves to make they are asked together, so that two language models' batches stay full.
    """

    async def next_actions(
        branches: Sequence[Branch], rng: np.random.Generator
    ) -> tuple[list[str | None], list[Failure]]:
        sides = [seat_of(b.env) == b.seat for b in branches]
        # Generators of their own: who is asked first, or waits longer, changes nobody's draws.
        mine, others = rng.spawn(2)
        (moves, lost), (replies, missed) = await asyncio.gather(
            learner([b for b, own in zip(branches, sides, strict=True) if own], mine),
            opponent([b for b, own in zip(branches, sides, strict=True) if not own], others),
        )
        drawn = {True: iter(moves), False: iter(replies)}
        return [next(drawn[own]) for own in sides], [*lost, *missed]

    return next_actions


async def look_ahead(
    env: TextEnv,
    history: History,
    call: CallId,
    *,
    variations: int,
    steps: int,
    rollout: NextActions,
    rng: np.random.Generator,
) -> tuple[list[list[LookAhead]], list[Failure]]:
    """Variations of every legal action of `env`'s present state; `env` itself is not stepped.

    Returns (looks_A_K, failures): for each legal action, in the game's order, up to `variations` distinct look-aheads
    of at most 1 + `steps` moves. A branch whose roll-out policy fails is dropped and its failures are returned.
    """
    looks_A_K: list[list[LookAhead]] = [[] for _ in env.legal_actions]
    seen: set[History] = set()
    failures: list[Failure] = []
    # Draws in a row that chance alone decided and that showed nothing new; where there is no chance none ever does.
    stale_A = [0] * len(looks_A_K)
    for draw in range(TRIES_PER_VARIATION) if steps else count():
        branches = [
            first_move(env, history, action, replace(call, action=action, variation=draw * variations + k))
            for action, looks_K, stale in zip(env.legal_actions, looks_A_K, stale_A, strict=True)
            for k in range(variations - len(looks_K) if stale < TRIES_OF_CHANCE else 0)
        ]
        if not branches:
            break
        finished, failed = await walk(branches, steps, rollout, rng)
        failures += failed
        for branch in finished:
            a = env.legal_actions.index(branch.look.actions[0])
            if branch.look.history not in seen:
                seen.add(branch.look.history)
                looks_A_K[a].append(branch.look)
                stale_A[a] = 0
            elif len(branch.look.actions) == 1:
                stale_A[a] += 1
    return looks_A_K, failures


async def draw_ahead(
    env: TextEnv,
    history: History,
    call: CallId,
    *,
    variations: int,
    steps: int,
    rollout: NextActions,
    rng: np.random.Generator,
) -> tuple[list[list[LookAhead]], list[Failure]]:
    """`variations` independent draws for every legal action, duplicates kept: a sample, as eq. 6 has it.

    Returns what `look_ahead` does; fewer than `variations` only where the roll-out policy failed.
    """
    branches = [
        first_move(env, history, action, replace(call, action=action, variation=k))
        for action in env.legal_actions
        for k in range(variations)
    ]
    finished, failures = await walk(branches, steps, rollout, rng)
    looks_A_K: list[list[LookAhead]] = [[] for _ in env.legal_actions]
    for branch in finished:
        looks_A_K[env.legal_actions.index(branch.look.actions[0])].append(branch.look)
    return looks_A_K, failures


async def continuations(
    roots_S: Sequence[tuple[TextEnv, Situation]],
    *,
    variations: int,
    steps: int,
    rollout: NextActions,
    rng: np.random.Generator,
    distinct: bool = True,
) -> tuple[list[Group], list[Failure]]:
    """Up to `variations` continuations of at most `steps` moves from each situation, the first by the policy as well.

    What V^L(s) is estimated from (Alg. 2). As in the paper twice as many are drawn as wanted and equal ones dropped,
    unless `distinct` is False. `roots_S` pairs each situation with its game, which is not stepped; each situation has a
    `CallId` of its own. All advance together.
    """
    branches = [
        Branch(env.clone(), LookAhead(situation.history, (), ()), replace(situation.call, variation=k), seat_of(env))
        for env, situation in roots_S
        for k in range(variations * (2 if distinct else 1))
    ]
    finished, failures = await walk(branches, steps, rollout, rng)
    looks_S: dict[tuple[int, int], list[LookAhead]] = {(s.call.game, s.call.step): [] for _, s in roots_S}
    if len(looks_S) != len(roots_S):
        raise ValueError("Two situations have the same place in the run; give each a CallId of its own.")
    for branch in finished:
        looks_K = looks_S[branch.call.game, branch.call.step]
        if len(looks_K) < variations and not (distinct and branch.look in looks_K):
            looks_K.append(branch.look)
    return [Group(s, None, tuple(looks_S[s.call.game, s.call.step])) for _, s in roots_S], failures


def as_read(looks_K: Sequence[LookAhead], items: int | None) -> list[LookAhead]:
    """Variations of whose histories V^L reads the last `items` items, or all of them."""
    if items is None:
        return list(looks_K)
    return [replace(look, history=truncate_history(look.history, items)) for look in looks_K]


async def walk(
    branches: list[Branch], steps: int, rollout: NextActions, rng: np.random.Generator
) -> tuple[list[Branch], list[Failure]]:
    """Continue all branches for `steps` plies, all of them together so that an engine's batch stays full.

    Returns (branches, failures); branches whose roll-out policy failed are left out.
    """
    failures: list[Failure] = []
    for _ in range(steps):
        going = [i for i, b in enumerate(branches) if b.look.terminal_text is None]
        if not going:
            break
        actions, failed = await rollout([branches[i] for i in going], rng)
        failures += failed
        for i, action in zip(going, actions, strict=True):
            if action is not None:
                branches[i] = _extend(branches[i], action)
        lost = {i for i, action in zip(going, actions, strict=True) if action is None}
        branches = [b for i, b in enumerate(branches) if i not in lost]
    return branches, failures


def first_move(env: TextEnv, history: History, action: str, call: CallId) -> Branch:
    """A branch that begins with a candidate action; `env` is not stepped."""
    return _extend(Branch(env.clone(), LookAhead(history, (), ()), call, seat_of(env)), action)


def _extend(branch: Branch, action: str) -> Branch:
    result = branch.env.step(action)
    look = branch.look
    over = result.terminated or result.truncated
    grown = LookAhead(
        history=(*look.history, action, result.observation),
        actions=(*look.actions, action),
        rewards=(*look.rewards, rewards_of(result)[branch.seat]),
        terminal_text=(branch.env.terminal_text or "The game is over.") if over else None,
    )
    return Branch(branch.env, grown, branch.call, branch.seat)
