"""Bi-Mamba for transformers against numbers from the official code (golden_bimamba/README.md), and against itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_outputs import CausalLMOutput

import nlrl_backbones  # noqa: F401  registers the architecture with transformers
from nlrl_backbones.bimamba import distill, weights
from nlrl_backbones.bimamba.config import SIZES, BiMambaConfig
from nlrl_backbones.bimamba.model import column_statistics
from nlrl_backbones.check import check_backbone
from nlrl_backbones.common.checkpoint import CheckpointError
from nlrl_backbones.convert import convert

GOLDEN = Path(__file__).parent / "golden_bimamba"
CASES = json.loads((GOLDEN / "cases.json").read_text())
PROMPTS, LAYERS = range(4), range(4)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The official container converted, latent and packed."""
    root = tmp_path_factory.mktemp("bimamba")
    source = root / "official"
    source.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(GOLDEN / name, source)
    convert("bimamba", source, root / "latent")
    convert("bimamba", source, root / "packed", packed=True)
    return {name: root / name for name in ("official", "latent", "packed")}


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(scope="module")
def model(folders):
    return load(folders["latent"])


@pytest.fixture(scope="module", params=["latent", "packed"])
def either(request, folders):
    return load(folders[request.param])


@pytest.fixture(scope="module", params=["latent", "packed"])
def either_f64(request, folders):
    return load(folders[request.param], torch.float64)


def logits_of(model, ids, **arguments):
    with torch.no_grad():
        return model(ids[None], **arguments).logits[0]


def close(actual, expected, tolerance=5e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("k", PROMPTS)
def test_logits_equal_the_official_float32(either, golden, k):
    close(logits_of(either, golden[f"prompt{k}.input_ids"]), golden[f"prompt{k}.logits"], 2e-4)


@pytest.mark.parametrize("k", PROMPTS)
def test_logits_equal_the_official_float64(either_f64, golden, k):
    close(logits_of(either_f64, golden[f"prompt{k}.input_ids"]), golden[f"prompt{k}.logits_f64"], 1e-9)


def test_hidden_states_equal_the_official_ones(model, golden):
    seen = {}
    handles = [
        layer.mixer.register_forward_hook(lambda _, arguments, output, i=i: seen.update({i: (arguments[0], output)}))
        for i, layer in enumerate(model.backbone.layers)
    ]
    with torch.no_grad():
        states = model(golden["prompt2.input_ids"][None], output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    close(states[0][0], golden["prompt2.hidden.embed"])
    close(states[-1][0], golden["prompt2.hidden.final_norm"])
    for i in LAYERS:
        close(seen[i][0][0], golden[f"prompt2.hidden.layers.{i}.mixer_in"])
        close(seen[i][1][0], golden[f"prompt2.hidden.layers.{i}.mixer_out"])
        close(states[i][0], golden[f"prompt2.hidden.layers.{i}.residual"])


def test_decoding_states_equal_the_official_ones(either, golden):
    ids = golden["decode.input_ids"][None]
    with torch.no_grad():
        output = either(ids[:, :16], use_cache=True)
        close(output.logits[0, -1], golden["decode.prefill_logits"], 2e-4)
        assert_states(output.past_key_values, golden, "decode.prefill")
        for step in range(5):
            output = either(ids[:, 16 + step : 17 + step], past_key_values=output.past_key_values, use_cache=True)
            close(output.logits[0, -1], golden["decode.step_logits"][step], 2e-4)
            assert_states(output.past_key_values, golden, f"decode.step{step}")


def assert_states(cache, golden, root):
    found = 0
    for i, layer in enumerate(cache.layers):
        for name, state in (("conv", layer.conv_states[0]), ("ssm", layer.recurrent_states[0])):
            expected = golden.get(f"{root}.layers.{i}.{name}_state")
            if expected is not None:
                found += 1
                close(state[0], expected)
    assert found


def test_any_number_of_tokens_may_follow_on_a_filled_cache(model, golden):
    ids, cache, parts, begin = golden["prompt3.input_ids"], None, [], 0
    with torch.no_grad():
        for size in (1, 20, 1, 3, 20):
            output = model(ids[None, begin : begin + size], past_key_values=cache, use_cache=True)
            cache, begin = output.past_key_values, begin + size
            parts.append(output.logits[0])
    assert begin == len(ids)
    close(torch.cat(parts), golden["prompt3.logits"], 2e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_continuation_is_the_official_one(either, golden, use_cache):
    ids = golden["prompt2.input_ids"][None]
    out = either.generate(
        ids, max_new_tokens=24, do_sample=False, use_cache=use_cache, eos_token_id=None, pad_token_id=0
    )
    assert out[0, ids.shape[1] :].tolist() == CASES["greedy"]["new_tokens"]


def test_beam_search_reorders_the_cache(model, golden):
    ids = golden["prompt2.input_ids"][None]
    beams = [
        model.generate(
            ids, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=cached, eos_token_id=None, pad_token_id=0
        )
        for cached in (True, False)
    ]
    assert beams[0].tolist() == beams[1].tolist()


def padded(golden, side):
    rows = [golden[f"prompt{k}.input_ids"] for k in PROMPTS]
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), 7), torch.zeros(len(rows), width, dtype=torch.long)
    places = [slice(width - len(row), width) if side == "left" else slice(0, len(row)) for row in rows]
    for k, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[k, place], mask[k, place] = row, 1
    return ids, mask, places


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows_alone_and_so_do_its_states(model, golden, side):
    ids, mask, places = padded(golden, side)
    with torch.no_grad():
        output = model(ids, attention_mask=mask, use_cache=True)
        following = model(torch.full((4, 1), 11), past_key_values=output.past_key_values, use_cache=True).logits
    for k, place in enumerate(places):
        close(output.logits[k, place], golden[f"prompt{k}.logits"], 2e-4)
        alone = logits_of(model, torch.cat([golden[f"prompt{k}.input_ids"], torch.tensor([11])]))
        close(following[k, 0], alone[-1], 2e-4)


def test_a_left_padded_batch_generates_what_each_row_does(model, golden):
    ids, mask, _ = padded(golden, "left")
    how = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(ids, attention_mask=mask, **how)
    for k in PROMPTS:
        row = golden[f"prompt{k}.input_ids"][None]
        assert out[k, ids.shape[1] :].tolist() == model.generate(row, **how)[0, row.shape[1] :].tolist()


def test_padding_after_a_filled_cache_is_refused(model, golden):
    ids = golden["prompt2.input_ids"][None]
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be padded"):
        model(ids[:, :2], attention_mask=torch.tensor([[1, 0]]), past_key_values=cache)


@pytest.mark.parametrize("form", ["latent", "packed"])
@pytest.mark.parametrize(("variant", "value"), [("zero", 0.0), ("tiny", 1e-9)])
def test_zeros_and_tiny_weights(folders, golden, tmp_path, form, variant, value):
    """An exact zero is the shift alone; +1e-9 has sign +1, which float16 would lose."""
    source = tmp_path / "source"
    shutil.copytree(folders["latent"], source)
    tensors = load_file(source / "model.safetensors")
    for key, index in golden.items():
        if key.startswith("zero_variant.index."):
            tensors[key.removeprefix("zero_variant.index.")].view(-1)[index.long()] = value
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    made = convert("bimamba", source, tmp_path / "made", packed=form == "packed").folder
    counts = AutoConfig.from_pretrained(made).packed_zeros
    assert sum(counts.values()) == (4 * (94 + 40) if form == "packed" and variant == "zero" else 0)
    close(logits_of(load(made), golden["prompt2.input_ids"]), golden[f"zero_variant.logits_{variant}"], 2e-4)


def test_parameters_rounded_to_float16(folders, golden):
    model = load(folders["latent"]).half().float()
    close(logits_of(model, golden["prompt2.input_ids"]), golden["prompt2.logits_params_rounded_to_f16"], 2e-4)


# Training


@pytest.mark.parametrize("use_kd", [0, 1, 2])
def test_distillation_losses_are_the_official_ones(model, golden, use_kd):
    logits = model(golden["train.input_ids"]).logits
    loss = distill.distillation_loss(
        logits, golden["train.teacher_logits"], golden["train.labels"], use_kd=use_kd
    )  # fmt: skip
    assert loss.item() == pytest.approx(golden[f"train.kd{use_kd}.loss"].item(), abs=1e-5)


def test_a_distillation_step_is_the_official_one(folders, golden):
    """Gradients, their norm, and every given parameter after clipping and one AdamW step."""
    model = load(folders["latent"]).train()
    logits = model(golden["train.input_ids"]).logits
    distill.distillation_loss(logits, golden["train.teacher_logits"], golden["train.labels"]).backward()
    state = dict(model.named_parameters())
    given = {key.removeprefix("train.kd1.grad."): value for key, value in golden.items() if ".kd1.grad." in key}
    assert len(given) > 20
    for name, expected in given.items():
        close(state[name].grad, expected, 1e-4 * expected.abs().max().item())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2.5e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert norm.item() == pytest.approx(CASES["train"]["use_kd=1"]["grad_norm"], rel=1e-5)
    optimizer.step()
    after = {key.removeprefix("train.kd1.after_step."): key for key in golden if ".kd1.after_step." in key}
    assert len(after) == 6
    for name, key in after.items():
        close(state[name], golden[key], 1e-5)


class Teacher(torch.nn.Module):
    """Logits by the embedding of the token before: any causal language model will do."""

    def __init__(self, vocabulary):
        super().__init__()
        self.table = torch.nn.Embedding(vocabulary, vocabulary)

    def get_input_embeddings(self):
        return self.table

    def forward(self, input_ids, attention_mask, use_cache):
        return CausalLMOutput(logits=self.table(input_ids))


@pytest.fixture(scope="module")
def padded_lesson():
    ids = torch.randint(0, 250, (4, 12), generator=torch.Generator().manual_seed(5))
    labels = ids.clone()
    labels[1, 9:] = distill.IGNORED
    return {"input_ids": ids, "labels": labels, "attention_mask": (labels != distill.IGNORED).long()}


@pytest.mark.parametrize("use_kd", [0, 1, 2])
def test_the_trainers_loss_is_the_plain_one_over_real_positions(model, padded_lesson, use_kd):
    teacher, lesson = Teacher(256), padded_lesson
    with torch.no_grad():
        output = model(lesson["input_ids"], attention_mask=lesson["attention_mask"])
        loss = distill.Distillation(teacher, use_kd)(output, lesson["labels"])
        summed = distill.Distillation(teacher, use_kd)(output, lesson["labels"], num_items_in_batch=10)
        following = lesson["labels"].roll(-1, dims=1)
        following[:, -1] = distill.IGNORED
        counted = following != distill.IGNORED
        student, taught = output.logits[counted].log_softmax(-1), teacher.table(lesson["input_ids"])[counted]
        soft = -(taught.softmax(-1) * student).sum(-1)
        hard = -student.gather(1, following[counted].clamp(min=0)[:, None])[:, 0]
    expected = {0: hard, 1: soft, 2: (hard + soft) / 2}[use_kd]
    assert loss.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    assert summed.item() == pytest.approx(expected.sum().item() / 10, rel=1e-5)


def test_trainer_distils_from_a_teacher(folders, padded_lesson, tmp_path):
    """Through transformers' Trainer: it starts at the plain loss, which then falls."""
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    teacher, student = Teacher(256), load(folders["latent"])
    lesson = padded_lesson
    with torch.no_grad():
        output = student(lesson["input_ids"], attention_mask=lesson["attention_mask"])
        expected = distill.Distillation(teacher)(output, lesson["labels"]).item()
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, max_steps=8, learning_rate=3e-3, logging_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    data = [{name: tensor[row] for name, tensor in lesson.items()} for row in range(4)]
    loss: Any = distill.Distillation(teacher)
    trainer = Trainer(student, arguments, train_dataset=data, compute_loss_func=loss)  # type: ignore[arg-type]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(expected, rel=1e-3)
    assert losses[-1] < losses[0]


def test_another_vocabulary_is_refused(model, golden):
    ids = golden["train.input_ids"]
    output = model(ids)
    with pytest.raises(ValueError, match="256 tokens and the teacher 250"):
        distill.Distillation(Teacher(250))(output, ids)
    with pytest.raises(ValueError, match="use_kd is 3"):
        distill.distillation_loss(output.logits, output.logits, ids, use_kd=3)


def test_gradient_checkpointing_gives_the_same_gradients(folders, golden):
    ids, gradients = golden["train.input_ids"], []
    for checkpointing in (False, True):
        model = load(folders["latent"]).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_autocast_rounds_the_projections_but_not_the_scan(model, golden):
    ids = golden["prompt3.input_ids"][None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, use_cache=True)
    assert output.logits.dtype == torch.float32
    assert all(layer.recurrent_states[0].dtype == torch.float32 for layer in output.past_key_values.layers)
    error = (output.logits[0] - golden["prompt3.logits"]).abs().mean().item()
    assert 1e-3 < error < 0.15  # the values reach 12


def test_initialisation_is_the_official_one():
    official = load_file(GOLDEN / "fbi_linear.safetensors")
    for i in (0, 1):
        scale, shift = column_statistics(official[f"fbi{i}.weight"])
        close(scale, official[f"fbi{i}.init_wscale"], 1e-6)
        close(shift, official[f"fbi{i}.init_wbias"], 1e-6)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(BiMambaConfig.from_pretrained(GOLDEN))
    mixer = model.backbone.layers[0].mixer
    assert mixer.out_proj.weight.abs().max().item() == pytest.approx(128**-0.5 / 2, rel=0.01)  # over sqrt(4 layers)
    assert mixer.in_proj.weight.abs().max().item() == pytest.approx(64**-0.5, rel=0.01)
    assert torch.equal(mixer.in_proj.wscale, column_statistics(mixer.in_proj.weight)[0])
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    assert 0.001 <= steps.min().item() < steps.max().item() <= 0.1
    assert 0 <= mixer.A_log.min().item() < mixer.A_log.max().item() <= torch.tensor(16.0).log().item()
    assert model.lm_head.weight is model.backbone.embedding.weight


# Checkpoints


@pytest.mark.parametrize("form", ["latent", "packed"])
def test_a_converted_folder_keeps_the_contract(folders, form):
    check_backbone(folders[form])


def test_the_latent_form_is_lossless_and_the_packed_one_keeps_all_but_magnitudes(folders):
    config, official = weights.read_official(folders["official"])
    ours = load_file(folders["latent"] / "model.safetensors")
    assert weights.official_shapes(config) == {name: tuple(tensor.shape) for name, tensor in ours.items()}
    back = weights.to_official(config, ours)
    assert back.keys() == official.keys()
    assert all(back[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in official.items())
    packed_config, packed = weights.to_packed(config, ours)
    stored = load_file(folders["packed"] / "model.safetensors")
    assert packed.keys() == stored.keys()
    assert all(packed[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in stored.items())
    signs = weights.to_official(packed_config, packed)
    binary = {f"{name}.weight" for name in weights.projections(config)}
    for name, tensor in official.items():
        assert torch.equal(signs[name], tensor.sign() if name in binary else tensor), name


def test_the_packed_form_takes_one_bit_a_weight():
    config = BiMambaConfig(**SIZES["2.7B"])
    shapes = weights.official_shapes(config)
    numbers = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    binary = [numbers[f"{name}.weight"] for name in weights.projections(config)]
    assert (sum(numbers.values()), sum(binary)) == (2_656_765_440, 2_571_632_640)
    assert sum(binary) / 8 + 2 * (sum(numbers.values()) - sum(binary)) < 0.55e9


@pytest.mark.parametrize(("size", "millions"), [("780M", 752.1), ("1.3B", 1306.3), ("2.7B", 2655.8)])
def test_published_sizes(size, millions):
    """As many parameters as Mamba-2 of that shape; the scales and shifts come on top."""
    shapes = weights.official_shapes(BiMambaConfig(**SIZES[size]))
    counts = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    scales = sum(count for name, count in counts.items() if name.endswith(("wscale", "wbias")))
    assert (sum(counts.values()) - scales) / 1e6 == pytest.approx(millions, abs=0.05)


def test_without_a_configuration_a_published_size_is_recognised(tmp_path, monkeypatch):
    config = BiMambaConfig(d_model=1536, n_layer=48)
    shapes = weights.official_shapes(config)
    tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    monkeypatch.setattr(weights, "read_tensors", lambda folder: tensors)
    found, _ = weights.read_official(tmp_path)
    assert (found.d_model, found.n_layer) == (1536, 48)
    tensors.pop("backbone.layers.47.mixer.D")
    with pytest.raises(CheckpointError, match="fit none of the published sizes"):
        weights.read_official(tmp_path)


def changed(folders, tmp_path, change):
    folder = tmp_path / "changed"
    folder.mkdir()
    shutil.copy(folders["official"] / "config.json", folder)
    tensors = dict(torch.load(folders["official"] / "pytorch_model.bin", weights_only=True))
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def test_either_name_of_the_tied_matrix_will_do_and_two_must_agree(folders, tmp_path):
    _, both = weights.read_official(folders["official"])
    for i, name in enumerate((weights.EMBEDDING, weights.HEAD)):
        (tmp_path / str(i)).mkdir()
        folder = changed(folders, tmp_path / str(i), lambda tensors, name=name: tensors.pop(name))
        _, one = weights.read_official(folder)
        assert torch.equal(one[weights.EMBEDDING], both[weights.EMBEDDING])
    folder = changed(folders, tmp_path, lambda tensors: tensors.update({weights.HEAD: tensors[weights.HEAD] + 1}))
    with pytest.raises(CheckpointError, match="differ although config"):
        weights.read_official(folder)


def test_wrong_tensors_are_named(folders, tmp_path):
    def spoil(tensors):
        tensors["backbone.layers.0.mixer.D"] = torch.ones(9)
        del tensors["backbone.layers.1.mixer.in_proj.wscale"]

    sentence = r"missing .*in_proj\.wscale \[1, 64\].*mixer\.D has shape \[9\] where \[8\]"
    with pytest.raises(CheckpointError, match=sentence):
        weights.read_official(changed(folders, tmp_path, spoil))


def test_packing_twice_is_refused(folders, tmp_path):
    with pytest.raises(CheckpointError, match="packed already"):
        convert("bimamba", folders["packed"], tmp_path / "again", packed=True)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"d_modle": 64}, "unknown configuration keys .'d_modle'"),
        ({"ssm_cfg": {"layer": "Mamba1"}}, "ssm_cfg.layer='Mamba1' is not supported"),
        ({"ssm_cfg": {"d_state": 16}}, "ssm_cfg must say"),
        ({"ssm_cfg": {"layer": "Mamba2", "heads": 3}}, "unknown keys .'heads'. in ssm_cfg"),
        ({"ssm_cfg": {"layer": "Mamba2", "ngroups": 2}}, "ssm_cfg.ngroups=2 is not supported"),
        ({"ssm_cfg": {"layer": "Mamba2", "headdim": 100}}, "must be a multiple of ssm_cfg.headdim"),
        ({"d_intermediate": 64}, "d_intermediate=64 is not supported"),
        ({"attn_layer_idx": [1]}, "attn_layer_idx"),
        ({"rms_norm": False}, "rms_norm=False is not supported"),
        ({"weight_format": "ternary"}, "weight_format is 'ternary'"),
        ({"packed_zeros": {"x": 1}}, "packed_zeros belongs to weight_format packed"),
        ({"n_layer": 0}, "n_layer must be a whole number"),
    ],
)
def test_settings_that_cannot_run_are_named(keys, sentence):
    with pytest.raises(ValueError, match=sentence):
        BiMambaConfig(**keys)


def test_the_configuration_is_kept(tmp_path):
    config = BiMambaConfig(**json.loads((GOLDEN / "config.json").read_text()))
    assert (config.vocab_size, config.num_heads, config.conv_size, config.projection_size) == (256, 8, 160, 296)
    config.save_pretrained(tmp_path)
    assert BiMambaConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text())["ssm_cfg"] == config.ssm_cfg
