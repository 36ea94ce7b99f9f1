"""Algorithm 1 with the oracle is policy iteration: the same policies, in the same order, as the solvers compute."""

import asyncio

import numpy as np
import pytest
from tabular import Tabular, of, run

from nlrl.iterate import policy_iteration
from nlrl.knobs import GameKnobs, LookAheadKnobs, PolicyIterationKnobs
from nlrl.operators.improve import tied
from nlrl.types import GameEnd, Improved, ImprovedPolicy, PhaseStart, Step, Trained
from nlrl_envs import frozen_lake_solver as lakes
from nlrl_envs import maze_solver as mazes
from nlrl_envs.frozen_lake import ACTIONS as LAKE_ACTIONS
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.game_table import joined, match, policy_values, uniform_policy
from nlrl_envs.maze import MazeText
from nlrl_envs.maze_maps import ACTIONS
from nlrl_envs.opponents import uniform_random
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_envs.tic_tac_toe_solver import whole_game

ONE_MOVE = LookAheadKnobs(variations=1, steps=0)


def loop(env, tabular, knobs, starts, *, students=True, opponent=None):
    models, learners = tabular.models, tabular.students if students else None
    return policy_iteration(
        env, models=models, students=learners, knobs=knobs, starts=starts, opponent=opponent, seed=0
    )


def chosen(improved: Improved) -> list[ImprovedPolicy]:
    return [choice for choice in improved.choices_S if choice is not None]


def texts(env, states):
    found, game = [], env.clone()
    for state in states:
        game.set_state(state)
        found.append(game.observation.rstrip("\n"))
    return found


@pytest.mark.full
def test_sweeps_over_all_of_tic_tac_toe_are_exact_policy_iteration():
    env, table = TicTacToe(), whole_game()
    read_S, opponent = texts(env, table.states_S), uniform_policy(table)
    policy_S_A = uniform_policy(table)
    values = dict.fromkeys(read_S, 0.0)

    def evaluate():
        # A position is read as the end of a move, so its value is that of the player who is not to move there.
        for seat in (0, 1):
            exact_S = policy_values(table, joined(table, policy_S_A, opponent, seat)) * (1 - 2 * seat)
            values.update((read_S[s], float(exact_S[s])) for s in np.flatnonzero(table.seat_S != seat))

    async def policies():
        evaluate()
        yield match(table, policy_S_A, opponent)
        knobs = PolicyIterationKnobs(3, ONE_MOVE, GameKnobs(evaluation_games=0, at_once=512), sweep=True)
        tabular = Tabular(env, values=values, unknown=None)
        states = [table.states_S[s] for s in np.flatnonzero(~table.over_S)]
        column = {move: a for a, move in enumerate(table.moves_A)}
        row = {text: s for s, text in enumerate(read_S)}
        async for event in loop(env, tabular, knobs, states, students=False):
            if isinstance(event, Improved):
                assert len(event.situations_S) == 4_520
                for situation, choice in zip(event.situations_S, chosen(event), strict=True):
                    s, best = row[situation.history[-1].rstrip("\n")], [column[move] for move in tied(choice)]
                    policy_S_A[s] = 0
                    policy_S_A[s, best] = 1 / len(best)
                evaluate()
                yield match(table, policy_S_A, opponent)

    async def collect():
        return [one async for one in policies()]

    assert [100 * one.win for one in asyncio.run(collect())] == pytest.approx([43.65, 94.64, 96.08, 96.34], abs=0.01)


@pytest.mark.parametrize(("name", "mean"), [("double_t", -6.84), ("umaze", -2.5)])
def test_one_improvement_on_the_values_of_random_play_is_optimal_in_a_maze_and_is_learned(name, mean):
    env = MazeText(name)
    table = mazes.tabulate(env.maze)
    states = [env.starts()[0]._replace(position=table.cells_S[s]) for s in table.starts]
    random_S = mazes.evaluate_policy_forever(table, mazes.uniform_policy(table))
    values = dict(zip(texts(env, states), random_S[table.starts].tolist(), strict=True))
    tabular = Tabular(env, values=values, unknown=None, explore=0.0)
    play = GameKnobs(evaluation_games=len(states))
    events = run(loop(env, tabular, PolicyIterationKnobs(1, ONE_MOVE, play, sweep=True), states))
    assert [(e.iteration, e.phase) for e in of(PhaseStart, events)] == [
        (0, "evaluate"), (1, "improve"), (1, "distil policy"), (1, "evaluate"),
    ]  # fmt: skip
    ends = [e.total_return for e in of(GameEnd, events)]
    before, after = ends[: len(states)], ends[len(states) :]
    assert np.mean(before) < mean - 10
    assert np.mean(after) == pytest.approx(mean)
    best_S_A = mazes.optimal_actions(table)
    for s, state in zip(table.starts, states, strict=True):
        env.set_state(state)
        assert best_S_A[s, ACTIONS.index(tabular.plays(env))]


@pytest.mark.parametrize(("slippery", "draws", "within"), [(False, 1, 1e-3), (True, 120, 0.03)])
def test_sweeps_reach_what_the_lake_is_worth(slippery, draws, within):
    env = FrozenLakeText("4x4", slippery)
    table = lakes.tabulate(env.maps[0], slippery)
    squares = [int(s) for s in np.flatnonzero(~table.over_S)]
    states = [env.starts()[0]._replace(position=s) for s in squares]
    read_S = texts(env, states)
    policy_S_A, values = lakes.uniform_policy(table), dict.fromkeys(read_S, 0.0)
    best = lakes.optimal_values(table, env.horizon).values_F_S[env.horizon]

    def evaluate():
        exact_S = lakes.policy_values(table, policy_S_A, env.horizon).values_F_S[env.horizon]
        values.update((text, float(exact_S[s])) for text, s in zip(read_S, squares, strict=True))
        return exact_S

    async def sweeps():
        look = LookAheadKnobs(draws, 0, distinct=False)
        knobs = PolicyIterationKnobs(3, look, GameKnobs(evaluation_games=0), sweep=True)
        reached = [evaluate()[0]]
        async for event in loop(env, Tabular(env, values=values, unknown=None), knobs, states, students=False):
            if isinstance(event, Improved):
                for s, choice in zip(squares, chosen(event), strict=True):
                    policy_S_A[s] = np.isin(LAKE_ACTIONS, tied(choice)) / len(tied(choice))
                reached.append(evaluate()[0])
        return reached

    reached = asyncio.run(sweeps())
    assert reached[0] < 0.05
    assert reached[-1] == pytest.approx(best[0], abs=within)


def test_deciding_where_games_lead_is_what_the_students_learn_from():
    env = TicTacToe()
    tabular = Tabular(env, explore=0.0)
    knobs = PolicyIterationKnobs(1, LookAheadKnobs(2, 9), GameKnobs(evaluation_games=2))
    events = run(loop(env, tabular, knobs, env.starts() * 6, opponent=uniform_random))
    (improved,), (trained,) = of(Improved, events), of(Trained, events)
    own = [e.decision for e in of(Step, events) if e.decision.own and 13_000_000 <= e.game < 14_000_000]
    assert trained.examples == len(improved.choices_S) == len(own) > 12
    assert [c.action for c in improved.choices_S] == [
        d.choice.action for d in sorted(own, key=lambda d: (d.game, d.step))
    ]
    assert {e.game // 1_000_000 for e in of(GameEnd, events)} == {5, 13, 15}
