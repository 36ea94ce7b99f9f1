"""Looking ahead: K distinct variations of l steps after each candidate action, by a stated roll-out policy.

Source: arXiv 2411.14251, Alg. 2 and section 4.1: a candidate action is tried, a roll-out policy continues for l steps
(the candidate is not counted in l, as in the paper's maze experiments).

Deviations from the authors' code, on purpose:
- their documented maze run continues with the shortest-path policy after one random move; here the roll-out policy is
  uniformly random or the current language policy, never an oracle (the paper's text says "fully random");
- variations are distinct as long as distinct ones can be found, for every K; the number really achieved is
  `len(looks)` and is reported.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nlrl.ask import Asker, Question, history_text
from nlrl.types import CallId, Failure, History, LookAhead, truncate_history
from nlrl_envs.base import TextEnv

TRIES_PER_VARIATION = 12
"""Draws spent on finding another distinct variation before K is declared out of reach."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A variation that is being walked: an environment of its own and what happened in it."""

    env: TextEnv
    look: LookAhead
    call: CallId


NextActions = Callable[[Sequence[Branch], np.random.Generator], Awaitable[tuple[list[str | None], list[Failure]]]]
"""A roll-out policy: the next action of every branch (None when it cannot say), and what went wrong on the way."""


async def uniform_random(
    branches: Sequence[Branch], rng: np.random.Generator
) -> tuple[list[str | None], list[Failure]]:
    """The roll-out policy of the paper: each legal action with the same probability."""
    return [str(rng.choice(branch.env.legal_actions)) for branch in branches], []


def language_policy(ask: Asker, history_items: int) -> NextActions:
    """The current language policy pi_L as roll-out policy; one call a branch and ply, all branches together."""

    async def next_actions(
        branches: Sequence[Branch], rng: np.random.Generator
    ) -> tuple[list[str | None], list[Failure]]:
        answers = await ask.ask(
            [
                Question(
                    replace(b.call, role="policy", ply=len(b.look.actions)),
                    {"history": history_text(truncate_history(b.look.history, history_items))},
                    b.env.legal_actions,
                )
                for b in branches
            ]
        )
        moves = [None if a.parsed is None else a.parsed.action for a in answers]
        return moves, [failure for a in answers for failure in a.failures]

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
    for draw in range(TRIES_PER_VARIATION):
        branches = [
            _first_move(env, history, action, replace(call, action=action, variation=draw * variations + k))
            for action, looks_K in zip(env.legal_actions, looks_A_K, strict=True)
            for k in range(_wanted(looks_K, variations, steps))
        ]
        if not branches:
            break
        finished, failed = await _walk(branches, steps, rollout, rng)
        failures += failed
        for branch in finished:
            if branch.look.history not in seen:
                seen.add(branch.look.history)
                looks_A_K[env.legal_actions.index(branch.look.actions[0])].append(branch.look)
    return looks_A_K, failures


def _wanted(looks_K: Sequence[LookAhead], variations: int, steps: int) -> int:
    """How many more variations to draw: one is all there is when nothing follows the candidate action."""
    if steps == 0 or (looks_K and looks_K[0].terminal_text is not None and len(looks_K[0].actions) == 1):
        return 0 if looks_K else 1
    return variations - len(looks_K)


async def _walk(
    branches: list[Branch], steps: int, rollout: NextActions, rng: np.random.Generator
) -> tuple[list[Branch], list[Failure]]:
    """Continue all branches for `steps` plies, all of them together so that an engine's batch stays full."""
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


def _first_move(env: TextEnv, history: History, action: str, call: CallId) -> Branch:
    return _extend(Branch(env.clone(), LookAhead(history, (), ()), call), action)


def _extend(branch: Branch, action: str) -> Branch:
    result = branch.env.step(action)
    look = branch.look
    over = result.terminated or result.truncated
    grown = LookAhead(
        history=(*look.history, action, result.observation),
        actions=(*look.actions, action),
        rewards=(*look.rewards, result.reward),
        terminal_text=(branch.env.terminal_text or "The game is over.") if over else None,
    )
    return Branch(branch.env, grown, branch.call)
