"""Breakthrough: text, rules, perft, and the solver against brute force."""

from functools import cache

import numpy as np
import pytest

from nlrl_envs.board_game import Position
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.check import check_env
from nlrl_envs.game_table import optimal_values, tabulate

pytest.importorskip("numba", reason="compiled search needs numba")

from nlrl_envs import breakthrough_core as core
from nlrl_envs.breakthrough_solver import BreakthroughSolver, solver_of

START = """\
5bbbbb
4bbbbb
3.....
2wwwww
1wwwww
 abcde
"""


def at(board: str, seat: int, **options) -> Breakthrough:
    """A game on a board drawn row by row from the top."""
    rows = board.split()
    game = Breakthrough(f"{len(rows)}x{len(rows[0])}", **options)
    flat = "".join(rows)
    black, white = (sum(1 << s for s, mark in enumerate(flat) if mark == m) for m in "bw")
    game.set_state(Position(black, white, seat))
    return game


def random_positions(count: int, size: str = "5x5", seed: int = 0) -> list[Position]:
    """Positions of games of uniformly random moves, the finished ones left out."""
    rng, game, found = np.random.default_rng(seed), Breakthrough(size), []
    while len(found) < count:
        game.reset(rng)
        while game.legal_actions:
            found.append(game.state)
            game.step(game.legal_actions[int(rng.integers(len(game.legal_actions)))])
    return found[:count]


def test_observation_text():
    game = Breakthrough()
    assert game.render() + "\n" == START
    assert len(START) == 42
    assert game.observation == START + (
        "Black pawns: a5, b5, c5, d5, e5, a4, b4, c4, d4, e4\n"
        "White pawns: a2, b2, c2, d2, e2, a1, b1, c1, d1, e1\n"
        "black is to move.\n"
    )
    assert game.describe_start(game.state) == "bbbbbbbbbb.....wwwwwwwwww0"


def test_moves_are_named_and_captures_marked():
    game = at("..... .b... ..w.. ..... .....", 0)
    assert game.legal_actions == ("b4a3", "b4b3", "b4c3*")
    step = game.step("b4c3*")
    assert (step.reward, step.rewards_P) == (1, (1, -1))
    assert game.terminal_text == "black wins: white has no pawn left."
    assert at("..... .b... .w... ..... .....", 0).legal_actions == ("b4a3", "b4c3"), "no capture straight ahead"


def test_the_far_row_wins_for_either_side():
    game = at("..... ...w. b.... ..... .....", 1)
    step = game.step("d4e5")
    assert (step.reward, step.rewards_P, game.terminal_text) == (1, (-1, 1), "white wins: its pawn has reached e5.")
    game = at("..... ..... .w... b.... .....", 0)
    game.step("a2a1")
    assert game.terminal_text == "black wins: its pawn has reached a1."


@pytest.mark.parametrize("move", ["a4a2", "a4b3*", "a2a3", "A4A3", ""])
def test_an_illegal_move_loses(move: str):
    game = Breakthrough()
    step = game.step(move)
    assert (step.legal, step.rewards_P, game.terminal_text) == (False, (-1, 1), "black made no legal move and loses.")


@pytest.mark.parametrize("size", ["5x5", "6x5", "3x2", "8x8", "4x6"])
def test_every_size_keeps_the_contract(size: str):
    game = Breakthrough(size)
    check_env(game, games=1)
    assert f"{game.grid[0]}x{game.grid[1]}" == size


@pytest.mark.parametrize(
    ("size", "rows", "message"),
    [("9x5", None, "3 to 8 rows"), ("5", None, "'5x5' or the like"), ("4x4", 2, "1 to 1 rows of pawns, not|not 2")],
)
def test_a_board_that_cannot_be_is_refused(size: str, rows: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        Breakthrough(size, rows)


@pytest.mark.parametrize("state", [(1, 1, 0), (1 << 24, 1 << 22, 0), (1, 1 << 25, 0), (1 << 6, 0, 0), (7, 7 << 9, 2)])
def test_an_impossible_state_is_refused(state: tuple):
    with pytest.raises(ValueError, match="is no position of this game"):
        Breakthrough().set_state(state)


def test_perft():
    totals = np.zeros((6, 2), np.int64)
    game = Breakthrough()
    core.perft(core.rules_of(game), np.array(game.state[:3], np.uint64), totals, 0)
    assert totals[:, 0].tolist() == [13, 156, 1924, 23084, 289828, 3538840]
    assert totals[:, 1].tolist() == [0, 0, 0, 0, 4628, 65752]


@pytest.mark.parametrize("size", ["5x5", "8x8", "3x7"])
def test_the_compiled_rules_are_the_rules(size: str):
    game, out = Breakthrough(size), np.empty(192, np.int64)
    rules = core.rules_of(game)
    for position in random_positions(300, size):
        game.set_state(position)
        words = np.array(position[:3], np.uint64)
        count = core.moves(rules, words, out)
        assert out[:count].tolist() == list(game.legal_numbers)
        number = int(out[position.first % count])
        over = core.play(rules, words, number)
        after = game.play(position, number)
        assert (*words.tolist(), over) == (*after[:3], int(after.result is not None))


@pytest.mark.parametrize("size", ["5x2", "4x3", "3x4"])
def test_the_solver_equals_the_whole_table_of_a_small_board(size: str):
    table = tabulate(Breakthrough(size))
    solver = BreakthroughSolver(Breakthrough(size), table_bits=12)
    values_S = optimal_values(table)
    assert [solver.verdict(state).value for state in table.states_S] == values_S.tolist()
    assert len(values_S) > 400


@pytest.fixture(scope="module")
def solver() -> BreakthroughSolver:
    solver = BreakthroughSolver(Breakthrough())
    assert solver.verdict(Breakthrough().start()) == (-1, True), "white, who moves second, wins 5x5"
    assert solver.searched < 5_000_000
    return solver


def test_the_solver_equals_brute_force_on_400_endings(solver: BreakthroughSolver):
    game, rng = Breakthrough(), np.random.default_rng(0)

    @cache
    def wins(position: Position) -> bool:
        return any(
            after.result is not None or not wins(after)
            for after in (game.play(position, number) for number in game.legal_moves(position).values())
        )

    endings = []
    while len(endings) < 400:
        black, white = 1 + rng.integers(4, size=2)
        squares = [int(s) for s in rng.permutation(25)[: black + white]]
        first, second = sum(1 << s for s in squares[:black]), sum(1 << s for s in squares[black:])
        if first >> 20 == 0 and second & 31 == 0:
            endings.append(Position(first, second, int(rng.integers(2))))
    verdicts = [wins(p) for p in endings]
    assert [solver.mover_wins(p) for p in endings] == verdicts
    assert 100 < sum(verdicts) < 300


def test_all_first_moves_lose(solver: BreakthroughSolver):
    assert list(solver.move_verdicts(Breakthrough().start()).values()) == [(-1, True)] * 13


def test_3000_positions_cost_few_millions_of_searched_ones(solver: BreakthroughSolver):
    """A million takes a third to half a second; so the bound is what keeps 3,000 grades under 10 seconds."""
    positions, before = random_positions(3000), solver.searched
    values = [solver.verdict(p).value for p in positions]
    assert solver.searched - before < 12_000_000
    for position, value in zip(positions[::30], values[::30], strict=True):
        assert max(solver.move_verdicts(position).values()) == (value * (1 - 2 * position.seat), True)


def test_mirrored_positions_have_one_verdict(solver: BreakthroughSolver):
    for first, second, seat, *_ in random_positions(100, seed=2)[50:]:
        turned = [sum(1 << (s - s % 5 + 4 - s % 5) for s in range(25) if pawns >> s & 1) for pawns in (first, second)]
        assert solver.mover_wins(Position(first, second, seat)) == solver.mover_wins(
            Position(turned[0], turned[1], seat)
        )


def test_finished_games_have_their_value_and_large_boards_are_refused():
    game = at("..... ...w. b.... ..... .....", 1)
    game.step("d4e5")
    assert solver_of(game).verdict(game.state) == (-1, True)
    assert solver_of(game).move_verdicts(game.state) == {}
    with pytest.raises(ValueError, match="up to 28 squares, not on 6x5"):
        BreakthroughSolver(Breakthrough("6x5"))
