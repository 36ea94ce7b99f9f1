"""Connect Four: text, rules, the compiled rules, and the search against whole tables."""

import numpy as np
import pytest

from nlrl_envs.board_game import Position
from nlrl_envs.check import check_env
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.game_table import optimal_values, tabulate

pytest.importorskip("numba", reason="compiled search needs numba")

from nlrl_envs import connect_four_core as core
from nlrl_envs.connect_four_solver import ConnectFourSolver


def played(moves: str, size: str = "6x7") -> ConnectFour:
    game = ConnectFour(size)
    for move in moves:
        assert game.step(move).legal
    return game


def random_positions(count: int, size: str, stones: range) -> list[Position]:
    rng, game, found = np.random.default_rng(0), ConnectFour(size), []
    while len(found) < count:
        game.reset(rng)
        while game.legal_actions:
            if (game.state.first | game.state.second).bit_count() in stones:
                found.append(game.state)
            game.step(game.legal_actions[int(rng.integers(len(game.legal_actions)))])
    return found[:count]


def test_observation_text():
    assert played("44").observation == (
        ".......\n.......\n.......\n.......\n...o...\n...x...\n1234567\nx is to move.\n"
    )


@pytest.mark.parametrize(
    ("moves", "text"),
    [
        ("4152637", "x wins with four in a row: column 4 row 1, column 5 row 1, column 6 row 1, column 7 row 1."),
        ("1717171", "x wins with four in a row: column 1 row 1, column 1 row 2, column 1 row 3, column 1 row 4."),
        ("12233434464", "x wins with four in a row: column 1 row 1, column 2 row 2, column 3 row 3, column 4 row 4."),
        ("17273717", "o wins with four in a row: column 7 row 1, column 7 row 2, column 7 row 3, column 7 row 4."),
        ("76655454424", "x wins with four in a row: column 4 row 4, column 5 row 3, column 6 row 2, column 7 row 1."),
    ],
)
def test_endings(moves: str, text: str):
    game = played(moves)
    assert game.terminal_text == text
    assert game.result_P == ((1, -1) if text[0] == "x" else (-1, 1))


def test_a_full_column_is_no_move_and_loses():
    game = played("111111")
    assert game.legal_actions == ("2", "3", "4", "5", "6", "7")
    step = game.step("1")
    assert (step.legal, step.rewards_P, game.terminal_text) == (False, (-1, 1), "x made no legal move and loses.")


def test_a_full_board_is_a_draw():
    rng, board, game = np.random.default_rng(0), ConnectFour("4x4"), None
    for _ in range(200):
        board.reset(rng)
        while board.legal_actions:
            board.step(board.legal_actions[int(rng.integers(len(board.legal_actions)))])
        if board.result_P == (0, 0):
            game = board.clone()
    assert game is not None
    assert game.terminal_text == "The board is full: a draw."
    assert "." not in game.board_text(game.state)


@pytest.mark.parametrize("size", ["6x7", "4x4", "7x8", "5x8"])
def test_every_size_keeps_the_contract(size: str):
    game = ConnectFour(size)
    check_env(game, games=1)
    assert game.action_count == int(size[2])


@pytest.mark.parametrize("size", ["8x8", "3x7", "6x9", "6"])
def test_a_board_that_cannot_be_is_refused(size: str):
    with pytest.raises(ValueError, match="'6x7' or the like"):
        ConnectFour(size)


@pytest.mark.parametrize("state", [(2, 0, 1), (1, 1, 0), (1, 0, 0), (1 << 6, 0, 1), (15, 0, 0), (15, 7 << 7, 1)])
def test_an_impossible_state_is_refused(state: tuple):
    with pytest.raises(ValueError, match="is no position of this game"):
        ConnectFour().set_state(state)


@pytest.mark.parametrize("size", ["6x7", "4x5"])
def test_the_compiled_rules_are_the_rules(size: str):
    game, out = ConnectFour(size), np.empty(8, np.int64)
    rules = core.rules_of(game)
    outcomes = set()
    for position in random_positions(400, size, range(64)):
        game.set_state(position)
        words = np.array(position[:3], np.uint64)
        count = core.moves(rules, words, out)
        assert out[:count].tolist() == list(game.legal_numbers)
        for number in game.legal_numbers:
            words[:] = position[:3]
            outcome = core.play(rules, words, number)
            after = game.play(position, number)
            assert words.tolist() == list(after[:3])
            assert outcome == (0 if after.result is None else 2 if after.result == 0 else 1)
            outcomes.add(outcome)
    assert outcomes >= {0, 1}


def test_the_search_equals_whole_tables_of_endings():
    game = ConnectFour()
    solver, seen = ConnectFourSolver(game, 14), set()
    for position in random_positions(40, "6x7", range(33, 36)):
        table = tabulate(game, position)
        value = optimal_values(table)[0]
        assert solver.verdict(position) == (value, True)
        seen.add(value)
    assert seen == {-1, 0, 1}


def test_a_shallow_search_never_calls_a_wrong_answer_exact():
    game, exact = ConnectFour("4x5"), 0
    whole, shallow = ConnectFourSolver(game, 20), ConnectFourSolver(game, 4)
    for position in random_positions(150, "4x5", range(2, 14)):
        truth, guess = whole.verdict(position), shallow.verdict(position)
        assert truth.exact
        assert guess == truth or (not guess.exact and abs(guess.value) < 1)
        exact += guess.exact
    assert 20 < exact < 150


def test_known_values_of_small_boards():
    assert [ConnectFourSolver(ConnectFour(size), 30).verdict(ConnectFour().start()) for size in ("4x4", "4x5")] == [
        (0, True)
    ] * 2


def test_moves_are_graded_and_the_empty_board_is_not_exact():
    solver = ConnectFourSolver(ConnectFour(), 8)
    assert not solver.verdict(ConnectFour().start()).exact
    verdicts = solver.move_verdicts(played("414151").state)
    assert [move for move, verdict in verdicts.items() if verdict == (-1, True)] == list("234567")
    assert verdicts["1"].value > -1
    assert solver.move_verdicts(played("1717171").state) == {}
    with pytest.raises(ValueError, match="at least 1 ply"):
        ConnectFourSolver(ConnectFour(), 0)
