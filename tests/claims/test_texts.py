"""Logs with needles: the games in them are games, and what is asked is what was said."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import nlrl_backbones  # noqa: F401  registers the architectures
from nlrl.claims.contestants import CLAIMS, CONTESTANTS, contestants_of
from nlrl.claims.needles import CELLS, NAMES, game, log, logs, named, reordered
from nlrl.claims.streams import Needles, Packed, Reader
from nlrl.errors import UnknownNameError
from nlrl.pretrain.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(0)
    return train_tokenizer([log(rng, 2000, 4, len).text for _ in range(20)], 400)


def test_every_contestant_is_of_one_size():
    sizes = {}
    for name, one in CONTESTANTS.items():
        keys = dict(one.shape)
        config = AutoConfig.for_model(keys.pop("model_type"), **keys, vocab_size=736)
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    middle = sorted(sizes.values())[len(sizes) // 2]
    assert all(abs(size / middle - 1) < 0.03 for size in sizes.values()), sizes


def test_teachers_stand_before_their_pupils():
    for claim, names in CLAIMS.items():
        for place, one in enumerate(contestants_of(claim)):
            assert not one.teacher or one.teacher in names[:place]
    with pytest.raises(UnknownNameError, match="claim"):
        contestants_of("gpt")


def test_games_are_legal_and_end_as_they_say():
    lines = ["abc"[column] + str(row) for row in (1, 2, 3) for column in range(3)]
    wins = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
    assert tuple(lines) == CELLS
    rng, ends = random.Random(3), set()
    for _ in range(300):
        moves, _, end = game(rng).rstrip(".\n").partition(". ")
        cells = [CELLS.index(move) for move in moves.split()]
        assert len(set(cells)) == len(cells)
        won = [
            any(set(win) <= set(cells[seat:until:2]) for win in wins)
            for until in range(1, len(cells) + 1)
            for seat in [(until - 1) % 2]
        ]
        assert not any(won[:-1])
        assert end == (f"{'xo'[(len(cells) - 1) % 2]} won" if won[-1] else "Drawn")
        assert won[-1] or len(cells) == 9
        ends.add(end)
    assert ends == {"x won", "o won", "Drawn"}


def test_answers_are_what_the_remarks_say_wherever_they_stand(tokenizer):
    reader, rng = Reader(tokenizer), random.Random(1)
    for one, _ in zip(logs(5, 300, (2, 8), reader.count), range(20), strict=False):
        for shown in (one, reordered(one, rng)):
            ids, answers = reader.row(shown)
            assert len(ids) == len(answers) <= 300
            told = {named(line): line for line in shown.text.splitlines() if named(line)}
            assert len(told) == len(shown.asked) in (2, 8)
            for (question, answer), span in zip(shown.asked, reader.remarks(shown), strict=True):
                assert tokenizer.decode(ids[span]).strip() == told[named(question)]
                assert told[named(question)] == f"The key of {named(question)} is {answer.strip()}."
        assert sorted(one.text.splitlines()) == sorted(shown.text.splitlines())


def test_needles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit into 50"):
        log(random.Random(0), 50, 8, len)
    assert len(set(NAMES)) == len(NAMES) >= 8


def test_batches_are_of_one_shape_and_differ_by_seed(tokenizer):
    for stream in (Needles(tokenizer, 1, 3, 200, (2,)), Packed(tokenizer, 1, 3, 200, ("maze",))):
        first, second = (batch["input_ids"] for batch, _ in zip(stream, range(2), strict=False))
        assert first.shape == second.shape == (3, 200)
        assert not torch.equal(first, second)
        again = next(iter(stream))
        assert torch.equal(again["input_ids"], first)
        stream.seed = 2
        assert not torch.equal(next(iter(stream))["input_ids"], first)
    batch = next(iter(Needles(tokenizer, 1, 3, 200, (2,))))
    assert torch.equal(batch["weights"] == 1, batch["answers"])
    assert batch["answers"].any(1).all()
