"""Trainings of small random models of every family: what is learned, what is kept, what repeats."""

import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from safetensors.torch import load_file
from tiny_students import FAMILIES, in_bfloat16, make_student
from transformers import AutoModelForCausalLM

from nlrl.distill.dataset import TokenPair, pad
from nlrl.distill.knobs import Job, Stopped, TrainingKnobs
from nlrl.distill.student import check_trainable
from nlrl.distill.training import ReplyLoss, passes, train
from nlrl.distill.weights import STATE
from nlrl.errors import ConfigError
from nlrl_backbones.ngpt.train import normalize_matrices

KNOBS = TrainingKnobs(learning_rate=3e-3, epochs=2, batch=6, threads=1, device="cpu")


def drawn_pairs(count: int, seed: int = 0) -> tuple[TokenPair, ...]:
    rng = random.Random(seed)

    def ids(least, most):
        return tuple(rng.randrange(3, 300) for _ in range(rng.randint(least, most)))

    return tuple(TokenPair(ids(6, 20), (*ids(2, 6), 2)) for _ in range(count))


PAIRS = drawn_pairs(12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("students")
    return {family: make_student(family, root / family) for family in FAMILIES}


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def alone(model, pairs) -> float:
    """The mean loss a reply token of each sequence by itself, without padding."""
    total, count = 0.0, 0
    for pair in pairs:
        with torch.no_grad():
            logits_TV = model(torch.tensor([(*pair.prompt, *pair.reply)])).logits[0].float()
        rows_TV = logits_TV[len(pair.prompt) - 1 : -1].log_softmax(-1)
        total -= rows_TV[torch.arange(len(pair.reply)), torch.tensor(pair.reply)].sum().item()
        count += len(pair.reply)
    return total / count


@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_learns_repeats_and_writes_a_model_that_loads(family, folders, tmp_path):
    """The first step's loss is of reply tokens alone, whatever the padding and though its passes hold unequal rows."""
    knobs = replace(KNOBS, batch=12, tokens_per_pass=200)
    assert passes(PAIRS, knobs, 1)[1] > 1
    job = Job(folders[family], None, PAIRS, knobs, 5)
    outcome = train(job, tmp_path / "one")
    before, after = loaded(folders[family]), loaded(tmp_path / "one")
    if family == "ngpt":
        normalize_matrices(before)
    losses = alone(before, PAIRS), alone(after, PAIRS)
    assert outcome.losses_T[0] == pytest.approx(losses[0], rel=1e-5)
    assert losses[1] < outcome.losses_T[1] < losses[0] - 0.02
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "one" / name).read_bytes() == (folders[family] / name).read_bytes()
    assert outcome.losses_T == train(job, tmp_path / "two").losses_T
    same = load_file(tmp_path / "one" / "model.safetensors"), load_file(tmp_path / "two" / "model.safetensors")
    assert same[0].keys() == same[1].keys() == load_file(folders[family] / "model.safetensors").keys()
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])


def test_two_trainings_are_one_in_two_parts_when_the_optimizer_goes_on(folders, tmp_path):
    """One step on each of two sets in a row equals two steps of one process that was never stopped."""
    base = folders["transformer"]
    first, second = PAIRS[:6], PAIRS[6:]
    knobs = replace(KNOBS, epochs=1)
    train(Job(base, None, first, knobs, 0), tmp_path / "first")
    train(Job(base, tmp_path / "first" / STATE, second, knobs, 0), tmp_path / "second")
    model = loaded(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=knobs.learning_rate, weight_decay=0.0)
    for part in (first, second):
        batch = pad(part, 0)
        ReplyLoss()(model(batch["input_ids"]), batch["labels"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), knobs.clip)
        optimizer.step()
        optimizer.zero_grad()
    found = load_file(tmp_path / "second" / "model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), atol=3e-5, rtol=0)
    train(Job(base, tmp_path / "first" / STATE, second, replace(knobs, carry=False), 0), tmp_path / "anew")
    assert not torch.equal(
        load_file(tmp_path / "anew" / "model.safetensors")["model.norm.weight"], found["model.norm.weight"]
    )
    assert not (tmp_path / "anew" / STATE / "optimizer.safetensors").exists()


def test_steps_smaller_than_bfloat16_add_up(tmp_path):
    """The served weights are rounded, what is trained is not; and a tensor keeps the dtype that it had."""
    base = in_bfloat16(make_student("diff", tmp_path / "base"), kept=("lambda",))
    knobs = replace(KNOBS, learning_rate=1e-5, epochs=2, batch=12)
    train(Job(base, None, PAIRS, knobs, 0), tmp_path / "0")
    for part in (1, 2):
        train(Job(base, tmp_path / str(part - 1) / STATE, PAIRS, knobs, part), tmp_path / str(part))
    out = tmp_path / "2"
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    kept = load_file(out / STATE / "parameters.safetensors")
    moved = (kept["model.embed_tokens.weight"] - before["model.embed_tokens.weight"].float()).abs().max().item()
    assert moved == pytest.approx(6e-5, rel=0.2)
    assert any(t.dtype == torch.float32 and "lambda" in n for n, t in after.items())


@pytest.mark.parametrize(
    "family", ["hymba", *(pytest.param(name, marks=pytest.mark.full) for name in ("ngpt", "transformer"))]
)
def test_merged_adapters_are_the_trained_model(family, folders, tmp_path):
    """What the last step's model would answer is what the written folder answers; a second training goes on from it."""
    knobs = replace(KNOBS, lora_rank=4)
    train(Job(folders[family], None, PAIRS, knobs, 1), tmp_path / "one")
    kept = load_file(tmp_path / "one" / STATE / "parameters.safetensors")
    assert kept
    assert all("lora_" in name for name in kept)
    merged = alone(loaded(tmp_path / "one"), PAIRS)
    assert merged < alone(loaded(folders[family]), PAIRS) - 0.02
    on = train(
        Job(folders[family], tmp_path / "one" / STATE, PAIRS, replace(knobs, epochs=1, batch=12), 2), tmp_path / "two"
    )
    assert on.losses_T[0] == pytest.approx(merged, rel=1e-4)


def test_what_cannot_be_trained_so_is_one_sentence(folders, tmp_path):
    lora = replace(KNOBS, lora_rank=2)
    with pytest.raises(ConfigError, match=r"Bi-Mamba's adapters cannot be merged"):
        check_trainable(folders["bimamba"], lora)
    with pytest.raises(ConfigError, match="nGPT normalises whole matrices"):
        check_trainable(folders["ngpt"], replace(KNOBS, sharded=True, carry=False))
    (tmp_path / "config.json").write_text('{"model_type": "bimamba", "weight_format": "packed"}')
    with pytest.raises(ConfigError, match="are packed bits; train the folder of the latent weights"):
        check_trainable(tmp_path, KNOBS)
    train(Job(folders["transformer"], None, PAIRS, replace(KNOBS, epochs=1), 0), tmp_path / "full")
    with pytest.raises(ConfigError, match="is of other parameters; go on with the lora_rank it was begun with"):
        train(Job(folders["transformer"], tmp_path / "full" / STATE, PAIRS, lora, 0), tmp_path / "c")
    with pytest.raises(ConfigError, match="epochs of a training is 1 or more, not 0"):
        replace(KNOBS, epochs=0)


def test_ngpt_stays_on_the_sphere(folders, tmp_path):
    train(Job(folders["ngpt"], None, PAIRS, KNOBS, 0), tmp_path / "out")
    model = loaded(tmp_path / "out")
    lengths = model.transformer.wte.weight.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)
    assert not torch.equal(model.transformer.wte.weight, loaded(folders["ngpt"]).transformer.wte.weight)


@pytest.mark.parametrize("soft", ["teacher", "both"])
def test_a_teachers_distribution_is_learned(soft, folders, tmp_path):
    """The student's loss against it falls, and begins at the cross entropy between the two."""
    teacher = make_student("diff", tmp_path / "teacher", seed=3)
    knobs = replace(KNOBS, teacher=teacher, soft=soft, epochs=4, batch=12)
    outcome = train(Job(folders["transformer"], None, PAIRS, knobs, 0), tmp_path / "out")
    batch, (student, other) = pad(PAIRS, 0), (loaded(folders["transformer"]), loaded(teacher))
    with torch.no_grad():
        counted = batch["labels"][:, 1:] != -100
        mine, theirs = (m(batch["input_ids"]).logits[:, :-1][counted].log_softmax(-1) for m in (student, other))
    cross = -(theirs.exp() * mine).sum(-1).mean().item()
    hard = alone(student, PAIRS)
    assert outcome.losses_T[0] == pytest.approx(cross if soft == "teacher" else (cross + hard) / 2, rel=1e-4)
    assert outcome.losses_T[-1] < outcome.losses_T[0] - 0.1


def test_a_training_that_is_told_to_stop_leaves_nothing_and_draws_nothing(folders, tmp_path):
    stop = threading.Event()
    stop.set()
    torch.manual_seed(11)
    before, drawn = torch.get_rng_state(), random.getstate()
    with pytest.raises(Stopped):
        train(Job(folders["transformer"], None, PAIRS, KNOBS, 0), tmp_path / "out", stop)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == drawn


def test_a_large_vocabulary_makes_passes_smaller_unless_they_are_set():
    pairs = [TokenPair((1,) * 90, (2,) * 10)] * 100
    assert passes(pairs, replace(KNOBS, batch=64, tokens_per_pass=None), 1, 640) == (64, 1)
    rows, steps = passes(pairs, replace(KNOBS, batch=64, tokens_per_pass=None), 1, 131_072)
    assert rows * 100 * 131_072 <= 2**27
    assert rows * steps >= 64
    assert passes(pairs, replace(KNOBS, batch=64, tokens_per_pass=6400), 1, 131_072) == (64, 1)


def test_rows_and_passes_keep_the_batch_and_the_bound():
    pairs = [TokenPair((1,) * 90, (2,) * 10)] * 100
    for tokens, world in ((100, 1), (1000, 1), (6400, 1), (1000, 2), (1000, 4)):
        rows, steps = passes(pairs, replace(KNOBS, batch=64, tokens_per_pass=tokens), world)
        assert rows * 100 <= tokens
        assert 64 <= rows * steps * world < 64 + steps * world
