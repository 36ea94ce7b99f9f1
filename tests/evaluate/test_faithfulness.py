"""Claims in words: the prompts' own worked examples are faithful, hand-made lies are not, the rest is unchecked."""

import json
import re

import numpy as np
import pytest

from nlrl.evaluate.claims import check_text, sentences
from nlrl.evaluate.faithfulness import CHECKS, grade_faithfulness
from nlrl.evaluate.rates import Rate
from nlrl.pretrain.corpus import GAMES
from nlrl.types import CallId, Evaluation, LanguageValue, LookAhead, Situation
from nlrl_envs import ENVS
from nlrl_envs.breakthrough import Breakthrough
from nlrl_envs.connect_four import ConnectFour
from nlrl_envs.frozen_lake import FrozenLakeText
from nlrl_envs.maze import MazeText
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import load

ENVS_OF = {
    "tic_tac_toe": TicTacToe, "breakthrough": Breakthrough, "connect_four": ConnectFour,
    "frozen_lake": lambda: FrozenLakeText("random"),
}  # fmt: skip
EXAMPLE = re.compile(r"\n\nExample:\n(.*?)\nReply:\n(\{[^\n]*\})(?=\n\nExample:|$)", re.DOTALL)


def evaluation(history, text, number, *, player="player", action=None, games=(), reply=""):
    there = Situation(tuple(history), CallId(0, 0, "value"), (), player)
    return Evaluation(there, action, LanguageValue(text, number), tuple(games), reply)


def worked_examples(game):
    """The two examples of value.md: of a position, then of a move."""
    prompt = load("full", game)["value"]
    for shown, reply in EXAMPLE.findall(prompt.system or ""):
        lines, said, player, action = shown.split("\n"), json.loads(reply), "player", None
        if lines[-1].startswith("Judge for: "):
            player = lines.pop().removeprefix("Judge for: ")
        if game == "maze":
            action = lines.pop() if len(lines) % 2 == 0 else None
            history = [line + "\n" for line in lines]
        else:
            moved = not lines[-1].endswith("is to move.") if game != "frozen_lake" else " " not in lines[-1]
            action = lines.pop() if moved else None
            history = ["\n".join(lines) + "\n"]
        yield evaluation(history, said["evaluation"], said["worth"], player=player, action=action, reply=reply)


@pytest.mark.parametrize(
    ("game", "claims"),
    [("tic_tac_toe", 13), ("connect_four", 10), ("breakthrough", 17), ("frozen_lake", 8), ("maze", 7)],
)
def test_the_worked_examples_are_faithful_and_mostly_checked(game, claims):
    grades = grade_faithfulness(worked_examples(game), game)
    assert grades.evaluations == 2
    assert grades.true == Rate(claims, claims)
    assert grades.whole == Rate(2, 2)
    assert grades.unchecked.share < 0.5


LIES = {
    "tic_tac_toe": [("corners 1 and 9", "corners 1 and 3"), ("2, 5, 8 and", "1, 5, 9 and"), ("52 of 100", "62 of 100")],
    "connect_four": [("columns 3 and 4", "columns 3 and 6"), ("68 of 100", "58 of 100")],
    "breakthrough": [("White has ten", "White has nine"), ("on c3 and on c4", "on a3 and on c4"), ("row 3", "row 2")],
    "frozen_lake": [
        ("one square up", "two squares up"), ("hole to the right", "hole to the left"), ("Two moves", "One moves"),
    ],
    "maze": [("one row down", "two rows down"), ("five cells", "four cells"), ("to 2, 1", "to 1, 2")],
}  # fmt: skip


@pytest.mark.parametrize(("game", "lie"), [(game, lie) for game, lies in LIES.items() for lie in lies])
def test_what_is_not_on_the_board_is_found(game, lie):
    honest = next(iter(worked_examples(game)))
    true, false = lie
    assert true in honest.reply
    reply = honest.reply.replace(true, false)
    said = evaluation(
        honest.situation.history, json.loads(reply)["evaluation"], honest.value.number,
        player=honest.situation.player, reply=reply,
    )  # fmt: skip
    grades = grade_faithfulness([said], game)
    assert grades.true.hits < grades.true.count
    assert grades.whole == Rate(0, 1)


def test_compact_sentences_are_read_completely():
    game = TicTacToe()
    for move in "1524":
        game.step(move)
    honest = "Wins at 3. Loses at 6. Centre other. Worth 0.00."
    grades = grade_faithfulness([evaluation([game.observation], honest, 0.0, player="O")], "tic_tac_toe")
    assert (grades.true, grades.unchecked, grades.omitted) == (Rate(4, 4), Rate(0, 4), 0)
    wrong = "Wins at 7. Loses at none. Centre own. Worth 0.40."
    grades = grade_faithfulness([evaluation([game.observation], wrong, 0.4, player="O")], "tic_tac_toe")
    # The sum follows from what was said, so it is the one claim that holds; square 3 was left out.
    assert dict(grades.by_kind) == {"win": Rate(0, 1), "loss": Rate(0, 1), "centre": Rate(0, 1), "worth": Rate(1, 1)}
    assert grades.omitted == 1
    mirrored = "Wins at 6. Loses at 3. Centre own. Worth 0.10."
    assert grade_faithfulness([evaluation([game.observation], mirrored, 0.1, player="X")], "tic_tac_toe").whole.share
    after = evaluation([game.observation], "Wins at none. Loses at 6. Centre other. Worth -0.30.", -0.3,
                       player="O", action="8")  # fmt: skip
    assert dict(grade_faithfulness([after], "tic_tac_toe").by_kind)["win"] == Rate(0, 1)
    ended = evaluation([game.observation], "Wins at 7. Loses at 6. Centre other. Worth 0.00.", 0.0,
                       player="O", action="3")  # fmt: skip
    assert grade_faithfulness([ended], "tic_tac_toe").unchecked == Rate(2, 4)


COMPACT = {
    "connect_four": (ConnectFour, "44335", "o", "Wins in none. Loses in 2, 6. Middle 1 to 1. Worth -0.60.", -0.6),
    "breakthrough": (
        Breakthrough, ("e4d3", "c2d3*", "b4c3"), "white",
        "Pawns 10 to 9. Rows to go 2 to 2. Captures 3 to 3. Worth 0.10.", 0.1,
    ),
    "frozen_lake": (
        lambda: FrozenLakeText("random:605"), (), "player",
        "Goal 1 up, 1 left: 2 steps. Holes beside 1. Worth 0.70.", 0.7,
    ),
    "maze": (
        lambda: MazeText("random:12:7x7"), ("move down", "move up", "move left"), "player",
        "Goal 2 down, 4 right: 6 steps. Bumped 1 times. Came back 1 times. Worth -10.", -10.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("game", COMPACT)
def test_compact_sentences_of_other_games(game):
    make, moves, player, text, worth = COMPACT[game]
    env = make()
    history = [env.observation]
    for move in moves:
        env.step(move)
        history += [move, env.observation]
    if game != "maze":
        history = history[-1:]
    grades = grade_faithfulness([evaluation(history, text, worth, player=player)], game)
    assert grades.true.hits == grades.true.count >= 4, grades.by_kind
    assert grades.unchecked.hits == 0
    # Any other count is a lie: raise each in turn.
    for found in re.finditer(r"\d+(?![^.]*Worth)(?=[^W]*Worth)", text):
        lie = f"{text[: found.start()]}{int(found[0]) + 1}{text[found.end() :]}"
        false = grade_faithfulness([evaluation(history, lie, worth, player=player)], game)
        assert false.true.hits < false.true.count, lie


def test_games_are_counted_where_they_are_known():
    env = TicTacToe()
    games = [LookAhead((), ("1",), (r,), "over") for r in (1.0, 1.0, 1.0, 0.0, -1.0)]
    said = "Of 5 games won 3, drew 1, lost 1. Worth 0.40."
    assert grade_faithfulness(
        [evaluation([env.observation], said, 0.4, player="O", games=games)], "tic_tac_toe"
    ).true == Rate(5, 5)
    lie = "Of 5 games won 4, drew 0, lost 1. Worth 0.60."
    grades = grade_faithfulness([evaluation([env.observation], lie, 0.6, player="O", games=games)], "tic_tac_toe")
    assert dict(grades.by_kind) == {"games": Rate(2, 4), "worth": Rate(0, 1)}
    unknown = grade_faithfulness([evaluation([env.observation], said, 0.4, player="O")], "tic_tac_toe")
    assert unknown.true.count == 0
    assert unknown.unchecked.share == 1.0


def test_prose_is_unchecked_and_never_faithful():
    env = TicTacToe()
    prose = "A difficult position. The future is bright for whoever thinks ahead."
    grades = grade_faithfulness([evaluation([env.observation], prose, 0.5, player="O")], "tic_tac_toe")
    assert (grades.true, grades.whole, grades.unchecked) == (Rate(0, 0), Rate(0, 0), Rate(2, 2))
    other = grade_faithfulness([evaluation(["a board\n"], "O holds the centre.", 0.5)], "chess")
    assert (other.true.count, other.unchecked) == (0, Rate(1, 1))
    assert set(CHECKS) == set(ENVS)


def test_sentences_end_at_stops_that_are_no_decimal_points():
    assert sentences("Worth 0.25. X wins!\nO loses? ") == ["Worth 0.25", "X wins", "O loses"]
    assert check_text("", ()).sentences == 0


@pytest.mark.parametrize("game", ["tic_tac_toe", "breakthrough", "connect_four", "frozen_lake"])
def test_long_hostile_text_is_read_in_linear_time(game):
    env = {"tic_tac_toe": TicTacToe, "breakthrough": Breakthrough, "connect_four": ConnectFour}.get(game)
    env = env() if env else FrozenLakeText("random:605")
    player = getattr(env, "seats", ("player",))[0]
    rng = np.random.default_rng(0)
    words = [
        player,
        "white",
        "O",
        "x",
        "has",
        "can",
        "capturing",
        "on",
        "a1",
        "1,",
        "2",
        "and",
        "columns",
        "goal is",
        "one",
    ]
    text = " ".join(str(word) for word in rng.choice(words, 4000))
    grades = grade_faithfulness([evaluation([env.observation], text, 0.0, player=player)], game)
    assert grades.evaluations == 1


@pytest.mark.parametrize("game", sorted(GAMES))
def test_what_the_corpus_says_of_any_position_or_move_is_faithful(game):
    """The corpus reads boards from prompts and the checker asks the rules: two ways to the same facts."""
    prompt, rng, said = load("compact", game)["value"], np.random.default_rng(0), []
    for _ in range(12):
        env = ENVS_OF[game]()
        env.reset(rng)
        while env.legal_actions:
            player = str(rng.choice(getattr(env, "seats", ("player",))))
            for action in (None, str(rng.choice(env.legal_actions))):
                shown = env.observation if action is None else f"{env.observation}{action}\n"
                history = shown.rstrip("\n")
                if "$player" in prompt.user:
                    text = GAMES[game].judge(prompt.render(history=history, player=player))
                else:
                    text = GAMES[game].judge(prompt.render(history=history))
                number = float(text.rpartition("Worth ")[2].rstrip("."))
                said.append(evaluation([env.observation], text, number, player=player, action=action))
            env.step(str(rng.choice(env.legal_actions)))
    grades = grade_faithfulness(said, game)
    assert grades.true.hits == grades.true.count >= 3 * len(said)
    assert grades.omitted == grades.partly == 0
    # What a move that ends the game leaves open is not asked.
    assert grades.unchecked.share < 0.1
