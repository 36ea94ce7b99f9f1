"""The twelve acceptance checks of issue 4, and where each is shown; those of operators and calls stand here.

1. Tic-Tac-Toe's rules
   tests/envs/test_tic_tac_toe.py::test_the_tree_has_the_known_size
   tests/envs/test_tic_tac_toe.py::test_opponents_and_caps
2. its opponents and caps
   tests/envs/test_tic_tac_toe.py::test_best_responses
   tests/envs/test_opponents.py::test_perfect_players_draw
   tests/envs/test_opponents.py::test_512_random_games_win_as_often_as_they_should
   tests/loops/test_actor_critic.py::test_every_game_of_two_ends_as_well_as_it_can_against_the_first_legal_move
3. exact policy iteration
   tests/loops/test_policy_iteration.py::test_sweeps_over_all_of_tic_tac_toe_are_exact_policy_iteration
   tests/nlrl/test_operators_exact_games.py::test_alternating_evaluation_and_improvement_is_exact_policy_iteration
4. Monte Carlo
   tests/nlrl/test_values_monte_carlo.py::test_the_value_of_every_group_is_the_mean_of_its_returns
   tests/nlrl/test_values_monte_carlo.py::test_groups_have_the_sizes_that_the_paper_does_not_tell
   tests/nlrl/test_values_monte_carlo.py::test_fresh_games_give_exactly_k_from_every_move_and_approach_the_exact_value
5. TD in the maze
   tests/nlrl/test_exact.py::test_sweeps_of_evaluation_and_improvement_reach_the_optimum
   tests/nlrl/test_exact.py::test_an_evaluator_that_sees_no_walls_is_told_apart
   tests/loops/test_policy_iteration.py::test_one_improvement_on_the_values_of_random_play_is_optimal_in_a_maze_and_is_learned
   tests/envs/test_maze_facts.py::test_greedy_on_the_values_of_uniform_random
6. the maze
   tests/envs/test_maze_facts.py::test_double_t_has_the_known_shape
   tests/envs/test_maze_facts.py::test_uniform_random_on_double_t
   tests/envs/test_maze_facts.py::test_optimal_directions_of_double_t_equal_the_table_of_lmrl_gym
7. Breakthrough's rules
   tests/envs/test_breakthrough.py::test_perft
   tests/envs/test_breakthrough.py::test_all_first_moves_lose
   tests/envs/test_breakthrough.py::test_the_solver_equals_brute_force_on_400_endings
8. grading of values
   tests/evaluate/test_breakthrough_labels.py::test_three_thousand_states_are_graded_in_ten_seconds
   tests/evaluate/test_breakthrough_labels.py::test_both_kinds_of_label_and_the_rules_beside_them
   tests/evaluate/test_breakthrough_labels.py::test_on_the_clean_subset_trivial_rules_score_one_half
9. parsing
   tests/acceptance/test_facts.py::test_twelve_malformed_replies_are_the_right_move_or_a_failure
   tests/acceptance/test_facts.py::test_a_malformed_reply_is_never_a_move_in_a_game
   tests/prompts/test_examples.py::test_examples_are_strict_json_of_the_form_that_is_asked_for
10. resuming
   tests/loops/test_the_same_again.py::test_an_interrupted_loop_goes_on_and_asks_nothing_twice
   tests/nlrl/test_recorded.py::test_a_run_that_breaks_again_and_again_ends_as_if_it_had_not
   tests/torture/test_kill.py::test_sigkill_in_every_phase_of_a_loop_that_learns
11. calls and cost
   tests/acceptance/test_facts.py::test_a_decision_in_the_maze_is_at_most_37_calls_in_three_waves
   tests/nlrl/test_recorded.py::test_a_run_stops_within_one_request_of_its_budget
12. losses are seen
   tests/baselines/test_episodes.py::test_a_learner_sees_every_loss
   tests/loops/test_actor_critic.py::test_the_player_sees_its_losses
"""

import ast
import asyncio
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nlrl.agents import plain_agent
from nlrl.ask import Asker
from nlrl.engine.oracle import OracleEngine
from nlrl.engine.scripted import ScriptedEngine
from nlrl.errors import ParseError
from nlrl.iterate import decide
from nlrl.knobs import LookAheadKnobs
from nlrl.parse import parse_reply
from nlrl.play import Games, play_all
from nlrl.types import CallId, GameEnd, Step
from nlrl_envs.maze import MazeText
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import load

ROOT = Path(__file__).parents[2]
FREE = ("2", "3", "5", "6", "8")
"""Squares that are free in the position that is asked about; 5 is the move that each reply means."""


def test_every_check_names_a_test_that_exists():
    named = re.findall(r"(tests/\S+\.py)::(\w+)", __doc__ or "")
    assert len(named) > 25
    assert [int(n) for n in re.findall(r"^(\d+)\. ", __doc__ or "", re.MULTILINE)] == list(range(1, 13))
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


MALFORMED = {
    "quoted digit": ('{"thought": "t", "action": "\'5\'"}', "5"),
    "missing space": ('{"thought":"t","action":"5"}', "5"),
    "newline": ('{"thought": "t",\n "action":\n"5"\n}', "5"),
    "trailing text": ('{"thought": "t", "action": "5"} The centre is best.', "5"),
    "single quotes": ("{'thought': 't', 'action': '5'}", "format"),
    "missing comma": ('{"thought": "t" "action": "5"}', "format"),
    "nested key": ('{"thought": "t", "move": {"action": "5"}}', "format"),
    "code fence": ('```json\n{"thought": "t", "action": "5"}\n```', "5"),
    "out of range": ('{"thought": "t", "action": "10"}', "illegal"),
    "occupied square": ('{"thought": "t", "action": "1"}', "illegal"),
    "empty": ("", "empty"),
    "nothing but null": ("null", "format"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_twelve_malformed_replies_are_the_right_move_or_a_failure(what):
    assert len(MALFORMED) == 12
    text, expected = MALFORMED[what]
    reply = load("full", "tic_tac_toe")["policy"].reply
    assert reply is not None
    if expected == "5":
        assert parse_reply(text, reply, FREE).action == "5"
        return
    with pytest.raises(ParseError) as failure:
        parse_reply(text, reply, FREE)
    assert failure.value.kind == expected
    assert failure.value.reason.endswith(".")


@pytest.mark.parametrize("what", [what for what, (_, expected) in MALFORMED.items() if expected != "5"])
def test_a_malformed_reply_is_never_a_move_in_a_game(what):
    text, expected = MALFORMED[what]
    env = TicTacToe()
    env.step("1")
    engine = ScriptedEngine(lambda request: text, prompt_set="full")
    ask = Asker(engine, load("full", "tic_tac_toe"), env.task, attempts=2)

    async def collect():
        games = Games([env.state], first=1)
        return [event async for event in play_all(env, games, plain_agent(ask), seed=0, history_items=1)]

    _, step, end = asyncio.run(collect())
    assert isinstance(step, Step)
    assert isinstance(end, GameEnd)
    assert (step.action, step.decision.choice, end.outcome) == ("", None, "forfeit")
    assert [failure.kind for failure in step.decision.failures] == [expected] * 2
    assert len(engine.requests) == 2


@pytest.mark.parametrize(("position", "leaves"), [((1, 1), 32), ((6, 6), 29)], ids=["far", "goal within reach"])
def test_a_decision_in_the_maze_is_at_most_37_calls_in_three_waves(position, leaves):
    waves = []

    class Waiting(OracleEngine):
        """Each wave waits for all answers of the one before, so a decision takes as many replies as waves."""

        async def generate(self, requests):
            waves.append(Counter(r.call.role for r in requests if r.call))
            await asyncio.sleep(0)
            return await super().generate(requests)

    env = MazeText("double_t")
    env.set_state(env.starts()[0]._replace(position=position))
    engine = Waiting({}, unknown=-5.0)
    ask = Asker(engine, load("arithmetic", "maze"), env.task)
    knobs = LookAheadKnobs(variations=8, steps=3)
    call, rng = CallId(0, 0, "policy"), np.random.default_rng(0)
    decision = asyncio.run(decide(env, (env.observation,), call, rng, ask=ask, knobs=knobs))
    assert [set(wave) for wave in waves] == [{"value"}, {"aggregate"}, {"improve"}]
    assert (waves[0]["value"], waves[1]["aggregate"], waves[2]["improve"]) == (leaves, 4, 1)
    assert decision.calls == leaves + 5 <= 37
