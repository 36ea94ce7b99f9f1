"""Exact policy iteration of Tic-Tac-Toe and value iteration of FrozenLake, through the language operators."""

import numpy as np
import pytest

from nlrl.errors import EnvError
from nlrl.exact_games import policy_iteration, print_policies
from nlrl.exact_lake import lake_sweeps
from nlrl_envs import game_table
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.frozen_lake_solver import greedy_policy, optimal_values, tabulate
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_envs.tic_tac_toe_solver import whole_game


def test_alternating_evaluation_and_improvement_is_exact_policy_iteration():
    table = whole_game()
    records = list(policy_iteration(TicTacToe()))
    assert [100 * r.match.win for r in records] == pytest.approx([43.65, 94.64, 96.08, 96.34], abs=0.01)
    exact = list(game_table.policy_iteration(table, game_table.uniform_policy(table)))
    assert len(exact) == len(records)
    for record, (policy_S_A, _) in zip(records, exact, strict=True):
        assert np.array_equal(record.policy_S_A, policy_S_A)
    # Moves that end the game need no V^L; one aggregate a move and one improvement a position.
    over = int(table.over_S[table.next_S_A[table.legal_S_A]].sum())
    assert records[1].calls == 16_167 - over + 16_167 + 4_520
    # Positions whose successors kept their values, the last moves of a game among them, are not asked about again.
    assert 0 < records[3].calls < records[2].calls < records[1].calls


def test_a_game_without_a_second_player_is_one_sentence():
    with pytest.raises(EnvError, match="take tic_tac_toe"):
        print_policies("maze")


@pytest.mark.parametrize(("slippery", "worth"), [(True, 0.744), (False, 1.0)])
def test_sweeps_over_all_outcomes_of_a_move_are_value_iteration_on_the_lake(slippery, worth):
    env = FrozenLakeText("4x4", slippery)
    table = tabulate(env.maps[0], slippery)
    records = list(lake_sweeps(env))
    assert [r.moves_left for r in records] == list(range(1, 101))
    assert max(r.largest_error for r in records) < 1e-12
    exact = optimal_values(table, 100)
    for record in records:
        best_S_A = greedy_policy(exact.q_F_S_A[record.moves_left]) > 0
        for s, action in enumerate(record.actions_S):
            assert (action is None) == table.over_S[s]
            assert action is None or best_S_A[s, ("Left", "Down", "Right", "Up").index(action)]
    assert records[-1].values_S[0] == pytest.approx(worth, abs=0.001)
