"""Training nGPT and its GPT baseline: the published recipe's golden steps, and the callback for trainers."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ngpt_golden import GOLDEN, PREFIX, load_cases, write_folders
from transformers import AutoModelForCausalLM

import nlrl_backbones  # noqa: F401  registers the architecture with transformers
from nlrl_backbones.ngpt.train import NormalizeMatrices, normalize_matrices, parameter_groups

CASES = json.loads((GOLDEN / "cases.json").read_text())


@pytest.fixture(scope="module")
def golden():
    return {kind: load_cases(kind) for kind in PREFIX}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(official folder, our folder) of each golden model."""
    return {kind: write_folders(kind, tmp_path_factory.mktemp(kind)) for kind in PREFIX}


def fresh(folders, kind) -> Any:
    return AutoModelForCausalLM.from_pretrained(folders[kind][1], dtype=torch.float32).train()


def train_steps(model, golden, recipe, steps):
    """Yields (step, loss, gradient norm before clipping, gradients) by the golden README's recipe, then updates."""
    groups = model.parameter_groups(recipe["weight_decay"])
    optimizer = torch.optim.AdamW(groups, lr=recipe["lr"], betas=tuple(recipe["betas"]), eps=recipe["eps"])
    for step in range(steps):
        logits = model(golden["train.x"][step], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), golden["train.y"][step].flatten())
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["grad_clip"])
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step()
        yield loss.item(), norm.item(), gradients


def assert_weights(model, golden, root, lr):
    """The README's rule: 99.9 % of the entries within 1e-5 and all within twice the step."""
    found = {name: p.detach() for name, p in model.named_parameters()}
    wanted = {name.removeprefix(root): value for name, value in golden.items() if name.startswith(root)}
    assert wanted
    differences = torch.cat([(found[name] - value).abs().flatten() for name, value in wanted.items()])
    assert (differences <= 1e-5).float().mean() >= 0.999
    assert differences.max() <= 2 * lr


@pytest.mark.parametrize("kind", PREFIX)
def test_five_training_steps_are_the_official_ones(folders, golden, kind):
    model, recipe = fresh(folders, kind), CASES[kind]["train"]
    if kind == "ngpt":
        assert recipe["weight_decay"] == 0 < 0.1 == CASES["baseline"]["train"]["weight_decay"]
    for step, (loss, norm, gradients) in enumerate(train_steps(model, golden[kind], recipe, 5)):
        assert loss == pytest.approx(recipe["losses"][step], abs=1e-5)
        assert norm == pytest.approx(recipe["grad_norm_before_clip"][step], rel=1e-4)
        if step == 0 and kind == "ngpt":
            wanted = [name for name in golden[kind] if name.startswith("train.grad.")]
            assert len(wanted) == 19
            for name in wanted:
                found = gradients[name.removeprefix("train.grad.")]
                torch.testing.assert_close(found, golden[kind][name], atol=2e-5, rtol=1e-3)
            assert_weights(model, golden[kind], "train.after1.", recipe["lr"])
    assert_weights(model, golden[kind], "train.after5.", recipe["lr"])


def test_weight_decay_touches_the_baselines_matrices_alone(folders):
    ngpt, baseline = (fresh(folders, kind).parameter_groups(0.1) for kind in PREFIX)
    assert [group["weight_decay"] for group in ngpt] == [0.0]
    assert {(p.ndim, group["weight_decay"]) for group in baseline for p in group["params"]} == {(2, 0.1), (1, 0.0)}


def test_gradient_checkpointing_gives_the_same_gradients(folders, golden):
    ids = golden["ngpt"]["prompt.3.input_ids"][None]
    gradients = []
    for checkpointing in (False, True):
        model = fresh(folders, "ngpt")
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_autocast_to_bfloat16_keeps_norms_and_stream_in_float32(folders, golden):
    model, ids = fresh(folders, "ngpt"), golden["ngpt"]["prompt.4.input_ids"][None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, labels=ids, output_hidden_states=True)
    output.loss.backward()
    for hidden in output.hidden_states:
        assert hidden.dtype == torch.float32
        torch.testing.assert_close(hidden.norm(dim=-1), torch.ones(1, 64), atol=1e-5, rtol=0)
    assert output.logits.dtype == torch.float32
    assert 0 < (output.logits[0] - golden["ngpt"]["prompt.4.logits"]).abs().mean() < 0.1
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())


def steps_through_the_callback_handler(model, optimizer, callbacks, batches):
    """The calls of transformers 5.19's ``Trainer`` around a step, in its order."""
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import CallbackHandler

    handler = CallbackHandler(callbacks, model, None, optimizer, None)
    state, control = TrainerState(), TrainerControl()
    arguments = object.__new__(TrainingArguments)  # its constructor asks for accelerate
    handler.on_train_begin(arguments, state, control)
    for x, y in batches:
        F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        handler.on_pre_optimizer_step(arguments, state, control)
        optimizer.step()
        handler.on_optimizer_step(arguments, state, control)
        model.zero_grad()
        handler.on_step_end(arguments, state, control)


def test_the_callback_trains_as_the_published_loop_does(folders, golden):
    model, recipe = fresh(folders, "ngpt"), CASES["ngpt"]["train"]
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=recipe["lr"], betas=tuple(recipe["betas"]))
    data = golden["ngpt"]
    batches = list(zip(data["train.x"], data["train.y"], strict=True))
    steps_through_the_callback_handler(model, optimizer, [NormalizeMatrices()], batches)
    assert_weights(model, data, "train.after5.", recipe["lr"])


def test_the_callback_normalises_before_the_first_step(folders):
    model = fresh(folders, "ngpt")
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    steps_through_the_callback_handler(model, None, [NormalizeMatrices()], [])
    torch.testing.assert_close(model.lm_head.weight.norm(dim=-1), torch.ones(192), atol=1e-6, rtol=0)


def test_transformers_trainer_takes_the_callback_as_it_is(folders, golden, tmp_path):
    """Five steps with the model's own loss, against a plain loop."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    weights_by = {}
    for by in ("trainer", "loop"):
        model, recipe = fresh(folders, "ngpt"), CASES["ngpt"]["train"]
        ids = golden["ngpt"]["train.x"]
        if by == "loop":
            optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=recipe["lr"], betas=tuple(recipe["betas"]))
            model.after_optimizer_step()
            for batch in ids:
                model(batch, labels=batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                model.after_optimizer_step()
        else:
            rows = [{"input_ids": row, "labels": row} for row in ids.flatten(0, 1)]
            arguments = TrainingArguments(
                output_dir=str(tmp_path), per_device_train_batch_size=4, max_steps=5, learning_rate=recipe["lr"],
                adam_beta2=0.95, lr_scheduler_type="constant", max_grad_norm=1.0, use_cpu=True, report_to="none",
                save_strategy="no", train_sampling_strategy="sequential", disable_tqdm=True,
            )  # fmt: skip
            data: Any = rows  # a list serves
            Trainer(model=model, args=arguments, train_dataset=data, callbacks=[NormalizeMatrices()]).train()
        weights_by[by] = {name: p.detach() for name, p in model.named_parameters()}
    for name, value in weights_by["loop"].items():
        torch.testing.assert_close(weights_by["trainer"][name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", PREFIX)
def test_trainers_that_apply_the_head_themselves_get_the_models_own_logits(folders, golden, kind):
    """TRL's: last hidden state of ``base_model`` times ``get_output_embeddings().weight``, scale and norm included."""
    model, ids = fresh(folders, kind), golden[kind]["prompt.1.input_ids"][None]
    hidden = model.base_model(input_ids=ids, output_attentions=None, return_dict=None).last_hidden_state
    head = model.get_output_embeddings()
    torch.testing.assert_close(hidden @ head.weight.T, model(ids).logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head(hidden), model(ids).logits, atol=1e-5, rtol=1e-5)
    F.cross_entropy((hidden @ head.weight.T).flatten(0, 1), ids.flatten()).backward()
    fused = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    F.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(fused[name], parameter.grad, atol=2e-5, rtol=1e-3)


def test_normalisation_makes_unit_vectors_and_leaves_scales_alone(folders):
    model = fresh(folders, "ngpt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    normalize_matrices(model)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert parameter.equal(before[name]), name
            continue
        axis = 0 if "c_proj" in name else -1
        lengths = parameter.detach().norm(dim=axis)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=1e-6, rtol=0)
        assert parameter.shape[axis] == model.config.n_embd


def test_normalisation_finds_a_wrapped_model_and_spares_what_is_frozen(folders):
    model = fresh(folders, "ngpt")
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
        model.transformer.wte.weight.mul_(2)
    model.lm_head.weight.requires_grad_(False)
    normalize_matrices(torch.nn.Sequential(model))
    assert model.lm_head.weight.norm(dim=-1).mean().item() == pytest.approx(2)
    assert model.transformer.wte.weight.norm(dim=-1).mean().item() == pytest.approx(1)


def test_normalisation_is_computed_in_float32_for_bfloat16_weights(folders):
    model = fresh(folders, "ngpt").to(torch.bfloat16)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(3)
    wide = model.transformer.wte.weight.float()
    normalize_matrices(model)
    assert model.transformer.wte.weight.equal((wide / wide.norm(dim=-1, keepdim=True)).to(torch.bfloat16))


def test_normalisation_leaves_the_baseline_alone_and_refuses_other_models(folders):
    model = fresh(folders, "baseline")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    normalize_matrices(model)
    assert all(p.equal(before[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match="no nGPT model in this Linear"):
        normalize_matrices(torch.nn.Linear(2, 2))
    sharded = fresh(folders, "ngpt")
    sharded.lm_head.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(ValueError, match="not whole on this device"):
        normalize_matrices(sharded)
