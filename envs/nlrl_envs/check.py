"""`check_env`: whether a game keeps the contract of `TextEnv`, as a function everybody can call.

    from nlrl_envs.check import check_env
    check_env(MyGame())

Nothing here knows a game by name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable

import numpy as np

from nlrl_envs.base import SeatedEnv, TextEnv, TextStep, rewards_of, seat_of, seats_of

ILLEGAL_MOVES = ("", "\n", "no such move", "move [up]", "\x1b[2J", "NaN", "{" * 50)
"""Replies a language model may give where a move is expected; no game may have one of them as a move."""


class EnvCheckError(AssertionError):
    """A game breaks the contract; the message says which part and how."""


def check_env(env: TextEnv, seed: int = 0, games: int = 3, max_moves: int = 10_000) -> None:
    """Play a game at random from several starts and compare it with the contract.

    Args:
        env: any game; it is reset and left in an unspecified state.
        seed: of all randomness of the check.
        games: how many random games are played to the end.
        max_moves: a game that is not over by then counts as endless.

    Raises:
        EnvCheckError: the first breach found.
    """
    _require(isinstance(env, TextEnv), "It lacks a method or property of TextEnv; compare with nlrl_envs.base.")
    _require(
        isinstance(env, SeatedEnv) or not hasattr(env, "seats"),
        "It has `seats` and lacks another property of SeatedEnv; compare with nlrl_envs.base.",
    )
    _check_starts(env)
    for game in range(games):
        _check_seeded(env, seed + game, max_moves)
        _check_positions(env, seed + game, max_moves)
        _check_undisturbed(env, seed + game, max_moves)


def _require(holds: bool, breach: str) -> None:
    if not holds:
        raise EnvCheckError(breach)


def _check_starts(env: TextEnv) -> None:
    _require(bool(env.task.strip()), "`task` is empty; say the rules and the goal in a few sentences.")
    starts = env.starts()
    _require(len(starts) > 0, "`starts()` is empty; give at least one state to start from.")
    _require(len(set(starts)) == len(starts), "`starts()` has a state twice.")
    _require(env.starts() == starts, "`starts()` changes its order from call to call.")
    names = {env.describe_start(start) for start in starts}
    _require(len(names) == len(starts), "`describe_start` gives two starts one name.")
    for start in starts:
        returned = env.reset(np.random.default_rng(0), start)
        _require(returned == env.observation, "`reset` returns another text than `observation` has.")
        _require(env.terminal_text is None, f"The game is over at its start {env.describe_start(start)}.")
        _check_ongoing(env)


def _check_ongoing(env: TextEnv) -> None:
    _check_observation(env.observation)
    legal = env.legal_actions
    _require(isinstance(legal, tuple) and len(legal) > 0, "`legal_actions` is no tuple, or empty before the end.")
    _require(len(set(legal)) == len(legal), f"`legal_actions` has a move twice: {legal}.")
    _require(
        all(isinstance(move, str) and move == move.strip() and move.isprintable() and move for move in legal),
        f"A legal move is empty, not printable or has blanks around it: {legal}.",
    )
    _require(bool(env.render().strip()), "`render()` draws nothing.")


def _check_observation(text: str) -> None:
    _require(isinstance(text, str) and bool(text.strip()), "An observation is empty.")
    _require(text.endswith("\n"), f"An observation does not end with a newline: {text!r}.")


def _check_step(env: TextEnv, result: TextStep) -> None:
    _check_observation(result.observation)
    _require(result.observation == env.observation, "`step` returns another text than `observation` has.")
    _require(math.isfinite(result.reward), f"A reward is not finite: {result.reward}.")
    _require(not (result.terminated and result.truncated), "A game is both terminated and truncated.")
    _require(result.terminated or not result.success, "A success without `terminated`.")
    over = result.terminated or result.truncated
    _require((env.terminal_text is not None) == over, "`terminal_text` and the end of the game disagree.")
    _require((env.legal_actions == ()) == over, "`legal_actions` must be () exactly when the game is over.")


def _check_seats(env: SeatedEnv, mover: int, result: TextStep) -> None:
    """What a step says about the seats."""
    rewards_P = result.rewards_P
    _require(len(rewards_P) == len(env.seats), f"`rewards_P` has {len(rewards_P)} rewards for {len(env.seats)} seats.")
    _require(result.reward == rewards_P[mover], "`reward` is not that of the seat which moved.")
    _require(sum(rewards_P) == 0, f"The rewards of the seats do not sum to zero: {rewards_P}.")
    over = result.terminated or result.truncated
    _require((env.result_P is not None) == over, "`result_P` must be None exactly while the game goes on.")
    _require(env.seat in range(len(env.seats)), f"`seat` {env.seat} is no index of `seats`.")
    _require(result.legal or rewards_P[mover] < 0, "An illegal move did not lose the game.")


def _snapshot(env: TextEnv) -> tuple[Hashable, ...]:
    return env.state, env.observation, env.legal_actions, env.terminal_text, seat_of(env), seats_of(env)


def _random_game(env: TextEnv, seed: int, max_moves: int, disturb: bool = False) -> list[tuple[str, TextStep]]:
    """A game of uniformly random legal moves to its end; `disturb` does beside it what must not change it."""
    given, rng = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    env.reset(given)
    log: list[tuple[str, TextStep]] = []
    total_P = np.zeros(len(seats_of(env)))
    while env.legal_actions:
        _require(len(log) < max_moves, f"A random game is not over after {max_moves} moves; give it a horizon.")
        if disturb:
            given.random(3)
            copy = env.clone()
            copy.step(copy.legal_actions[0])
            copy.reset(np.random.default_rng(len(log)))
        move, mover = env.legal_actions[int(rng.integers(len(env.legal_actions)))], seat_of(env)
        log.append((move, env.step(move)))
        _require(log[-1][1].legal, f"The legal move {move!r} was called illegal.")
        _check_step(env, log[-1][1])
        total_P += rewards_of(log[-1][1])
        if isinstance(env, SeatedEnv):
            _check_seats(env, mover, log[-1][1])
    if isinstance(env, SeatedEnv):
        _require(tuple(total_P) == env.result_P, f"The rewards of a game sum to {total_P}, not to `result_P`.")
    return log


def _check_undisturbed(env: TextEnv, seed: int, max_moves: int) -> None:
    """Copies that are played and reset, and draws from the generator of `reset`, change nothing in a game."""
    first = _random_game(env, seed, max_moves)
    again = _random_game(env, seed, max_moves, disturb=True)
    _require(
        first == again,
        "A game was changed by steps of its copies, or by draws from the rng that `reset` was given; "
        "let `reset` seed a generator of the game's own, and `clone` copy it.",
    )


def _check_seeded(env: TextEnv, seed: int, max_moves: int) -> None:
    """The same seed gives the same game, whatever happens to the random states of the process."""
    process_states = random.getstate(), np.random.get_state()
    try:
        random.seed(1)
        np.random.seed(1)
        first = _random_game(env, seed, max_moves)
        random.seed(2)
        np.random.seed(2)
        again = _random_game(env, seed, max_moves)
    finally:
        random.setstate(process_states[0])
        np.random.set_state(process_states[1])
    _require(first == again, "Two games with the same seed differ; take all randomness from the rng of `reset`.")


def _check_positions(env: TextEnv, seed: int, max_moves: int) -> None:
    """In positions of a random game: copies are independent, states come back, illegal moves are no exceptions."""
    rng = np.random.default_rng(seed)
    env.reset(rng)
    for _ in range(min(max_moves, 20)):
        if not env.legal_actions:
            break
        _check_ongoing(env)
        _check_copy(env)
        _check_illegal(env)
        env.step(env.legal_actions[int(rng.integers(len(env.legal_actions)))])


def _check_copy(env: TextEnv) -> None:
    before, drawn = _snapshot(env), env.render()
    copy = env.clone()
    _require((_snapshot(copy), copy.render()) == (before, drawn), "`clone` differs from its original.")
    for move in env.legal_actions:
        copy = env.clone()
        copy.step(move)
        _require(
            (_snapshot(env), env.render()) == (before, drawn), f"Stepping a clone, {move!r}, changed its original."
        )
        copy.set_state(before[0])
        _require(_snapshot(copy) == before, f"`set_state` did not bring the state back after {move!r}.")
    _require(hash(env.state) == hash(env.clone().state), "Equal states have different hashes.")


def _check_illegal(env: TextEnv) -> None:
    for move in ILLEGAL_MOVES:
        if move in env.legal_actions:
            continue
        copy, mover = env.clone(), seat_of(env)
        try:
            result = copy.step(move)
        except Exception as error:
            raise EnvCheckError(
                f"The illegal move {move!r} raised {error!r}; let it cost something instead."
            ) from error
        _require(not result.legal, f"The illegal move {move!r} was called legal.")
        _require(not result.success, f"The illegal move {move!r} won the game.")
        _check_step(copy, result)
        if isinstance(copy, SeatedEnv):
            _check_seats(copy, mover, result)
