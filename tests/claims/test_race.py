"""A race trains each contestant alike and once; probes measure what a model of known attention must show."""

import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from nlrl.claims import race as module
from nlrl.claims.binarised import binarised, packed_bytes
from nlrl.claims.contestants import CONTESTANTS, Contestant
from nlrl.claims.needles import log
from nlrl.claims.probes import Probe, looked_at, probe, runs
from nlrl.claims.race import Race, finishes, last_model, race, steps_to
from nlrl.claims.report import table
from nlrl.claims.streams import Needles, Reader
from nlrl.pretrain.models import model_of
from nlrl.pretrain.tokenizer import train_tokenizer

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True,
}  # fmt: skip
DIFF = {
    "model_type": "diff_transformer", "variant": "v1", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(0)
    return train_tokenizer([log(rng, 2000, 4, len).text for _ in range(20)], 400)


def rules(tokenizer, folder):
    stream = partial(_stream, tokenizer)
    pupil = Contestant("bimamba", LLAMA, teacher="mamba2")
    return Race(
        (Contestant("mamba2", LLAMA), pupil), stream, tokenizer, folder, (2, 4), (1e-4, 1e-2), 1, 400, measured=1
    )


def _stream(tokenizer, seed):
    return Needles(tokenizer, seed, 2, 120, (2,))


def test_a_race_is_run_once_and_its_table_made_from_the_record(tokenizer, tmp_path, monkeypatch):
    asked = rules(tokenizer, tmp_path / "120-0")
    done = list(race(asked))
    assert [(one.contestant, one.steps) for one in done] == [
        (name, steps) for name in ("mamba2", "bimamba") for steps in (2, 2, 4)
    ]
    assert all(one.rate == 1e-2 for one in done if one.steps == 4)  # the greater rate gets further in two steps
    assert finishes(asked.folder) == done
    lines = table("bimamba", [asked.folder]).splitlines()
    assert lines[4].startswith(f"| mamba2 | {done[0].parameters:,} | {done[1].loss:.4f} | {done[2].loss:.4f} | 1.00 |")

    monkeypatch.setattr(module, "train", None)
    assert list(race(asked)) == done
    assert last_model(asked, "mamba2").config.hidden_size == 32


def test_a_pupil_learns_from_its_teacher_alone(tokenizer, tmp_path, monkeypatch):
    asked = rules(tokenizer, tmp_path)
    seen = []
    monkeypatch.setattr(module, "distillation_loss", lambda own, taught, _: seen.append(taught) or own.float().mean())
    list(race(replace(asked, budgets=(1,), rates=(1e-3,))))
    (logits,) = seen
    ids = next(iter(asked.stream(0)))["input_ids"]
    assert torch.equal(logits, last_model(asked, "mamba2")(input_ids=ids).logits)


def test_steps_to_a_loss_are_read_between_budgets():
    curve = [(100, 2.0), (400, 1.0)]
    assert steps_to(1.5, curve) == pytest.approx(200)  # half way of the loss, half way of the logarithm
    assert steps_to(1.0, curve) == pytest.approx(400)
    assert steps_to(0.9, curve) == float("inf")
    assert steps_to(3.0, curve) == 100


@pytest.mark.parametrize("shape", [LLAMA, DIFF], ids=["plain heads", "differential heads"])
def test_where_all_keys_look_alike_a_remark_gets_what_its_length_is_of_the_text(shape, tokenizer):
    torch.manual_seed(0)
    model = model_of(shape, 400, tokenizer).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter.zero_()
    reader, one = Reader(tokenizer), log(random.Random(0), 200, 2, Reader(tokenizer).count)
    ids, answers = reader.row(one)
    spans = reader.remarks(one)
    alike = [(s.stop - s.start) / run[0] for s, run in zip(spans, runs(answers), strict=True)]
    before = model(input_ids=torch.tensor([ids])).logits
    assert looked_at(model, reader, one, "cpu") == pytest.approx(sum(alike) / len(alike), rel=1e-5)
    assert torch.equal(model(input_ids=torch.tensor([ids])).logits, before)  # nothing is left of the looking


def test_a_model_that_knows_nothing_answers_nothing_and_one_without_attention_looks_nowhere(tokenizer):
    torch.manual_seed(0)
    for shape in (LLAMA, CONTESTANTS["mamba2"].shape):
        model = model_of({**shape, "num_hidden_layers": 1}, 400, tokenizer).eval()
        found = probe(model, Reader(tokenizer), Probe(150, 2, count=2), "cpu")
        assert found.right < 0.5
        assert found.largest > 1
        assert (found.looked is None) == (shape is not LLAMA)


def test_a_mamba2_made_binary_is_the_one_with_signs_scales_and_shifts_in_its_place(tokenizer):
    torch.manual_seed(0)
    full = model_of(CONTESTANTS["mamba2"].shape, 400, tokenizer).eval()
    ids = torch.randint(0, 400, (2, 20))
    binary = binarised(full, tokenizer)
    with torch.no_grad():
        for name, parameter in full.named_parameters():
            if name.endswith(("in_proj.weight", "out_proj.weight")):
                shift = parameter.mean(0)
                left = parameter - shift
                parameter.copy_(left.sign() * left.abs().mean(0) + shift)
        expected, found = (model(input_ids=ids, use_cache=False).logits for model in (full, binary))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert packed_bytes(binary) < packed_bytes(full) / 5
