"""What users may choose for a Hymba: layer roles, the window of decoding, adapters; and how checkpoints are read."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nlrl_backbones.common.checkpoint import CheckpointError
from nlrl_backbones.hymba.config import HymbaConfig
from nlrl_backbones.hymba.weights import read_official, to_official

GOLDEN = Path(__file__).parent / "golden_hymba"
GREEDY, META = (0, 2, 4, 6), 5
SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "sliding_window": 3, "num_memory_tokens": 2, "mamba_d_state": 4, "mamba_dt_rank": 3,
    "max_position_embeddings": 64, "orig_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "cases.safetensors")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def golden_model(**changes) -> Any:
    config = HymbaConfig.from_pretrained(GOLDEN)
    for name, value in changes.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_pretrained(GOLDEN, config=config, dtype=torch.float32).eval()


# Layer roles


@pytest.mark.parametrize(
    ("global_layers", "groups"),
    [
        ([], [[0, 1, 2, 3, 4]]),  # one window, one producer
        ([4, 1], [[0, 2], [1, 4]]),  # the first layer has a window; groups skip layers; a global group
        ([0, 1, 2, 3, 4], [[3], [0, 2, 4]]),
        (None, None),
    ],
)
def test_any_layer_may_be_global_and_any_alike_layers_may_share(global_layers, groups):
    torch.manual_seed(0)
    config = HymbaConfig(**SMALL, num_hidden_layers=5, global_attn_idx=global_layers, kv_reuse_group=groups)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    ids = torch.randint(3, 64, (1, 12))
    with torch.no_grad():
        full, cache, steps = model(ids).logits, None, []
        for t in range(12):
            output = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
        moved = model(torch.cat([(ids[:, :1] + 1) % 64, ids[:, 1:]], dim=1)).logits
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-10, rtol=0)
    assert (moved - full).abs()[:, 1:].amax() > 1e-6  # through the scan at least, the first token reaches the last
    assert cache is not None
    assert [layer.keys_BGSD is not None for layer in cache.layers] == [not config.is_consumer(i) for i in range(5)]


def test_layers_of_different_windows_cannot_share():
    with pytest.raises(ValueError, match="all global or all windowed"):
        HymbaConfig(**SMALL, num_hidden_layers=3, global_attn_idx=[2], kv_reuse_group=[[1, 2]])


def test_a_padded_batch_goes_on_past_the_window(golden):
    """Rows padded left, right and in the middle, decoded with a cache from below the window to far beyond it."""
    model, steps = golden_model(), 24
    rows = [golden[f"prompt.{k}.input_ids"] for k in GREEDY]
    width = max(map(len, rows)) + 2
    ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    for k, (row, start) in enumerate(zip(rows, (0, width - len(rows[1]), 3, 1), strict=True)):
        ids[k, start : start + len(row)], mask[k, start : start + len(row)] = row, 1
    last = [int(row.nonzero().max()) for row in mask]
    with torch.no_grad():
        output = model(ids, attention_mask=mask, use_cache=True)
        token_B, found = output.logits[torch.arange(4), last].argmax(-1), []
        for _ in range(steps):
            found.append(token_B)
            mask = torch.cat([mask, torch.ones(4, 1, dtype=torch.long)], dim=1)
            output = model(token_B[:, None], mask, output.past_key_values, use_cache=True)
            token_B = output.logits[:, -1].argmax(-1)
    for k, tokens in zip(GREEDY, torch.stack(found, dim=1), strict=True):
        assert tokens.tolist() == golden[f"prompt.{k}.greedy_recompute_ids"].tolist()


# The window of decoding


@pytest.mark.parametrize("k", GREEDY)
def test_the_official_decode_window_gives_the_official_cached_continuation(golden, k):
    model = golden_model(decode_window="official")
    ids, wanted = golden[f"prompt.{k}.input_ids"][None], golden[f"prompt.{k}.greedy_cached_ids"]
    how = {"max_new_tokens": 24, "do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(ids, output_logits=True, return_dict_in_generate=True, **how)
    assert out.sequences[0, ids.shape[1] :].tolist() == wanted.tolist()
    torch.testing.assert_close(torch.cat(out.logits), golden[f"prompt.{k}.greedy_cached_logits"], atol=2e-4, rtol=1e-4)


def test_the_official_decode_window_leaves_the_official_states(golden):
    model = golden_model(decode_window="official")
    with torch.no_grad():
        cache = model(golden["prompt.4.input_ids"][None], use_cache=True).past_key_values
        for token in golden["prompt.4.greedy_cached_ids"]:
            model(token[None, None], past_key_values=cache, use_cache=True)
    for i, layer in enumerate(cache.layers):
        root = f"cache.4.decode24.layer{i}"
        close(layer.scan_BCN[0], golden[f"{root}.ssm"])
        close(layer.conv_BKC[0].T, golden[f"{root}.conv"][:, 1:])
        if layer.keys_BGSD is not None:  # the official cache drops what lies behind a window, ours masks it
            kept = golden[f"{root}.key"].shape[1] - META
            for name, ours in (("key", layer.keys_BGSD[0]), ("value", layer.values_BGSV[0])):
                close(torch.cat([ours[:, :META], ours[:, -kept:]], dim=1), golden[f"{root}.{name}"])


def test_the_window_of_decoding_is_stored(tmp_path):
    config = HymbaConfig(
        **SMALL, num_hidden_layers=1, global_attn_idx=[], kv_reuse_group=None, decode_window="official"
    )
    config.save_pretrained(tmp_path)
    assert HymbaConfig.from_pretrained(tmp_path).decode_window == "official"
    with pytest.raises(ValueError, match="decode_window='wide' is not supported"):
        HymbaConfig(decode_window="wide")


# Adapters


class Adapter(torch.nn.Module):
    """LoRA as peft wraps a projection: ``base_layer(x) + up(down(x))``."""

    def __init__(self, base_layer, generator):
        super().__init__()
        self.base_layer = base_layer
        columns, rows = base_layer.in_features, base_layer.out_features
        self.down = torch.nn.Parameter(torch.randn(3, columns, generator=generator) * 0.1)
        self.up = torch.nn.Parameter(torch.randn(rows, 3, generator=generator) * 0.1)

    def forward(self, x):
        return self.base_layer(x) + x @ self.down.T @ self.up.T

    def merge(self):
        self.base_layer.weight.data += self.up.data @ self.down.data
        return self.base_layer


def adapt(model, adapters=None):
    """Wrap every projection of the layers; returns the adapters by the name of what they wrap."""
    generator = torch.Generator().manual_seed(1)
    names = [name for name, module in model.model.layers.named_modules() if isinstance(module, torch.nn.Linear)]
    made = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = model.model.layers.get_submodule(parent)
        made[name] = Adapter(owner.get_submodule(leaf), generator) if adapters is None else adapters[name].merge()
        setattr(owner, leaf, made[name])
    return made


def caches(model, ids):
    with torch.no_grad():
        output = model(ids, use_cache=True)
    return output.logits, output.past_key_values


def test_an_adapter_leaves_the_meta_tokens_alone(golden):
    ids = golden["prompt.6.input_ids"][None]
    model = golden_model()
    plain, before = caches(model, ids)
    made = adapt(model)
    assert len(made) == 8 * 7
    adapted, after = caches(model, ids)
    assert (adapted - plain).abs().max() > 0.5
    for old, new in zip(before.layers, after.layers, strict=True):
        if old.keys_BGSD is not None:
            assert new.keys_BGSD[:, :, :META].equal(old.keys_BGSD[:, :, :META])
            assert not new.keys_BGSD[:, :, META:].allclose(old.keys_BGSD[:, :, META:])
    model(ids, labels=ids).loss.backward()
    assert all(adapter.up.grad.abs().max() > 0 for adapter in made.values())


def test_an_adapter_that_reaches_the_meta_tokens_equals_its_merged_weights(golden):
    ids = golden["prompt.6.input_ids"][None]
    spared, reaching, merged = golden_model(), golden_model(adapt_meta_tokens=True), golden_model()
    adapt(spared)
    adapt(merged, adapt(copy.deepcopy(merged)))
    adapt(reaching)
    torch.testing.assert_close(caches(reaching, ids)[0], caches(merged, ids)[0], atol=2e-4, rtol=1e-4)
    assert (caches(spared, ids)[0] - caches(merged, ids)[0]).abs().max() > 0.1


# Official checkpoints


def write(folder, tensors, **changes):
    HymbaConfig.from_pretrained(GOLDEN).save_pretrained(folder)
    save_file(tensors | changes, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_official_tensors_are_read_unchanged(tmp_path):
    tensors = load_file(GOLDEN / "model.safetensors")
    folder = write(tmp_path, tensors, **{"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    config, found = read_official(folder)
    assert config.num_meta == META
    assert found.keys() == tensors.keys()
    assert all(found[name].equal(tensors[name]) for name in tensors)
    assert to_official(config, found).keys() == tensors.keys()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model.extra": torch.zeros(1)}, r"unknown model\.extra \[1\]"),
        ({"model.memory_tokens": torch.zeros(6, 64)}, r"model\.memory_tokens has shape \[6, 64\] where \[5, 64\]"),
        ({"lm_head.weight": torch.zeros(256, 64)}, "is not the embedding"),
    ],
)
def test_other_tensors_are_refused(tmp_path, changes, sentence):
    folder = write(tmp_path, load_file(GOLDEN / "model.safetensors"), **changes)
    with pytest.raises(CheckpointError, match=sentence):
        read_official(folder)
