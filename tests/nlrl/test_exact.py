"""The whole of language policy iteration against the exact solver, with an engine that can only do sums."""

import pytest

from nlrl.exact import manhattan_values, sweeps
from nlrl_envs.maze import MazeText


@pytest.mark.parametrize(("name", "mean_return", "most"), [("double_t", -6.84, 12), ("umaze", -2.50, 12)])
def test_sweeps_of_evaluation_and_improvement_reach_the_optimum(name, mean_return, most):
    env = MazeText(name)
    records = list(sweeps(env))
    reached = next(r.sweep for r in records if r.largest_error == 0.0)
    assert reached <= most
    assert records[-1].optimal_choices == len(env.starts())
    assert records[-1].mean_return == pytest.approx(mean_return, abs=1e-9)
    errors = [r.largest_error for r in records]
    assert errors == sorted(errors, reverse=True)


def test_an_evaluator_that_sees_no_walls_is_told_apart():
    env = MazeText("double_t")
    assert next(sweeps(env, manhattan_values(env))).mean_return == pytest.approx(-21.32, abs=0.005)
