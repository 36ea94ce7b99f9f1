"""Tic-Tac-Toe: text, rules, both faces, and every exact figure that is known of it."""

import numpy as np
import pettingzoo
import pytest

import nlrl_envs  # noqa: F401 - registers nlrl/tic_tac_toe-v0
from nlrl_envs.game_table import (
    WIN_R,
    action_values,
    best_response,
    first_policy,
    greedy_policy,
    joined,
    match,
    optimal_policy,
    optimal_values,
    policy_iteration,
    policy_values,
    tabulate,
    uniform_policy,
)
from nlrl_envs.tic_tac_toe import TicTacToe


@pytest.fixture(scope="module")
def table():
    return tabulate(TicTacToe())


def played(*moves: int) -> TicTacToe:
    game = TicTacToe()
    for move in moves:
        assert game.step(str(move)).legal
    return game


def test_observation_text():
    assert played(5, 1).observation == "X | 2 | 3\n---------\n4 | O | 6\n---------\n7 | 8 | 9\nO is to move.\n"
    assert played(1, 4, 2, 5, 3).observation == "O | O | O\n---------\nX | X | 6\n---------\n7 | 8 | 9\n"


def test_a_line_wins_and_is_named():
    game = played(1, 4, 5, 7)
    step = game.step("9")
    assert (step.reward, step.rewards_P, step.success) == (1, (1, -1), True)
    assert (game.terminal_text, game.result_P, game.legal_actions) == ("O wins with 1, 5, 9.", (1, -1), ())


def test_the_second_player_wins_from_its_own_seat():
    game = played(1, 3, 2, 5, 9)
    step = game.step("7")
    assert (step.reward, step.rewards_P, game.terminal_text) == (1, (-1, 1), "X wins with 3, 5, 7.")


def test_a_full_board_is_a_draw_and_a_line_on_it_is_not():
    assert played(1, 2, 3, 5, 4, 6, 8, 7, 9).terminal_text == "The board is full: a draw."
    assert played(1, 2, 3, 4, 5, 6, 8, 7, 9).terminal_text == "O wins with 1, 5, 9."


@pytest.mark.parametrize("move", ["5", "0", "10", "", "1 ", "five"])
def test_an_illegal_move_loses(move: str):
    game = played(5)
    step = game.step(move)
    assert (step.legal, step.reward, step.rewards_P, step.terminated) == (False, -1, (1, -1), True)
    assert game.terminal_text == "X made no legal move and loses."
    back = TicTacToe()
    back.set_state(game.state)
    assert back.terminal_text == game.terminal_text


def test_a_move_after_the_end_is_refused():
    with pytest.raises(RuntimeError, match="call reset"):
        played(1, 4, 2, 5, 3).step("9")


@pytest.mark.parametrize(
    "state",
    [(1, 1, 0), (3, 0, 1), (1, 0, 0), (1, 0, 1, 1), (7, 24, 1), (7, 24, 1, -1), (1 << 9, 0, 1), (1, 0, 2), "x", (1,),
     (1, 0, 1, -1, True), (7, 56, 0, 1)],
)  # fmt: skip
def test_an_impossible_state_is_refused(state):
    with pytest.raises(ValueError, match="is no position of this game"):
        TicTacToe().set_state(state)


def test_every_state_of_the_tree_is_accepted_and_none_starts_at_its_end(table):
    game = TicTacToe()
    for state, over in zip(table.states_S, table.over_S, strict=True):
        game.set_state(state)
        assert (game.result_P is not None) == over
    with pytest.raises(ValueError, match="start where it still goes on"):
        game.reset(np.random.default_rng(0), played(1, 4, 2, 5, 3).state)


def test_the_tree_has_the_known_size(table):
    assert len(table.states_S) == 5478
    assert table.over_S.sum() == 958
    assert [(table.result_S == result).sum() for result in (1, -1, 0)] == [626, 316, 16]
    assert table.legal_S_A.sum() == 16167
    assert (table.seat_S[~table.over_S] == 0).sum() == 2423
    assert optimal_values(table)[0] == 0


def test_opponents_and_caps(table):
    uniform, first, optimal = uniform_policy(table), first_policy(table), optimal_policy(table)
    assert match(table, uniform, uniform).outcomes_P_R[0] == pytest.approx([0.2881, 0.1270, 0.5849], abs=5e-5)
    assert match(table, uniform, uniform).win == pytest.approx(0.4365, abs=5e-5)
    assert match(table, uniform, first).outcomes_P_R[:, 2] == pytest.approx([0.522, 0.177], abs=5e-4)
    assert match(table, uniform, first).win == pytest.approx(0.349, abs=5e-4)
    assert match(table, optimal, optimal).outcomes_P_R == pytest.approx(np.array([[0, 1, 0], [0, 1, 0]]))
    against_random = match(table, optimal, uniform)
    assert against_random.win == pytest.approx(0.8726, abs=5e-5)
    assert against_random.outcomes_P_R[:, 0].max() == 0, "perfect play loses"


def test_best_responses(table):
    wins = [best_response(table, uniform_policy(table), seat, WIN_R)[0][0] for seat in (0, 1)]
    assert wins == pytest.approx([0.9948, 0.9386], abs=5e-5)
    assert np.mean(wins) == pytest.approx(0.9667, abs=5e-5)
    for seat in (0, 1):
        values_S, policy_S_A = best_response(table, first_policy(table), seat)
        assert values_S[0] == pytest.approx(1)
        both = joined(table, policy_S_A, first_policy(table), seat)
        assert policy_values(table, both)[0] == pytest.approx(1 - 2 * seat)


def test_exact_policy_iteration(table):
    uniform = uniform_policy(table)
    matches = [found for _, found in policy_iteration(table, uniform)]
    assert [100 * found.win for found in matches] == pytest.approx([43.65, 94.64, 96.08, 96.34], abs=0.01)
    assert matches[1].outcomes_P_R[:, 2] == pytest.approx([0.9896, 0.9032], abs=5e-5)
    best = np.mean([best_response(table, uniform, seat)[0][0] for seat in (0, 1)])
    assert matches[-1].mean_return == pytest.approx(best), "policy iteration ends at the best response"


def test_values_of_random_play_are_not_values_of_perfect_play(table):
    q_S_A = action_values(table, policy_values(table, uniform_policy(table)))
    exact_S_A = action_values(table, optimal_values(table))
    legal = table.legal_S_A
    assert (np.sign(q_S_A[legal].round(12)) == exact_S_A[legal]).mean() == pytest.approx(0.706, abs=1e-3)
    greedy = greedy_policy(table, q_S_A)
    right = (greedy * (optimal_policy(table) > 0)).sum(axis=1)[~table.over_S]
    assert right.mean() == pytest.approx(0.966, abs=5e-3)


def test_a_simulation_agrees_with_the_tree():
    rng, game, wins = np.random.default_rng(0), TicTacToe(), []
    for _ in range(2000):
        game.reset(rng)
        while game.legal_actions:
            game.step(game.legal_actions[int(rng.integers(len(game.legal_actions)))])
        wins.append(game.result_P == (1, -1))
    assert abs(np.mean(wins) - 0.5849) < 3 * np.std(wins) / 2000**0.5


def test_a_policy_that_plays_illegal_moves_is_refused(table):
    with pytest.raises(ValueError, match="no distribution over legal moves"):
        policy_values(table, np.full(table.next_S_A.shape, 1 / 9))
    with pytest.raises(ValueError, match="The policy has shape"):
        policy_values(table, np.ones((3, 9)))


def test_another_board_is_refused():
    with pytest.raises(ValueError, match="'3x3', not 'double_t'"):
        TicTacToe("double_t")


def test_a_game_that_is_too_large_for_a_table_is_refused():
    with pytest.raises(ValueError, match="more than 100 positions"):
        tabulate(TicTacToe(), limit=100)


def test_pettingzoo_shows_the_same_game():
    env = pettingzoo.make("aec", "nlrl/tic_tac_toe-v0", render_mode="ansi")
    env.reset(seed=3)
    for number in (4, 0):
        env.step(number)
    observation, reward, terminated, truncated, info = env.last()
    assert observation is not None
    assert observation["observation"][1, 1].tolist() == [1, 0]
    assert observation["observation"][0, 0].tolist() == [0, 1]
    assert observation["action_mask"].tolist() == [0, 1, 1, 1, 0, 1, 1, 1, 1]
    assert observation["text"] == info["text"] == played(5, 1).observation
    assert info["legal_actions"] == ["2", "3", "4", "6", "7", "8", "9"]
    assert (reward, terminated, truncated, env.agent_selection) == (0, False, False, "player_0")
    assert env.render() == played(5, 1).render()
    env.step(4)
    assert (env.rewards, env.infos["player_0"]["illegal"]) == ({"player_0": -1, "player_1": 1}, True)
    assert env.terminations == {"player_0": True, "player_1": True}
