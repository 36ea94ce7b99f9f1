"""A pretraining in several sittings: nothing of the model, its moments or its schedule is lost between them."""

from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from nlrl.errors import ConfigError
from nlrl.pretrain import data, snapshot, train
from nlrl.pretrain.corpus import examples
from nlrl.pretrain.tokenizer import train_tokenizer
from nlrl.pretrain.train import PretrainConfig, pretrain

TINY = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    tokenizer = train_tokenizer((f"{e.prompt}\n{e.reply}" for e in islice(examples(seed=1), 200)), 400)
    monkeypatch.setitem(train.SHAPES, "transformer", TINY)
    monkeypatch.setattr(train, "tokenizer_for", lambda config: tokenizer)
    monkeypatch.setattr(train, "HELD_OUT", 32)
    monkeypatch.setattr(data, "SORTED", 128)


def _config(**changes):
    base = {"backbones": ("transformer",), "steps": 5, "batch_tokens": 4096, "workers": 0, "warmup": 2}
    return PretrainConfig(**base | changes)


def test_a_paused_training_goes_on_from_its_weights_moments_and_step(tmp_path):
    assert pretrain(_config(pause_seconds=0.0), tmp_path) == []
    place = tmp_path / snapshot.FOLDER
    weights = load_file(place / "model.safetensors")
    assert load_file(place / "optimizer.safetensors")["model.norm.weight.step"].item() == 1

    learner = train._learner("transformer", _config(), train.tokenizer_for(_config()), "cpu")
    stand = snapshot.load(tmp_path, learner.model, learner.optimizer, train._identity(_config()))
    assert stand is not None
    assert (stand.step, stand.sittings, stand.warm_from) == (1, 1, 0)
    assert all(torch.equal(weights[name], p) for name, p in learner.model.named_parameters())
    moments = {name: learner.optimizer.state[p] for name, p in learner.model.named_parameters()}
    assert all(state["step"] == 1 and state["exp_avg_sq"].abs().sum() > 0 for state in moments.values())

    (card,) = pretrain(_config(), tmp_path)
    assert card["steps"] == 5
    assert not place.exists()
    assert (tmp_path / "model.safetensors").is_file()


def test_a_sitting_that_was_saved_and_loaded_takes_the_same_steps_as_one_that_was_not(tmp_path):
    batches = [{k: torch.randint(5, 300, (4, 32), generator=torch.Generator().manual_seed(i)) for k in ("input_ids",)}
               | {"weights": torch.ones(4, 32)} for i in range(4)]  # fmt: skip
    config = _config(steps=4)
    whole = train._learner("transformer", config, train.tokenizer_for(config), "cpu")
    list(train.train([whole], batches, config, "cpu"))
    first = train._learner("transformer", config, train.tokenizer_for(config), "cpu")
    (stop,) = train.train([first], batches[:2], _config(steps=4, pause_seconds=0.0), "cpu")
    assert (stop.step, stop.snapshot) == (1, True)
    snapshot.save(tmp_path, first.model, first.optimizer, snapshot.Stand(stop.step, stop.tokens, 0.0), {})
    second = train._learner("transformer", config, train.tokenizer_for(config), "cpu")
    stand = snapshot.load(tmp_path, second.model, second.optimizer, {})
    assert stand is not None
    list(train.train([second], batches[1:], config, "cpu", stand))
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_without_moments_the_warm_up_begins_again(tmp_path):
    pretrain(_config(pause_seconds=0.0), tmp_path)
    (tmp_path / snapshot.FOLDER / "optimizer.safetensors").unlink()
    learner = train._learner("transformer", _config(), train.tokenizer_for(_config()), "cpu")
    stand = snapshot.load(tmp_path, learner.model, learner.optimizer, train._identity(_config()))
    assert stand is not None
    assert stand.warm_from == 1
    assert not learner.optimizer.state


def test_the_snapshot_of_another_training_is_refused(tmp_path):
    pretrain(_config(pause_seconds=0.0), tmp_path)
    with pytest.raises(ConfigError, match="another peak_lr, seed"):
        pretrain(_config(seed=7, peak_lr=1e-4), tmp_path)
