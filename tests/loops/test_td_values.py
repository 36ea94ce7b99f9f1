"""Algorithm 2 with the oracle is temporal-difference learning: its fixed point is V^pi of the policy that moved."""

from dataclasses import replace

import numpy as np
import pytest
from tabular import Tabular, of, run

from nlrl.iterate import td_values
from nlrl.knobs import TdKnobs
from nlrl.types import Estimated, PhaseStart, Trained
from nlrl.values.look_ahead import opponent_policy
from nlrl_envs import maze_solver as mazes
from nlrl_envs.base import seat_of
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.frozen_lake_solver import policy_values as lake_values
from nlrl_envs.frozen_lake_solver import tabulate as lake_table
from nlrl_envs.frozen_lake_solver import uniform_policy as lake_uniform
from nlrl_envs.game_table import policy_values, uniform_policy
from nlrl_envs.maze import MazeText
from nlrl_envs.maze_maps import ACTIONS
from nlrl_envs.opponents import first_legal
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_envs.tic_tac_toe_solver import whole_game


def learn(env, roots, knobs, rollout):
    tabular = Tabular(env)
    knobs = replace(knobs, held_out=tuple(roots))
    models, student = tabular.models, tabular.table
    return run(td_values(env, roots, models=models, student=student, knobs=knobs, rollout=rollout, seed=0))


def said(events, iteration):
    """The plain student's V of each held-out state."""
    asked = [e for e in of(Estimated, events, iteration) if not e.achieved_K]
    return [e.value.number for e in asked[-1].evaluations]


def below(game, least, found=None):
    """All positions of a game of two from here on in which it goes on, with at least so many moves to choose from."""
    found = {} if found is None else found
    if game.result_P is None and game.state not in found:
        found[game.state] = None
        for move in game.legal_actions if len(found) < least else game.legal_actions[:1]:
            after = game.clone()
            after.step(move)
            below(after, least, found)
    return list(found)


def after(env, moves):
    for move in moves:
        env.step(move)
    return env


@pytest.mark.parametrize(
    ("env", "combine"),
    [
        (TicTacToe(), "fused"),
        (TicTacToe(), "split"),
        (Breakthrough("4x3"), "fused"),
        (Breakthrough(), "fused"),
        (after(ConnectFour("4x4"), "1234"), "split"),
    ],
    ids=["tic_tac_toe", "tic_tac_toe, split", "breakthrough 4x3", "breakthrough", "connect_four 4x4"],
)
def test_a_policy_that_always_moves_alike_is_valued_as_its_games_end(env, combine):
    roots = below(env, 12)
    exact = []
    for state in roots:
        game = env.clone()
        game.set_state(state)
        mover = game.seat
        while game.result_P is None:
            game.step(game.legal_actions[0])
        exact.append(game.result_P[mover])
    knobs = TdKnobs(11, variations=2, steps=4, combine=combine)
    events = learn(env, roots, knobs, opponent_policy(first_legal))
    assert said(events, 0) == [0.0] * len(roots)
    assert said(events, 11) == exact
    assert len({*exact}) > 1


async def every_pair(branches, rng):
    """Both movers' choices counted through, so that 60 variations are each pair of moves equally often."""
    moves = []
    for branch in branches:
        legal, k = branch.env.legal_actions, branch.call.variation
        k = k if not branch.look.actions else k // (len(legal) + 1)
        moves.append(legal[k % len(legal)])
    return moves, []


def test_random_play_is_valued_exactly_when_all_its_moves_are_variations():
    env, table = after(TicTacToe(), "5172"), whole_game()
    roots = below(env, 10_000)
    exact_S = policy_values(table, uniform_policy(table))
    row = {state: s for s, state in enumerate(table.states_S)}
    exact = [exact_S[row[state]] * (1 - 2 * state.seat) for state in roots]
    events = learn(env, roots, TdKnobs(3, variations=60, steps=2, distinct=False), every_pair)
    assert said(events, 3) == pytest.approx(exact, abs=1e-9)
    errors = [np.abs(np.array(said(events, i)) - exact).max() for i in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] > 1e-3, "five free squares take three backups of two moves"


@pytest.mark.parametrize("name", ["umaze", "double_t"])
def test_the_shortest_way_is_valued_at_its_length(name):
    env = MazeText(name)
    table = mazes.tabulate(env.maze)
    best_S_A, row = mazes.optimal_actions(table), {cell: s for s, cell in enumerate(table.cells_S)}

    async def shortest(branches, rng):
        return [ACTIONS[best_S_A[row[b.env.state.position]].argmax()] for b in branches], []

    roots = list(env.starts())
    exact = [mazes.optimal_values(table)[row[state.position]] for state in roots]
    events = learn(env, roots, TdKnobs(3, steps=4), shortest)
    assert said(events, 3) == exact


def test_slips_on_the_ice_are_averaged_over_many_draws():
    env = FrozenLakeText("4x4", slippery=True)
    table = lake_table(env.maps[0], True)

    async def uniform(branches, rng):
        return [str(rng.choice(b.env.legal_actions)) for b in branches], []

    roots = [env.starts()[0]._replace(position=int(s)) for s in np.flatnonzero(~table.over_S)]
    exact_S = lake_values(table, lake_uniform(table), env.horizon).values_F_S[env.horizon]
    events = learn(env, roots, TdKnobs(20, variations=150, steps=2, distinct=False), uniform)
    # 150 draws of a value between 0 and 1, most of them near 0.
    assert said(events, 20) == pytest.approx([exact_S[s.position] for s in roots], abs=0.08)
    assert max(said(events, 20)) > 0.3


def test_variations_are_drawn_once_and_every_iteration_learns_from_them():
    env = TicTacToe()
    roots = below(env, 3)
    calls = []

    async def counted(branches, rng):
        calls.append(len(branches))
        assert all(b.seat == seat_of(b.env) for b in branches if not b.look.actions)
        return await opponent_policy(first_legal)(branches, rng)

    events = learn(env, roots, TdKnobs(3, variations=2, steps=4), counted)
    assert calls == [4 * len(roots)] * 4 or max(calls) == calls[0] == 4 * len(roots)
    assert len(calls) <= 4
    phases = [(e.iteration, e.phase) for e in of(PhaseStart, events)]
    assert phases == [
        (0, "evaluate"), (1, "collect"),
        *((i, phase) for i in (1, 2, 3) for phase in ("estimate", "distil value", "evaluate")),
    ]  # fmt: skip
    assert [t.examples for t in of(Trained, events)] == [len(roots)] * 3
    assert all(e.achieved_K == ((1, len(roots)),) for e in of(Estimated, events) if e.achieved_K)
