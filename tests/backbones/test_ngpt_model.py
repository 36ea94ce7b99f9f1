"""nGPT and its GPT baseline for transformers against numbers from the published code (golden_ngpt/README.md)."""

import json
import shutil
from typing import Any

import pytest
import torch
from ngpt_golden import PREFIX, STEPS, load_cases, write_folders
from transformers import AutoModelForCausalLM

import nlrl_backbones  # noqa: F401  registers the architecture with transformers
from nlrl_backbones.check import check_backbone
from nlrl_backbones.ngpt import weights
from nlrl_backbones.ngpt.config import NGPTConfig
from nlrl_backbones.ngpt.model import NGPTForCausalLM
from nlrl_backbones.ngpt.position import position_tables
from nlrl_kernels.hypersphere import position_step

PROMPTS = [("ngpt", k) for k in range(5)] + [("baseline", k) for k in range(2)]
GREEDY = [("ngpt", 0), ("ngpt", 1), ("ngpt", 2), ("baseline", 0)]


@pytest.fixture(scope="module")
def golden():
    return {kind: load_cases(kind) for kind in PREFIX}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(official folder, our folder) of each golden model."""
    return {kind: write_folders(kind, tmp_path_factory.mktemp(kind)) for kind in PREFIX}


@pytest.fixture(scope="module")
def models(folders):
    """(kind, dtype) to a model, loaded from disk once."""
    return {
        (kind, dtype): AutoModelForCausalLM.from_pretrained(ours, dtype=dtype).eval()
        for kind, (_, ours) in folders.items()
        for dtype in (torch.float32, torch.float64)
    }


@pytest.mark.parametrize(("kind", "k"), PROMPTS)
@pytest.mark.parametrize(
    ("dtype", "name", "atol", "rtol"), [(torch.float32, "logits", 1e-4, 1e-4), (torch.float64, "logits_f64", 1e-10, 0)]
)
def test_logits_equal_the_official_ones(models, golden, kind, k, dtype, name, atol, rtol):
    with torch.no_grad():
        logits = models[kind, dtype](golden[kind][f"prompt.{k}.input_ids"][None]).logits[0]
    torch.testing.assert_close(logits, golden[kind][f"prompt.{k}.{name}"], atol=atol, rtol=rtol)


def test_hidden_states_equal_the_official_ones(models, golden):
    with torch.no_grad():
        output = models["ngpt", torch.float32](golden["ngpt"]["prompt.2.input_ids"][None], output_hidden_states=True)
    assert len(output.hidden_states) == 4
    for i, hidden in enumerate(output.hidden_states):
        torch.testing.assert_close(hidden[0], golden["ngpt"][f"hidden.2.{i}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "k"), GREEDY)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_continuation_is_the_official_one(models, golden, kind, k, use_cache):
    ids = golden[kind][f"prompt.{k}.input_ids"][None]
    out = models[kind, torch.float32].generate(
        ids, max_new_tokens=STEPS, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    assert out[0, ids.shape[1] :].tolist() == golden[kind][f"prompt.{k}.greedy_ids"].tolist()


def padded(rows, side):
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    places = [slice(width - len(row), None) if side == "left" else slice(0, len(row)) for row in rows]
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[i, place], mask[i, place] = row, 1
    return ids, mask, places


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows_alone(models, golden, side):
    ids, mask, places = padded([golden["ngpt"][f"prompt.{k}.input_ids"] for k in range(5)], side)
    with torch.no_grad():
        logits = models["ngpt", torch.float32](ids, attention_mask=mask).logits
    for k, place in enumerate(places):
        torch.testing.assert_close(logits[k, place], golden["ngpt"][f"prompt.{k}.logits"], atol=1e-4, rtol=1e-4)


def test_rows_padded_on_the_right_need_no_mask(models, golden):
    """So that a training loop may leave it out."""
    ids, _, places = padded([golden["ngpt"][f"prompt.{k}.input_ids"] for k in range(5)], "right")
    with torch.no_grad():
        logits = models["ngpt", torch.float32](ids).logits
    for k, place in enumerate(places):
        torch.testing.assert_close(logits[k, place], golden["ngpt"][f"prompt.{k}.logits"], atol=1e-4, rtol=1e-4)


def test_a_left_padded_batch_generates_what_each_row_does(models, golden):
    ids, mask, _ = padded([golden["ngpt"][f"prompt.{k}.input_ids"] for k in range(3)], "left")
    out = models["ngpt", torch.float32].generate(
        ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    for k, row in enumerate(out):
        assert row[ids.shape[1] :].tolist() == golden["ngpt"][f"prompt.{k}.greedy_ids"].tolist()


def test_any_number_of_tokens_may_follow_on_a_filled_cache(models, golden):
    ids = golden["ngpt"]["prompt.4.input_ids"][None]
    parts, cache, begin = [], None, 0
    with torch.no_grad():
        for size in (1, 30, 2, 31):
            output = models["ngpt", torch.float32](ids[:, begin : begin + size], past_key_values=cache, use_cache=True)
            cache, begin = output.past_key_values, begin + size
            parts.append(output.logits[0])
    assert begin == ids.shape[1]
    torch.testing.assert_close(torch.cat(parts), golden["ngpt"]["prompt.4.logits"], atol=1e-4, rtol=1e-4)


def test_a_mask_that_forgets_the_cache_is_refused(models):
    model, ids = models["ngpt", torch.float32], torch.ones(1, 3, dtype=torch.long)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cover the 3 cached and 1 new tokens, got 1"):
        model(ids[:, :1], past_key_values=cache, attention_mask=ids[:, :1])


def test_beam_search_reorders_the_cache(models, golden):
    ids = golden["ngpt"]["prompt.1.input_ids"][None]
    beams = [
        models["ngpt", torch.float32].generate(
            ids, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=cached, eos_token_id=None, pad_token_id=0
        )
        for cached in (True, False)
    ]
    assert beams[0].tolist() == beams[1].tolist()


@pytest.mark.parametrize("kind", PREFIX)
def test_the_written_folder_keeps_the_contract(folders, kind):
    check_backbone(folders[kind][1])


# The position step


def test_the_rotary_option_is_a_rotation_by_the_textbook():
    """Complex multiplication by exp(i t f_j), worked out apart from the tables."""
    x_TD = torch.randn(9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frequencies = torch.tensor([10000.0 ** (-2 * j / 12) for j in range(6)], dtype=torch.float64)
    angles = torch.arange(9, dtype=torch.float64)[:, None] * frequencies
    expected = torch.view_as_real(torch.view_as_complex(x_TD.unflatten(-1, (6, 2))) * torch.exp(1j * angles)).flatten(
        -2
    )
    cross, keep = position_tables(torch.arange(9), 12, "rotary", torch.float64)
    torch.testing.assert_close(position_step(x_TD[:, None], cross, keep)[:, 0], expected, atol=1e-12, rtol=0)


def test_the_official_step_is_the_published_one_written_out():
    width = 6  # half of it odd: the table's halves begin with a sine and with a cosine
    x_TD = torch.randn(7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cross, keep = position_tables(torch.arange(7), width, "official", torch.float64)
    assert keep is None
    found = position_step(x_TD[:, None], cross)[:, 0]
    for t in range(7):
        angles = [t * 10000.0 ** (-2 * j / width) for j in range(width // 2)]
        table = [f(torch.tensor(a, dtype=torch.float64)) for a in angles for f in (torch.sin, torch.cos)]
        for j in range(width // 2):
            s, c = table[j], table[width // 2 + j]
            assert found[t, 2 * j].item() == pytest.approx((-x_TD[t, 2 * j + 1] * c).item(), abs=1e-12)
            assert found[t, 2 * j + 1].item() == pytest.approx((x_TD[t, 2 * j] * s).item(), abs=1e-12)


def test_rotary_scores_depend_on_distances_alone_and_the_official_ones_do_not():
    """Scores of one key and one query, three tokens apart, early and five tokens later."""
    shifted = {}
    for position in ("rotary", "official"):
        q, k = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(1))
        scores = []
        for t in (0, 5):
            cross, keep = position_tables(torch.tensor([t, t + 3]), 12, position, torch.float32)
            x = position_step(torch.stack([k, q]), cross, keep)
            scores.append((x[0] * x[1]).sum().item())
        shifted[position] = abs(scores[0] - scores[1])
    assert shifted["rotary"] < 1e-5 < 0.1 < shifted["official"]


def test_a_rotary_model_agrees_with_itself(folders, golden, tmp_path):
    shutil.copytree(folders["ngpt"][1], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"position": "rotary"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    check_backbone(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        logits = model(golden["ngpt"]["prompt.2.input_ids"][None]).logits[0]
    assert (logits - golden["ngpt"]["prompt.2.logits"]).abs().max() > 1


def test_scales_stay_in_float32_when_the_matrices_do_not(folders):
    model = AutoModelForCausalLM.from_pretrained(folders["ngpt"][1], dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.ndim == 1 else torch.bfloat16), name


@pytest.mark.parametrize(("use_nGPT", "scale"), [(1, 64**-0.5), (0, 0.02)])
def test_initialisation_is_the_official_one(use_nGPT, scale):
    torch.manual_seed(0)
    config = NGPTConfig(use_nGPT=use_nGPT, n_layer=2, n_head=4, n_embd=64, vocab_size=512)
    model = NGPTForCausalLM(config)
    assert config.base_scale == pytest.approx(scale)
    block: Any = model.transformer.h[1]
    for matrix, std in (
        (model.transformer.wte, scale),
        (model.lm_head, scale),
        (block.c_fc, scale),
        (block.att_c_proj, scale / 2),
        (block.mlp_c_proj, scale / 2),
    ):
        assert matrix.weight.std().item() == pytest.approx(std, rel=0.05)
    scales = {name: p.unique().tolist() for name, p in model.named_parameters() if p.ndim == 1}
    assert all(
        values == [pytest.approx(1.0 if name.endswith("suv") or "rmsnorm" in name else scale)]
        for name, values in scales.items()
    )
    assert len(scales) == (9 if use_nGPT else 5)


def test_sizes_of_the_paper():
    """The paper's table 2, in millions cut to one digit, with the 32,000 tokens of Llama 2."""
    for layers, width, heads, ngpt, gpt in ((24, 1024, 16, 468.4, 468.2), (36, 1280, 20, 1026.1, 1025.7)):
        for use_nGPT, millions in ((1, ngpt), (0, gpt)):
            config = NGPTConfig(n_layer=layers, n_embd=width, n_head=heads, vocab_size=32000, use_nGPT=use_nGPT)
            count = sum(torch.Size(shape).numel() for shape in weights.official_shapes(config).values())
            assert count / 1e6 == pytest.approx(millions, abs=0.1)


def test_resizing_the_vocabulary_is_refused(models):
    with pytest.raises(NotImplementedError, match="cannot be resized"):
        models["ngpt", torch.float32].resize_token_embeddings(200)
