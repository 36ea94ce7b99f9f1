"""Exact policy iteration of Tic-Tac-Toe, all of it through the language operators."""

import numpy as np
import pytest

from nlrl.errors import EnvError
from nlrl.exact_games import policy_iteration, print_policies
from nlrl_envs import game_table
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
    # Of 16,167 moves 2,862 end the game and need no V^L; one aggregate a move and one improvement a position.
    over = int(table.over_S[table.next_S_A[table.legal_S_A]].sum())
    assert {r.calls for r in records[1:]} == {16_167 - over + 16_167 + 4_520}


def test_a_game_without_a_second_player_is_one_sentence():
    with pytest.raises(EnvError, match="take tic_tac_toe"):
        print_policies("frozen_lake")
