"""Opponents: seeded, batched, good at what they claim, for either seat; and matches against exact figures."""

import subprocess
import sys

import numpy as np
import pytest

from nlrl_envs.arena import play_games, play_match
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.game_table import first_policy, match, optimal_policy, uniform_policy
from nlrl_envs.opponents import OpponentError, Pool, first_legal, make_opponent, uniform_random
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_envs.tic_tac_toe_solver import whole_game

pytest.importorskip("numba", reason="compiled search needs numba")

GAMES = [TicTacToe(), Breakthrough(), ConnectFour()]
NAMES = ["random", "first", "minimax", "mcts:30:3"]


def in_progress(env, count: int, seed: int = 0) -> list:
    """Games after some random moves, either seat to move."""
    rng, games = np.random.default_rng(seed), []
    while len(games) < count:
        game = env.clone()
        game.reset(rng)
        for _ in range(len(games) % 7):
            if game.legal_actions:
                game.step(uniform_random([game], rng)[0])
        if game.legal_actions:
            games.append(game)
    return games


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("env", GAMES, ids=lambda env: type(env).__name__)
def test_moves_are_legal_and_the_generator_decides(env, name: str):
    games = in_progress(env, 12)
    opponent = make_opponent("minimax:4" if (name, type(env)) == ("minimax", ConnectFour) else name, env)
    before = [game.state for game in games]
    moves = opponent(games, np.random.default_rng(1))
    assert all(move in game.legal_actions for game, move in zip(games, moves, strict=True))
    assert {game.seat for game in games} == {0, 1}
    np.random.seed(7)
    assert opponent(games, np.random.default_rng(1)) == moves
    assert [game.state for game in games] == before
    if name == "random":
        assert opponent(games, np.random.default_rng(2)) != moves


@pytest.mark.parametrize(
    ("first", "second", "exact"),
    [
        ("random", "random", (uniform_policy, uniform_policy)),
        ("random", "first", (uniform_policy, first_policy)),
        ("minimax", "random", (optimal_policy, uniform_policy)),
        ("minimax", "first", (optimal_policy, first_policy)),
    ],
)
def test_matches_agree_with_the_tree(first: str, second: str, exact: tuple):
    env, table, games = TicTacToe(), whole_game(), 1500
    counts = play_match(env, make_opponent(first, env), make_opponent(second, env), games, np.random.default_rng(0))
    expected = match(table, exact[0](table), exact[1](table)).outcomes_P_R
    assert counts.sum(axis=1).tolist() == [games // 2] * 2
    error = np.sqrt(expected * (1 - expected) / (games // 2))
    assert (np.abs(counts / (games // 2) - expected) <= 4 * error + 1e-9).all()


def test_512_random_games_win_as_often_as_they_should():
    counts = play_match(TicTacToe(), uniform_random, uniform_random, 512, np.random.default_rng(3))
    assert counts[:, 2].sum() / 512 == pytest.approx(0.4365, abs=0.063)


def test_perfect_players_draw():
    env = TicTacToe()
    perfect = make_opponent("minimax", env)
    assert play_match(env, perfect, perfect, 40, np.random.default_rng(0)).tolist() == [[0, 20, 0], [0, 20, 0]]


def test_white_wins_breakthrough_from_perfect_play_and_mcts_beats_random():
    env = Breakthrough()
    perfect, search = make_opponent("minimax", env), make_opponent("mcts:100:10", env)
    assert play_games(env, [(search, perfect)] * 4, np.random.default_rng(0)).tolist() == [-1] * 4
    counts = play_match(env, search, uniform_random, 20, np.random.default_rng(0))
    assert counts[:, 2].sum() >= 19


@pytest.mark.parametrize(("moves", "right"), [("415162", {"3", "7"}), ("414151", {"1"}), ("41517", {"6"})])
def test_mcts_sees_a_win_and_a_threat(moves: str, right: set[str]):
    game = ConnectFour()
    for move in moves:
        game.step(move)
    search = make_opponent("mcts:300:5", game)
    assert {search([game], np.random.default_rng(seed))[0] for seed in range(5)} <= right


def test_mcts_with_its_solver_proves_what_is_short():
    game = TicTacToe()
    for move in "1245":
        game.step(move)
    search = make_opponent("mcts:300:1", game)
    assert {search([game], np.random.default_rng(seed))[0] for seed in range(10)} == {"7"}


def test_more_simulations_play_better():
    env, rng = Breakthrough(), np.random.default_rng(0)
    strong, weak = make_opponent("mcts:200:5", env), make_opponent("mcts:5:1", env)
    assert play_match(env, strong, weak, 20, rng)[:, 2].sum() >= 17


def test_a_pool_keeps_its_opponent_for_a_game_and_shares_games_by_weight():
    pool = Pool((first_legal, uniform_random), weights=(3, 1))
    drawn = pool.draw(np.random.default_rng(0), 400)
    assert 270 < sum(member is first_legal for member in drawn) < 330
    results = play_games(TicTacToe(), [(first_legal, member) for member in drawn[:60]], np.random.default_rng(0))
    same = [r for r, member in zip(results, drawn, strict=False) if member is first_legal]
    assert set(same) == {1.0}, "first against first is one and the same game"
    with pytest.raises(OpponentError, match="at least one opponent"):
        Pool(()).draw(np.random.default_rng(0), 1)


def test_a_past_policy_is_a_function():
    def corner_lover(games, rng):
        return [next((m for m in "1379" if m in game.legal_actions), game.legal_actions[0]) for game in games]

    counts = play_match(TicTacToe(), corner_lover, uniform_random, 200, np.random.default_rng(0))
    assert counts[:, 2].sum() > 100


@pytest.mark.parametrize(
    ("name", "env", "message"),
    [
        ("alphazero", TicTacToe(), "Unknown opponent 'alphazero'; known: random, first"),
        ("mcts:x", TicTacToe(), "'mcts:x' is no opponent; known"),
        ("random:3", TicTacToe(), "'random:3' is no opponent"),
        ("minimax", Breakthrough("8x8"), "up to 28 squares, not on 8x8"),
        ("minimax:3", TicTacToe(), "looks to the end; write 'minimax'"),
        ("mcts", object(), "object has nothing that 'mcts' needs; take 'random' or 'first'"),
    ],
)
def test_an_opponent_that_a_game_lacks_is_one_sentence(name: str, env, message: str):
    with pytest.raises(OpponentError, match=message):
        make_opponent(name, env)


def test_without_numba_the_games_play_and_search_says_what_to_install():
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.opponents import OpponentError, make_opponent
game = Breakthrough()
game.step(make_opponent("random", game)([game], np.random.default_rng(0))[0])
try:
    make_opponent("mcts", game)
except OpponentError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "'mcts' needs numba: pip install 'nlrl[search]', or take 'random'."


def test_an_odd_match_is_refused():
    with pytest.raises(ValueError, match="even number of games, not 3"):
        play_match(TicTacToe(), uniform_random, uniform_random, 3, np.random.default_rng(0))
