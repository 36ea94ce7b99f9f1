"""What the compact set lets a tiny model say can be said honestly: by counting, in any position, without a solver.

For each game `seen_*` writes the evaluation that the set's value.md asks for, from nothing but what the observation
shows. It is the specification for the corpus of such evaluations.
"""

import re

import numpy as np
import pytest
from seen import seen_breakthrough, seen_connect_four, seen_frozen_lake, seen_tic_tac_toe

from nlrl.parse import parse_reply
from nlrl_envs import ENVS
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


def test_no_pattern_counts_the_characters_of_free_text():
    """A decoder keeps a state for each: see prompts/README.md."""
    for game in sorted(ENVS):
        for prompt in load("compact", game).prompts.values():
            counts = re.findall(r"\{\d*,(\d+)\}", "" if prompt.reply is None else prompt.reply.pattern)
            assert max(map(int, counts), default=0) <= 20, (game, prompt.name)


@pytest.mark.parametrize("game", sorted(ENVS))
def test_asked_again_a_policy_ends_within_its_tokens(game):
    reply = form(game, "policy")
    free, ends = (constraint_pattern(reply, ("up",), ends=ends) for ends in (False, True))
    short, long = (f"{'a' * length}: up." for length in (reply.max_tokens // 2, reply.max_tokens // 2 + 1))
    assert [bool(re.fullmatch(pattern, text)) for pattern in (free, ends) for text in (short, long)] == [
        True, True, True, False,
    ]  # fmt: skip
    assert parse_reply(long, reply, ("up",)).action == "up"
