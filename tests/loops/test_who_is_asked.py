"""Each role's questions go to its own model, and each student is taught for the model that it becomes."""

from collections import Counter

from tabular import Tabular, Watched, run

from nlrl.ask import Asker
from nlrl.engine.oracle import TableStudent
from nlrl.iterate import actor_critic, policy_iteration, td_values
from nlrl.knobs import ActorCriticKnobs, GameKnobs, LookAheadKnobs, PolicyIterationKnobs, TdKnobs
from nlrl.learn import Students
from nlrl.operators.masked import Mask, Models
from nlrl.stages import games_of
from nlrl.values.look_ahead import opponent_policy
from nlrl_envs.opponents import first_legal
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import load


def cast(*names):
    """An engine and an asker for each name; no two share a table."""
    engines = {name: Watched({}, student=TableStudent(), unknown=0.0) for name in names}
    askers = {name: Asker(engine, load("arithmetic", "any"), "", seed=0) for name, engine in engines.items()}
    return engines, askers


def roles(engine, iteration=None):
    return Counter(place.role for place in engine.places if iteration in (None, place.game // 10_000_000))


def test_four_models_in_an_actor_critic():
    engines, ask = cast("policy", "value", "improver", "teacher")
    policy, value = (engines[name]._student for name in ("policy", "value"))
    models = Models(ask["policy"], ask["value"], ask["improver"], ask["teacher"])
    knobs = ActorCriticKnobs(2, 4, mask=Mask(2), play=GameKnobs(evaluation_games=2))
    run(
        actor_critic(
            TicTacToe(), models=models, students=Students(value, policy), knobs=knobs, opponent=first_legal, seed=0
        )
    )
    assert {name: set(roles(engine)) for name, engine in engines.items()} == {
        "policy": {"policy"}, "value": {"value"}, "improver": {"improve"}, "teacher": {"monte_carlo"},
    }  # fmt: skip
    assert all(prompt.startswith("policy\n") for prompt in policy.replies)
    assert all(prompt.startswith("value\n") for prompt in value.replies)
    assert len(policy.replies) > 4 < len(value.replies)


def test_the_first_v_of_language_td_is_the_teachers_and_later_ones_the_students():
    env = TicTacToe()
    engines, ask = cast("value", "teacher")
    student = engines["value"]._student
    models = Models(ask["value"], ask["value"], ask["teacher"])
    knobs = TdKnobs(2, steps=2, held_out=(env.state,))
    run(
        td_values(
            env, [env.state], models=models, student=student, knobs=knobs, rollout=opponent_policy(first_legal), seed=0
        )
    )
    assert roles(engines["teacher"], 1) == {"value": 1, "aggregate": 1}
    assert roles(engines["teacher"], 2) == {"aggregate": 1}
    assert [roles(engines["value"], i) for i in (0, 1, 2)] == [{"value": 1}, {"value": 1}, {"value": 2}]
    held_out = [place.game for place in engines["value"].places if place.game // 1_000_000 % 10 == 5]
    assert held_out == [games_of(i, "evaluate") for i in (0, 1, 2)]


def test_without_students_policy_iteration_only_plays():
    env = TicTacToe()
    tabular = Tabular(env)
    knobs = PolicyIterationKnobs(1, LookAheadKnobs(1, 0), GameKnobs(evaluation_games=0))
    run(
        policy_iteration(
            env, models=tabular.models, students=None, knobs=knobs, starts=env.starts(), opponent=first_legal, seed=0
        )
    )
    assert set(roles(tabular.engine)) == {"value", "aggregate", "improve"}
    assert not tabular.table.replies
