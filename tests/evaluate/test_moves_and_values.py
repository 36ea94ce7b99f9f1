"""Positions read back, moves and evaluations held against the solvers."""

import asyncio

import numpy as np
import pytest

from nlrl.agents import opponent_agent, random_agent, seated_agent
from nlrl.evaluate.graders import exact_value, make_grader
from nlrl.evaluate.grades import Grades, grade_games
from nlrl.evaluate.moves import grade_moves
from nlrl.evaluate.rates import Rate
from nlrl.evaluate.reading import read_board, read_lake, read_maze
from nlrl.evaluate.values import exact_labels, grade_values, label_key, result_labels, unanswered
from nlrl.play import Games, play_all
from nlrl.types import CallId, Evaluation, Failure, GameEnd, Group, LanguageValue, LookAhead, Role, Situation, Step
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.frozen_lake_solver import optimal_values, tabulate
from nlrl_envs.maze import MazeText
from nlrl_envs.opponents import make_opponent
from nlrl_envs.tic_tac_toe import TicTacToe

pytest.importorskip("numba", reason="compiled search needs numba")


def played(env, agent, games, seed=0):
    async def collect():
        starts = env.starts()
        wanted = Games([starts[g % len(starts)] for g in range(games)])
        return [event async for event in play_all(env, wanted, agent, seed=seed)]

    events = asyncio.run(collect())
    return [e for e in events if isinstance(e, Step)], [e for e in events if isinstance(e, GameEnd)]


@pytest.mark.parametrize(
    ("env_id", "env"),
    [
        ("tic_tac_toe", TicTacToe()), ("breakthrough", Breakthrough()), ("breakthrough", Breakthrough("8x8")),
        ("connect_four", ConnectFour()), ("connect_four", ConnectFour("5x4")),
    ],
)  # fmt: skip
def test_boards_are_read_back_from_what_is_observed(env_id, env):
    rng = np.random.default_rng(0)
    for _ in range(8):
        env.reset(rng)
        while env.legal_actions:
            game, position = read_board(env_id, env.observation)
            assert position == env.state
            assert game.legal_moves(position).keys() == set(env.legal_actions)
            env.step(str(rng.choice(env.legal_actions)))
        with pytest.raises(ValueError, match="no observation"):
            read_board(env_id, env.observation)


def test_walks_are_read_back_from_what_is_observed():
    for map_ in ("double_t", "medium", "random:3"):
        maze = MazeText(map_)
        for start in maze.starts():
            maze.set_state(start)
            assert read_maze(maze.observation) == (start.position, maze.maze.goal)
    lakes = FrozenLakeText("random")
    for start in lakes.starts()[:50]:
        lakes.set_state(start)
        assert read_lake(lakes.observation) == (lakes.rows, start.position)
    with pytest.raises(ValueError, match="no observation"):
        read_lake("nothing\n")
    with pytest.raises(ValueError, match="no observation"):
        read_maze("nothing\n")


def test_perfect_play_is_graded_perfect_and_random_play_as_chance_has_it():
    env, grader = TicTacToe(), make_grader(TicTacToe())
    assert grader is not None
    perfect = opponent_agent(make_opponent("minimax", env))
    steps, ends = played(env, seated_agent(perfect, random_agent()), 20)
    best = grade_moves(steps, grader)
    assert best.optimal.hits == best.optimal.count == sum(step.decision.own for step in steps)
    assert best.value_lost.value == 0
    steps, ends = played(env, seated_agent(random_agent(), random_agent()), 300)
    random = grade_moves(steps, grader)
    low, high = random.optimal.interval
    assert low < random.by_chance < high
    assert 0 < random.value_lost.value < 2
    figures = Grades(games=grade_games(ends, env.seats), moves=random).figures()
    assert figures["moves/optimal"] == random.optimal.share
    assert figures["games/win as O"] > figures["games/win as X"]


@pytest.mark.parametrize(("env", "optimal"), [(MazeText("umaze"), -2.5), (FrozenLakeText("4x4", slippery=False), 1.0)])
def test_walks_are_graded_by_dynamic_programming(env, optimal):
    grader = make_grader(env)
    assert grader is not None
    values = []
    for start in env.starts():
        env.set_state(start)
        values.append(exact_value(grader, env.observation, 0, "player"))
    assert np.mean(values) == pytest.approx(optimal)
    steps, _ = played(env, random_agent(), 30)
    grades = grade_moves(steps, grader)
    assert grades.ungraded == 0
    assert abs(grades.optimal.share - grades.by_chance) < 0.2


def test_the_horizon_counts_on_slippery_ice():
    env = FrozenLakeText("random:605")
    grader = make_grader(env)
    assert grader is not None
    exact = optimal_values(tabulate(env.rows, True), env.horizon).values_F_S
    start = env.state.position
    for step in (0, 5, 9):
        assert exact_value(grader, env.observation, step, "player") == pytest.approx(exact[env.horizon - step, start])


def test_connect_four_is_graded_only_where_its_search_is_certain():
    env = ConnectFour("4x4")
    grader = make_grader(env, depth=4)
    assert grader is not None
    steps, _ = played(env, seated_agent(random_agent(), random_agent()), 8)
    grades = grade_moves(steps, grader)
    assert grades.ungraded > 0
    assert grades.optimal.count > 0
    assert grades.ungraded + grades.optimal.count == sum(step.decision.own for step in steps)


def test_breakthroughs_first_moves_all_lose():
    env = Breakthrough()
    grader = make_grader(env)
    assert grader is not None
    assert set((grader.moves(env.observation, 0) or {}).values()) == {-1.0}
    assert exact_value(grader, env.observation, 0, "white") == 1.0
    assert exact_value(grader, env.observation, 0, "white", env.legal_actions[0]) == 1.0
    with pytest.raises(ValueError, match="legal"):
        exact_value(grader, env.observation, 0, "white", "a1a2")


def situation(game, text, player):
    return Situation((text,), CallId(game, 0, "value"), (), player)


def stated(one, number, action=None):
    return Evaluation(one, action, LanguageValue("", number))


def test_unparsed_and_undecided_are_wrong_and_balance_is_by_winner():
    def of_o(game):
        return situation(game, f"s{game}", "O")

    def of_x(game):
        return situation(game, f"s{game}", "X")

    # Winner by label: O, O, O, X (a win of X told by X), X (a loss told by O), one draw, one close to it.
    labels = {
        label_key(of_o(0)): 1.0, label_key(of_o(1)): 0.5, label_key(of_x(2)): -1.0, label_key(of_x(3)): 1.0,
        label_key(of_o(4)): -1.0, label_key(of_o(5)): 0.0, label_key(of_o(6)): 0.1,
    }  # fmt: skip
    said = [
        stated(of_o(0), 0.3),
        stated(of_x(2), 0.0),
        stated(of_x(3), 0.9),
        stated(of_o(4), None),
        stated(of_o(5), 1.0),
    ]
    grades = grade_values(said, labels, seats=("O", "X"), least=0.2)
    assert grades.sideless == 2
    assert grades.accuracy.right == Rate(2, 5)
    assert (grades.accuracy.unparsed, grades.accuracy.undecided) == (2, 1)
    assert dict(grades.accuracy.by_side) == {"O": Rate(1, 3), "X": Rate(1, 2)}
    assert grades.accuracy.balanced == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert grades.calibration.count == 7
    assert grades.calibration.missing == 3
    with pytest.raises(ValueError, match="no label"):
        grade_values([stated(of_o(9), 1.0)], labels, seats=("O", "X"))
    with pytest.raises(ValueError, match="sides"):
        grade_values([], labels, seats=("b", "w"))


def test_both_kinds_of_label():
    env, grader = TicTacToe(), make_grader(TicTacToe())
    assert grader is not None
    for move in "1524":
        env.step(move)
    here = Situation((env.observation,), CallId(0, 4, "value"), env.legal_actions, "O")
    exact = exact_labels([(here, None), (here, "3"), (here, "6")], grader)
    assert exact == {label_key(here): 1.0, label_key(here, "3"): 1.0, label_key(here, "6"): 0.0}
    games = tuple(LookAhead((), ("3",), (r,), "over") for r in (1.0, 1.0, -1.0, 1.0))
    found = result_labels([Group(here, "3", games[:2]), Group(here, "3", games[2:]), Group(here, "6", games[:1])], 4)
    assert found == {label_key(here, "3"): 0.5}


def test_questions_without_an_answer_are_placed_where_that_can_be_done():
    here, there = situation(3, "s3", "O"), situation(4, "s4", "X")

    def bad(game, role: Role, action=None, attempt=0):
        return Failure(CallId(game, 0, role, action, attempt=attempt), "format", "", "")

    failures = [
        bad(3, "value", "1"), bad(3, "value", "2"), bad(3, "value", "2", attempt=1),  # 1 was answered when asked again
        bad(4, "value"), bad(7, "value"), bad(8, "policy"), bad(3, "improve"),
    ]  # fmt: skip
    lost, unplaced = unanswered(failures, [stated(here, 0.5, "1")], [there])
    assert (lost, unplaced) == ([(here, "2"), (there, None)], 1)
    labels = {label_key(here, "1"): 1.0, label_key(here, "2"): 1.0, label_key(there): -1.0}
    grades = grade_values([stated(here, 0.5, "1")], labels, seats=("O", "X"), unplaced=unplaced).accuracy
    assert (grades.right, grades.unparsed, grades.undecided) == (Rate(1, 4), 3, 0)
    assert dict(grades.by_side) == {"O": Rate(1, 3)}
