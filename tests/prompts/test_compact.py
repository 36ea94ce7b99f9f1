"""What the compact set lets a tiny model say can be said honestly: by counting, in any position, without a solver.

For each game `seen_*` writes the evaluation that the set's value.md asks for, from nothing but what the observation
shows. It is the specification for a corpus of such evaluations.
"""

import re

import numpy as np
import pytest

from nlrl.parse import parse_reply
from nlrl_envs import ENVS
from nlrl_envs.board_game import BoardGame, Position, bits
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import Reply, constraint_pattern, fill_actions, load, quotes

COMBINED = {
    "tic_tac_toe": ("Of 4 looks won 1, lost 0.", "Of 5 games won 3, drew 1, lost 1."),
    "connect_four": ("Of 4 looks won 1, lost 2.", "Of 5 games won 3, drew 0, lost 2."),
    "breakthrough": ("Of 10 looks won 1, lost 2.", "Of 5 games won 3, lost 2."),
    "frozen_lake": ("Of 4 looks 1 reached the goal.", "Of 12 games 3 reached the goal."),
}


def form(game: str, role: str) -> Reply:
    reply = load("compact", game)[role].reply
    assert reply is not None
    return reply


def sides(position: Position) -> tuple[int, int]:
    """The mover's squares, then the other's."""
    return (position.second, position.first) if position.seat else (position.first, position.second)


def completing(game: BoardGame, position: Position) -> tuple[list[str], list[str]]:
    """Moves by which the mover would win at once, then those by which the other would if it were its turn."""
    found = []
    for seat in (position.seat, 1 - position.seat):
        there = position._replace(seat=seat)
        moves = game.legal_moves(there).items()
        found.append([move for move, number in moves if game.play(there, number).result == 1 - 2 * seat])
    return found[0], found[1]


def listed(moves: list[str]) -> str:
    return ", ".join(moves) or "none"


def worth(value: float, low: float = -1.0) -> str:
    return f"Worth {min(max(round(value, 2), low), 1.0) + 0.0:.2f}."


def seen_tic_tac_toe(game: TicTacToe) -> str:
    wins, losses = completing(game, game.state)
    mine, others = sides(game.state)
    centre = "own" if mine >> 4 & 1 else "other" if others >> 4 & 1 else "empty"
    value = 0.3 * (len(wins) - len(losses)) + 0.1 * (centre == "own")
    return f"Wins at {listed(wins)}. Loses at {listed(losses)}. Centre {centre}. {worth(value)}"


def seen_connect_four(game: ConnectFour) -> str:
    wins, losses = completing(game, game.state)
    mine, others = sides(game.state)
    own, against = (sum(game.cell(s)[1] == game.grid[1] // 2 for s in bits(stones)) for stones in (mine, others))
    value = 0.3 * (len(wins) - len(losses)) + 0.1 * (own - against)
    return f"Wins in {listed(wins)}. Loses in {listed(losses)}. Middle {own} to {against}. {worth(value)}"


def seen_breakthrough(game: Breakthrough) -> str:
    counted = []
    for seat in (game.state.seat, 1 - game.state.seat):
        there = game.state._replace(seat=seat)
        rows = [game.cell(s)[0] for s in bits(sides(there)[0])]
        to_go = min(rows) if seat else game.grid[0] - 1 - max(rows)
        counted.append((len(rows), to_go, sum(move.endswith("*") for move in game.legal_moves(there))))
    (pawns, to_go, captures), (their_pawns, their_to_go, their_captures) = counted
    value = 0.1 * (pawns - their_pawns + their_to_go - to_go + captures - their_captures)
    return (
        f"Pawns {pawns} to {their_pawns}. Rows to go {to_go} to {their_to_go}. "
        f"Captures {captures} to {their_captures}. {worth(value)}"
    )


def seen_frozen_lake(game: FrozenLakeText) -> str:
    marks = [line.split(" ") for line in game.observation.splitlines()]
    place = {mark: (r, c) for r, row in enumerate(marks) for c, mark in enumerate(row)}
    (r, c), goal = place["P"], place["G"]
    down, right = goal[0] - r, goal[1] - c
    beside = [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
    holes = sum(0 <= i < len(marks) and 0 <= j < len(marks[0]) and marks[i][j] == "O" for i, j in beside)
    steps = abs(down) + abs(right)
    return (
        f"Goal {abs(down)} {'up' if down < 0 else 'down'}, {abs(right)} {'left' if right < 0 else 'right'}: "
        f"{steps} steps. Holes beside {holes}. {worth(1 - 0.1 * (steps + holes), 0.0)}"
    )


SEEN = {
    "tic_tac_toe": (TicTacToe, seen_tic_tac_toe),
    "connect_four": (ConnectFour, seen_connect_four),
    "breakthrough": (Breakthrough, seen_breakthrough),
    "breakthrough 8x8": (lambda: Breakthrough("8x8"), seen_breakthrough),
    "frozen_lake": (lambda: FrozenLakeText("random"), seen_frozen_lake),
    "frozen_lake 8x8": (lambda: FrozenLakeText("8x8"), seen_frozen_lake),
}


@pytest.mark.parametrize("board", SEEN)
def test_what_is_seen_in_any_position_can_be_said(board):
    make, seen = SEEN[board]
    said, rng = set(), np.random.default_rng(0)
    for _ in range(25):
        env = make()
        env.reset(rng)
        while env.legal_actions:
            text = seen(env)
            number = parse_reply(text, form(board.split(" ")[0], "value")).number
            assert f"Worth {number:.2f}." in text
            said.add(number)
            env.step(str(rng.choice(env.legal_actions)))
    assert len(said) >= 5
    assert min(said) >= (0 if "lake" in board else -1)
    assert max(said) <= 1


def test_the_facts_of_positions_that_were_counted_by_hand():
    game = TicTacToe()
    for move in "1524":
        game.step(move)
    assert seen_tic_tac_toe(game) == "Wins at 3. Loses at 6. Centre other. Worth 0.00."
    drop = ConnectFour()
    for move in "44335":
        drop.step(move)
    assert seen_connect_four(drop) == "Wins in none. Loses in 2, 6. Middle 1 to 1. Worth -0.60."
    pawns = Breakthrough()
    for move in ("e4d3", "c2d3*", "b4c3"):
        pawns.step(move)
    assert seen_breakthrough(pawns) == "Pawns 10 to 9. Rows to go 2 to 2. Captures 3 to 3. Worth 0.10."
    lake = FrozenLakeText("random:605")
    assert seen_frozen_lake(lake) == "Goal 1 up, 1 left: 2 steps. Holes beside 1. Worth 0.70."


@pytest.mark.parametrize("game", COMBINED)
def test_a_value_model_can_say_what_evidence_taught_it(game):
    looks, games = COMBINED[game]
    for role, text in (("aggregate", looks), ("monte_carlo", games), ("blend", "By weight.")):
        for asked in (role, "value"):
            assert parse_reply(f"{text} Worth 0.25.", form(game, asked)).number == 0.25
    assert parse_reply("With the reward. Worth 1.00.", form(game, "combine")).number == 1.0


def test_in_a_maze_evidence_names_the_move_if_there_is_one():
    actions = ("move up",)
    for text in ("Of 5 games 3 reached the goal.", "By weight."):
        role = "blend" if text.startswith("By") else "monte_carlo"
        assert parse_reply(f"{text} After move up worth -101.0.", form("maze", role), actions).number == -101.0
        assert parse_reply(f"{text} Worth -8.5.", form("maze", role)).number == -8.5


@pytest.mark.parametrize("game", [game for game in ENVS if game != "maze"])
def test_the_best_candidate_can_be_quoted(game):
    said = quotes(form(game, "improve"), [("5", 0.4), ("b2c3*", 0.0)])
    assert said == ("Most worth is 0.40 after 5.", "Most worth is 0.00 after b2c3*.")
    pattern = fill_actions(form(game, "improve").pattern, ("5", "b2c3*"))
    assert all(re.fullmatch(pattern, text) for text in said)


@pytest.mark.parametrize("game", COMBINED)
def test_engines_that_constrain_replies_can_write_them(game):
    pytest.importorskip("xgrammar")
    from xgrammar import Grammar
    from xgrammar.testing import _is_grammar_accept_string

    looks, games = COMBINED[game]
    said = {
        "policy": "No view yet: b2c3*.",
        "value": f"{games} Worth 0.20.",
        "combine": "With the reward. Worth 1.00.",
        "aggregate": f"{looks} Worth 0.25.",
        "monte_carlo": f"{games} Worth 0.20.",
        "blend": "By weight. Worth 0.25.",
        "improve": "Most worth is 0.40 after b2c3*.",
    }
    for role, text in said.items():
        grammar = Grammar.from_regex(constraint_pattern(form(game, role), ("move up", "b2c3*")))
        assert _is_grammar_accept_string(grammar, text), role
        assert not _is_grammar_accept_string(grammar, text.replace(".", "", 1)), role


@pytest.mark.parametrize("game", [*ENVS, "chess"])
def test_prompts_are_short(game):
    prompts = load("compact", game).prompts.values()
    assert all(prompt.system is None for prompt in prompts)
    assert max(len(re.sub(r"\$\w+", "", prompt.user)) for prompt in prompts) <= 180
