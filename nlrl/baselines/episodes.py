"""Games as a policy-gradient learner needs them: its own turns, each with everything that came of it.

A move's reward is what it and the others' answers to it brought, up to the learner's next turn; the last turn of a game
is terminal, whoever made the last move. So a loss, which the opponent's move always completes, is the reward -1 of the
learner's last turn. The authors' `process_trajectories` keeps the learner's own moves' rewards alone: in 512 random
games of Tic-Tac-Toe, of which some 223 are lost, it shows the learner no loss at all.

Many games are played at once: the learner is asked for all games in which it is to move, the opponent for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from nlrl.agents import seat_in
from nlrl.types import CallId, GameEnd, Situation, truncate_history
from nlrl_envs.base import TextEnv, rewards_of, seat_of, seats_of
from nlrl_envs.opponents import Opponent

Choose = Callable[[Sequence[Situation], Sequence[np.random.Generator]], Sequence[tuple[int, Any]]]
"""(situations of a batch of games, the games' own randomness) -> in each the index of a legal move, and a note."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One move of the learner."""

    situation: Situation
    move: int
    """Index in `situation.actions`."""
    reward: float
    """Of the learner, from this move to its next turn or the end."""
    terminal: bool
    """Whether the game ended before another turn of the learner's; nothing follows to be bootstrapped from."""
    note: Any = None
    """What the policy keeps of its choice, such as its log-probability."""
    state: Any = None
    """The game's state before the move."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One game."""

    end: GameEnd
    turns_T: tuple[Turn, ...]


@dataclass(eq=False)
class _Playing:
    env: TextEnv
    game: int
    rng: np.random.Generator
    history: tuple[str, ...]
    turns: list[Turn]
    step: int = 0
    total: float = 0.0
    outcome: Literal["success", "horizon", "failure"] | None = None


@dataclass(frozen=True, slots=True)
class EpisodeKnobs:
    """How games are played."""

    history_items: int = 1
    """What the learner remembers."""
    at_once: int = 64


def uniform_choice(situations: Sequence[Situation], rngs: Sequence[np.random.Generator]) -> list[tuple[int, Any]]:
    """Every legal move with the same probability."""
    return [(int(rng.integers(len(s.actions))), None) for s, rng in zip(situations, rngs, strict=True)]


def play_episodes(
    env: TextEnv,
    choose: Choose,
    opponent: Opponent | None,
    *,
    games: range,
    seed: int,
    knobs: EpisodeKnobs = EpisodeKnobs(),
) -> list[Episode]:
    """The games with the numbers `games`, in their order; game g has a generator of its own, seeded by (`seed`, g).

    In games of two the learner takes seat g mod 2, as in `nlrl.play`; without an opponent it moves for both and learns
    from that seat's turns. Starts are drawn by each game's generator.

    Raises:
        ValueError: `choose` named a move that there is not.
    """
    waiting = list(games)[::-1]
    going: list[_Playing] = []
    done: dict[int, Episode] = {}
    while waiting or going:
        while waiting and len(going) < knobs.at_once:
            going.append(_begin(env, waiting.pop(), seed))
        own = [one for one in going if opponent is None or seat_of(one.env) == seat_in(one.env, one.game)]
        situations = [_situation(one, knobs.history_items) for one in own]
        chosen = choose(situations, [one.rng for one in own]) if own else []
        for one, situation, (move, note) in zip(own, situations, chosen, strict=True):
            if not 0 <= move < len(situation.actions):
                raise ValueError(
                    f"Move {move} of {len(situation.actions)} does not exist; choose an index of a legal one."
                )
            _move(one, situation.actions[move], situation, move, note)
        others = [one for one in going if one not in own]
        if others and opponent is not None:
            seated: list[Any] = [one.env for one in others]
            for one, action in zip(others, opponent(seated, [one.rng for one in others]), strict=True):
                _move(one, action)
        for one in [one for one in going if one.outcome is not None]:
            going.remove(one)
            end = GameEnd(one.game, one.total, one.step, one.outcome or "failure", one.env.terminal_text or "")
            done[one.game] = Episode(end, tuple(one.turns))
    return [done[game] for game in games]


def _begin(env: TextEnv, game: int, seed: int) -> _Playing:
    mine, rng = env.clone(), np.random.default_rng((seed, game))
    starts = mine.starts()
    observation = mine.reset(rng, starts[int(rng.integers(len(starts)))])
    return _Playing(mine, game, rng, (observation,), [])


def _situation(one: _Playing, items: int) -> Situation:
    call = CallId(one.game, one.step, "policy")
    player = seats_of(one.env)[seat_of(one.env)]
    return Situation(truncate_history(one.history, items), call, one.env.legal_actions, player)


def _move(one: _Playing, action: str, situation: Situation | None = None, move: int = 0, note: Any = None) -> None:
    """Makes a move; its reward is added to the learner's last turn, which may be this one."""
    seat = seat_in(one.env, one.game)
    if situation is not None and seat_of(one.env) == seat:
        one.turns.append(Turn(situation, move, 0.0, False, note, one.env.state))
    result = one.env.step(action)
    reward = rewards_of(result)[seat]
    one.step, one.total = one.step + 1, one.total + reward
    one.history = (*one.history, action, result.observation)
    over = result.terminated or result.truncated
    if over:
        success = reward > 0 if result.rewards_P else result.success
        one.outcome = "success" if success else "horizon" if result.truncated else "failure"
    if one.turns:
        last = one.turns[-1]
        one.turns[-1] = replace(last, reward=last.reward + reward, terminal=over)
