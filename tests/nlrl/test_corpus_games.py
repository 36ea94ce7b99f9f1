"""The corpus of all games: replies follow from the prompt's text, moves are uniform, texts are the operators' own."""

import ast
import asyncio
import hashlib
import random
import re
import subprocess
import sys
from collections import defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seen import seen_breakthrough, seen_connect_four, seen_frozen_lake, seen_tic_tac_toe

from nlrl import registry
from nlrl.ask import Asker
from nlrl.engine.base import Request
from nlrl.engine.scripted import ScriptedEngine
from nlrl.errors import UnknownNameError
from nlrl.operators.masked import Mask, Models, improve_masked
from nlrl.parse import parse_reply
from nlrl.pretrain import corpus
from nlrl.pretrain.corpus import GAMES, SHARES, choices, examples
from nlrl.pretrain.corpus.frozen_lake import begin
from nlrl.pretrain.corpus.speaker import answer, listed_moves
from nlrl.pretrain.corpus.writer import Writer, play
from nlrl.pretrain.data import encode, pad
from nlrl.pretrain.grade import grade
from nlrl.pretrain.models import new_model
from nlrl.pretrain.tokenizer import ALWAYS, train_tokenizer
from nlrl.pretrain.train import PretrainConfig
from nlrl.types import CallId, Situation
from nlrl.values.direct import value_question
from nlrl.values.games import FreshGames, fresh_games
from nlrl.values.look_ahead import look_ahead, uniform_random
from nlrl.values.monte_carlo import language_monte_carlo
from nlrl.values.td_lambda import Trace, language_td_lambda
from nlrl_envs.base import seat_of, seats_of
from nlrl_envs.frozen_lake import POOL, maps_of
from nlrl_envs.tic_tac_toe import TicTacToe
from nlrl_prompts import constraint_pattern, load

SEEN = {
    "tic_tac_toe": seen_tic_tac_toe,
    "connect_four": seen_connect_four,
    "breakthrough": seen_breakthrough,
    "frozen_lake": seen_frozen_lake,
}


@pytest.fixture(scope="module")
def sample():
    return list(islice(examples(seed=5, games=tuple(SHARES)), 6_000))


@pytest.fixture(scope="module")
def tokenizer(sample):
    return train_tokenizer((f"{e.prompt}\n{e.reply}" for e in sample), 768, lexicon=True)


def test_with_the_maze_alone_the_corpus_is_what_the_boxed_model_was_trained_on():
    """The hash was taken before there were other games."""
    read = hashlib.sha256()
    for example in islice(examples(seed=0), 3000):
        read.update(repr((example.skill, example.prompt, example.reply)).encode())
    assert read.hexdigest() == "fa179d839d8d06133ff02a21f6b270da45b17e6638b7789757aa80cb23636806"


def test_the_same_seed_gives_the_same_corpus(sample):
    assert list(islice(examples(seed=5, games=tuple(SHARES)), 300)) == sample[:300]
    assert list(islice(examples(seed=6, games=tuple(SHARES)), 300)) != sample[:300]
    assert {(e.game, e.skill) for e in sample} == {(game, role) for game in SHARES for role in SHARES[game]}


def test_a_game_without_texts_is_named():
    with pytest.raises(UnknownNameError, match="chess"):
        examples(0, ("tic_tac_toe", "chess"))


def test_every_reply_has_the_form_that_a_run_checks_and_an_engine_allows(sample):
    for example in sample:
        form = load("compact", example.game)[example.skill].reply
        assert form is not None
        moves = tuple(re.findall(r"(?:after|After|yet:) (.+?)(?: worth.*)?\.$", example.reply))
        assert parse_reply(example.reply, form, moves)
        assert re.fullmatch(constraint_pattern(form, moves), example.reply)


@pytest.mark.parametrize("game", GAMES)
def test_moves_are_uniform_over_the_legal_ones(game):
    writer, places, firsts, expected = Writer(GAMES[game], 3), [], 0, 0.0
    for _ in range(1500):
        writer.pool.rotate()
        example = writer.example("policy")
        moves = list(GAMES[game].moves or listed_moves(example.prompt))
        assert len(moves) == choices(example)
        if len(moves) == 1:
            continue
        place = moves.index(example.reply.removeprefix("No view yet: ").removesuffix("."))
        places.append((place + 0.5) / len(moves) - 0.5)
        firsts, expected = firsts + (place == 0), expected + 1 / len(moves)
    assert abs(sum(places)) < 4 * (len(places) / 12) ** 0.5
    assert abs(firsts - expected) < 4 * expected**0.5


@pytest.mark.parametrize("game", GAMES)
def test_a_value_is_what_can_be_counted_in_the_game(game):
    """The corpus reads the text; `seen` counts in the game itself, which the writer knows nothing of."""
    writer = Writer(GAMES[game], 4)
    for _ in range(150):
        played, turn = writer.turn()
        situation = writer.situation(played, turn)
        said = GAMES[game].judge(writer.text(value_question(situation, None)))
        assert said == SEEN[game](played.envs[turn])
        if len(seats_of(played.envs[0])) == 1 or turn + 1 == played.turns:
            continue
        after: Any = played.envs[turn + 1].clone()
        # The place after the move, in the view of the one who made it.
        after._position = after.state._replace(seat=seat_of(played.envs[turn]))
        said = GAMES[game].judge(writer.text(value_question(situation, played.items[2 * turn + 1])))
        assert said == SEEN[game](after)


def test_values_of_moves_on_a_lake_are_those_of_the_square_they_point_at():
    prompt = "Judge this place: ...\nP _ O _\nO _ _ _\n_ _ O _\n_ G O O\nRight"
    assert GAMES["frozen_lake"].judge(prompt) == "Goal 3 down, 0 right: 3 steps. Holes beside 1. Worth 0.60."
    assert "Holes beside 1. Worth 0.50." in GAMES["frozen_lake"].judge(prompt.replace("Right", "Up"))


def test_numbers_do_not_follow_a_solver():
    """Positions of which the corpus says the very same are won, drawn and lost: no exact value is behind its words."""
    from nlrl_envs.tic_tac_toe_solver import TicTacToeSolver

    writer, exact = Writer(GAMES["tic_tac_toe"], 5), defaultdict(set)
    solver = TicTacToeSolver(TicTacToe())
    for _ in range(1200):
        writer.pool.append(play(GAMES["tic_tac_toe"], writer.rng))
        played, turn = writer.turn()
        env: Any = played.envs[turn]
        reply = GAMES["tic_tac_toe"].judge(writer.text(value_question(writer.situation(played, turn), None)))
        exact[reply].add(solver.verdict(env.state).value * (1 - 2 * env.seat))
    assert sum(len(values) > 1 for values in exact.values()) >= 12
    assert len(exact["Wins at none. Loses at 7. Centre empty. Worth -0.30."]) == 3


def test_replies_are_functions_of_the_prompt_alone(sample):
    other = random.Random(99)
    for example in sample[:3000]:
        if example.game != "maze" and example.skill != "policy":
            assert answer(GAMES[example.game], example.skill, example.prompt, other) == example.reply


def test_no_module_of_the_corpus_knows_a_solver():
    for path in Path(corpus.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "solver" not in ast.unparse(node), path
                assert "opponents" not in ast.unparse(node), path


def test_the_training_needs_no_pydantic_numba_vllm_or_solver():
    """A machine with a GPU and little else can train."""
    barred = ["pydantic", "numba", "vllm", *(f"nlrl_envs.{game}_solver" for game in SHARES)]
    code = (
        f"import sys\nfor name in {barred}: sys.modules[name] = None\n"
        "from itertools import islice\nimport nlrl.pretrain.train\nfrom nlrl.pretrain.corpus import SHARES, examples\n"
        "print(len(list(islice(examples(0, tuple(SHARES)), 50))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("50", 0), done.stderr


def test_maps_of_runs_do_not_occur():
    rng = random.Random(0)
    held_out = {*maps_of("4x4"), *maps_of("8x8"), *(maps_of(f"random:{seed}")[0] for seed in range(0, POOL, 8))}
    assert not held_out & {begin(rng).rows for _ in range(300)}


HAND = {
    ("tic_tac_toe", "aggregate"): (
        "Average these looks, reward and worth together.\n1. 5, 3; reward 1. The game is over. Worth 0.00.\n"
        "2. 5, 1; reward 0. Wins at 3. Loses at none. Centre own. Worth 0.40.\n"
        "3. 5, 2; reward -1. The game is over. Worth 0.00.\n4. 5, 4; reward 0. By weight. Worth -0.10.",
        "Of 4 looks won 1, lost 1. Worth 0.07.",
    ),
    ("connect_four", "monte_carlo"): (
        "Average these games.\n1. Reward 1.\n2. Reward 0.\n3. Reward 1.",
        "Of 3 games won 2, drew 1, lost 0. Worth 0.67.",
    ),
    ("breakthrough", "monte_carlo"): (
        "Average these games.\n1. white wins: its pawn has reached b5. Reward -1.",
        "Of 1 games won 0, lost 1. Worth -1.00.",
    ),
    ("frozen_lake", "monte_carlo"): (
        "Average these games.\n1. The goal is reached. Reward 1.\n2. The player fell into a hole. Reward 0.",
        "Of 2 games 1 reached the goal. Worth 0.50.",
    ),
    ("frozen_lake", "combine"): ("Add the reward.\nUp; reward 1. The game is over. Worth 0.00.", "1.00."),
    ("breakthrough", "blend"): (
        "Add these up by their weights.\nWeight 0.25. Of 2 looks won 1, lost 0. Worth 0.40.\n"
        "Weight 0.75. Of 2 looks won 0, lost 1. Worth -0.60.",
        "By weight. Worth -0.35.",
    ),
    ("breakthrough", "improve"): (
        "Choose the move of most worth.\nBy weight. Worth -0.40. After b2c3*.\nBy weight. Worth -0.10. After a2a3.\n"
        "Of 1 games won 0, lost 1. Worth -1.00. After a2b3.\nBy weight. Worth -0.10. After d2d3.",
        "Most worth is -0.10 after a2a3.",
    ),
}


@pytest.mark.parametrize(("game", "role"), HAND)
def test_replies_worked_out_by_hand(game, role):
    prompt, reply = HAND[game, role]
    assert answer(GAMES[game], role, prompt, random.Random(0)).endswith(reply)


ROW = re.compile(r"[-_.bwxoPGOX |\d]+")
CHANGING = re.compile(
    r"-?\d+(\.\d+)?(e-\d+)?|[a-h][1-8]\*?|"
    r"\b(none|own|other|empty|up|down|left|right|Left|Down|Right|Up|black|white|Black|White|[oxOX])\b"
)


def skeletons(prompt: str) -> set[str]:
    """A prompt's lines without what changes from one to the next: rows of boards, numbers, moves, seats, facts."""
    lines = ("#" if ROW.fullmatch(line) else CHANGING.sub("#", line) for line in prompt.split("\n"))
    return {re.sub(r"#(, #|#)*", "#", line) for line in lines}


async def use_all(env, ask):
    """Every operator in the state that a game is in, all roles played by the corpus' own speaker."""
    rng = np.random.default_rng(0)
    player = seats_of(env)[seat_of(env)]
    situation = Situation((env.observation,), CallId(0, 0, "policy"), env.legal_actions, player)
    groups, _ = await fresh_games([(env, situation)], FreshGames(5, uniform_random), rng)
    values = await language_monte_carlo(groups, ask=ask)
    failures = [*values.failures]
    for combine in ("split", "fused"):
        looks_A_K, _ = await look_ahead(
            env, situation.history, situation.call, variations=4, steps=2, rollout=uniform_random, rng=rng
        )
        estimate = await language_td_lambda(
            looks_A_K, situation.history, situation.call, trace=Trace(0.5, combine), ask=ask
        )
        failures += estimate.failures
    improved = await improve_masked([situation], Mask(samples=8), models=Models(ask, ask, ask), rng=rng)
    return [*failures, *improved.failures]


@pytest.mark.parametrize("game", GAMES)
def test_operators_ask_what_the_corpus_teaches(game, sample, tokenizer):
    """The real operators, answered by the corpus' speaker: no bad reply, no line that the corpus does not have."""
    known = defaultdict(set)
    writer = Writer(GAMES[game], 6)
    for example in islice(writer.examples(SHARES[game]), 3000):
        known[example.skill] |= skeletons(example.prompt)
    rng = random.Random(0)
    env = registry.load("env", game)()
    env.reset(np.random.default_rng(1))
    for _ in range(3):
        env.step(env.legal_actions[0])

    def speak(request: Request) -> str:
        assert request.call is not None
        return answer(GAMES[game], request.call.role, request.messages[0].content, rng)

    speaker = ScriptedEngine(speak)
    player = seats_of(env)[seat_of(env)]
    ask = Asker(speaker, load("compact", game), env.task, player, attempts=1, seed=0)
    assert asyncio.run(use_all(env, ask)) == []
    asked = defaultdict(set)
    for request in speaker.requests:
        assert request.call is not None
        asked[request.call.role] |= skeletons(request.messages[0].content)
    assert set(asked) == set(SHARES[game])
    assert {role: lines - known[role] for role, lines in asked.items() if lines - known[role]} == {}


def test_what_must_be_told_apart_is_one_token(tokenizer):
    for text in (*ALWAYS, "X", "O", "Left", "Up", "black", "white", "move left"):
        assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1, text
    board = tokenizer("x.o.x..\n.......\n1234567\nx is to move.\n", add_special_tokens=False)["input_ids"]
    assert len(board) == 7 + 1 + 7 + 1 + 1 + 2
    lake = tokenizer("P _ O _\n_ _ _ G\nUp\n", add_special_tokens=False)["input_ids"]
    assert len(lake) == 4 + 1 + 4 + 1 + 2
    candidate = tokenizer("Of 5 games won 3, drew 1, lost 1. Worth 0.40. After 7.\n", add_special_tokens=False)
    assert len(candidate["input_ids"]) == 13


def test_texts_survive_the_tokenizer_and_are_short(sample, tokenizer):
    for text in [*(f"{e.prompt}\n{e.reply}" for e in sample[:500]), "Schach, 王, \t🎲 0.12345 z9\r\n"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    lengths = [len(ids) for ids, _ in encode(tokenizer, sample)]
    assert max(lengths) < 640
    assert np.mean(lengths) < 110


def test_a_grade_is_given_for_each_game_and_role(sample, tokenizer, monkeypatch):
    from nlrl.pretrain.shapes import SHAPES

    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setitem(SHAPES, "transformer", {**SHAPES["transformer"], **tiny, "num_key_value_heads": 1})
    config = PretrainConfig(("transformer",), games=tuple(SHARES))
    torch.manual_seed(0)
    model = new_model("transformer", config.entries, tokenizer)
    few = sample[:600]
    grades = grade(model, tokenizer, few, "cpu")
    rates, losses = grades["exact_reply_rate"], grades["reply_loss"]
    assert set(rates) == set(losses) == {f"{e.game} {e.skill}" for e in few}
    # Untrained, every token of a reply costs about the logarithm of the vocabulary.
    mean = np.mean([len(ids) - prompt for ids, prompt in encode(tokenizer, few)])
    assert np.mean(list(losses.values())) == pytest.approx(mean * np.log(config.entries), rel=0.25)
    batch = pad(encode(tokenizer, few[:4]))
    assert batch["weights"].max() == 1
    assert all(rate == 0 for name, rate in rates.items() if not name.endswith("policy"))
    assert all(rate > 5 for name, rate in rates.items() if name.endswith("policy"))
