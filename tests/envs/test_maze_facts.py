"""The maze and its solver against figures that were worked out elsewhere."""

from pathlib import Path

import numpy as np
import pytest

from nlrl_envs.maze import MazeText
from nlrl_envs.maze_maps import ACTIONS, MAPS, load_map
from nlrl_envs.maze_solver import (
    MazeTable,
    action_values,
    best_actions,
    evaluate_policy,
    evaluate_policy_forever,
    greedy_policy,
    manhattan_policy,
    optimal_action_values,
    optimal_actions,
    optimal_values,
    reference,
    shortest_distances,
    start_mean,
    tabulate,
    uniform_policy,
)

HERE = Path(__file__).parent


def table_of(name: str) -> MazeTable:
    return tabulate(load_map(name))


def test_double_t_has_the_known_shape():
    table = table_of("double_t")
    assert len(table.cells_S) == 26
    assert len(table.starts) == 25
    assert shortest_distances(table)[table.starts].mean() == pytest.approx(7.84)
    assert table.bump_S_A.sum() == 51


@pytest.mark.parametrize(("name", "mean"), [("double_t", -6.84), ("umaze", -2.5), ("medium", -4.72)])
def test_optimum(name: str, mean: float):
    table = table_of(name)
    assert start_mean(table, optimal_values(table)) == pytest.approx(mean)
    optimal = evaluate_policy(table, greedy_policy(optimal_action_values(table)))
    assert start_mean(table, optimal.values_S) == pytest.approx(mean)
    assert optimal.success_S.min() == 1


def test_uniform_random_on_double_t():
    table = table_of("double_t")
    random = evaluate_policy(table, uniform_policy(table))
    assert start_mean(table, random.values_S) == pytest.approx(-85.8927, abs=1e-4)
    assert start_mean(table, random.success_S) == pytest.approx(0.24684, abs=1e-5)


def test_optimal_directions_of_double_t_equal_the_table_of_lmrl_gym():
    table = table_of("double_t")
    optimal_S_A = optimal_actions(table)
    index = {cell: s for s, cell in enumerate(table.cells_S)}
    lines = (HERE / "double_t_optimal_directions.txt").read_text().splitlines()
    seen = set()
    for line in lines:
        cell_text, move = line.split(": ")
        row, column = map(int, cell_text.split(", "))
        best = [ACTIONS[a] for a in np.flatnonzero(optimal_S_A[index[row, column]])]
        assert best == [move], line
        seen.add((row, column))
    assert seen == {table.cells_S[s] for s in table.starts}


def test_greedy_on_the_values_of_uniform_random():
    def optimal_starts(table: MazeTable, q_S_A: np.ndarray) -> int:
        first_S = best_actions(q_S_A).argmax(axis=1)
        return int(optimal_actions(table)[table.starts, first_S[table.starts]].sum())

    counts = {}
    for name in ("double_t", "large"):
        table = table_of(name)
        policy_S_A = uniform_policy(table)
        forever_S_A = action_values(table, evaluate_policy_forever(table, policy_S_A))
        within_S_A = evaluate_policy(table, policy_S_A).q_S_A
        counts[name] = optimal_starts(table, forever_S_A), optimal_starts(table, within_S_A), len(table.starts)
    assert counts == {"double_t": (25, 25, 25), "large": (43, 45, 45)}


@pytest.mark.parametrize(("name", "mean", "reached"), [("double_t", -21.32, 21), ("medium", -31.24, 18)])
def test_manhattan_greedy_walks_into_dead_ends(name: str, mean: float, reached: int):
    table = table_of(name)
    values = evaluate_policy(table, manhattan_policy(table))
    assert start_mean(table, values.values_S) == pytest.approx(mean)
    assert values.success_S[table.starts].sum() == pytest.approx(reached)


@pytest.mark.parametrize("name", MAPS)
def test_policy_iteration_from_random_reaches_the_optimum(name: str):
    table = table_of(name)
    policy_S_A = uniform_policy(table)
    for _ in range(20):
        policy_S_A = greedy_policy(evaluate_policy(table, policy_S_A).q_S_A)
    np.testing.assert_allclose(evaluate_policy(table, policy_S_A).values_S, optimal_values(table))


def test_without_a_horizon_equals_a_very_long_one():
    table = table_of("medium")
    policy_S_A = uniform_policy(table)
    forever_S = evaluate_policy_forever(table, policy_S_A)
    np.testing.assert_allclose(forever_S, evaluate_policy(table, policy_S_A, 20_000).values_S, rtol=1e-6)


def test_without_a_horizon_wandering_for_ever_is_minus_infinity():
    table = table_of("umaze")
    always_left_S_A = np.tile([1.0, 0.0, 0.0, 0.0], (len(table.cells_S), 1))
    values_S = evaluate_policy_forever(table, always_left_S_A)
    assert values_S[table.goal] == 0
    assert np.isneginf(values_S[table.starts]).all()


def test_values_satisfy_the_bellman_equations():
    table = table_of("large")
    values_S, q_S_A = optimal_values(table), optimal_action_values(table)
    np.testing.assert_allclose(q_S_A.max(axis=1), values_S)
    random = evaluate_policy(table, uniform_policy(table), 40)
    np.testing.assert_allclose(random.q_S_A.mean(axis=1), random.values_S)


def test_simulated_games_agree_with_dynamic_programming():
    env, table, rng = MazeText("umaze"), table_of("umaze"), np.random.default_rng(0)
    returns = []
    for _ in range(2000):
        env.reset(rng)
        total = 0.0
        while env.legal_actions:
            total += env.step(env.legal_actions[int(rng.integers(4))]).reward
        returns.append(total)
    exact = start_mean(table, evaluate_policy(table, uniform_policy(table)).values_S)
    assert abs(np.mean(returns) - exact) < 4 * np.std(returns) / np.sqrt(len(returns))


def test_the_reference_of_a_run_holds_the_exact_answers_of_its_starts():
    env = MazeText("umaze")
    starts = (env.starts()[4], env.starts()[0], env.starts()[4])
    exact = reference(env, starts)
    assert exact.optimal_returns_G == (0.0, -3.0, 0.0)
    assert exact.random_returns_G[0] == exact.random_returns_G[2] > exact.random_returns_G[1]
    whole = reference(env, env.starts())
    assert np.mean(whole.random_returns_G) == pytest.approx(-46.2190, abs=1e-4)
    assert np.mean(whole.random_success_G) == pytest.approx(0.79877, abs=1e-5)


@pytest.mark.parametrize("policy_S_A", [np.ones((3, 4)), np.ones((7, 4)), np.tile([2.0, -1.0, 0.0, 0.0], (7, 1))])
def test_a_policy_that_is_no_distribution_is_refused(policy_S_A: np.ndarray):
    with pytest.raises(ValueError, match=r"The policy has shape|not a distribution"):
        evaluate_policy(table_of("umaze"), policy_S_A)
