"""One training of a student: token sequences in, a folder of new weights out, by transformers' own `Trainer`.

The trained parameters are held in float32 (LoRA's, or all of them) and so they are stored, in `training/` beside the
weights that the engine reads, which are rounded to the dtypes of the model's first folder. The next training goes on
from them and, with `carry`, from the optimizer's moments; so rounding never eats what was learned, and a training that
begins from files is the same whether the process ran on or was started anew.

Source: arXiv 2411.14251, appendix: AdamW, constant learning rate 1e-5, 2 epochs an iteration, 64 examples a step, the
optimizer carried over. Deviations: a loss a target token, not a mean of rows' means; no warm-up (theirs is ignored by
their schedule); nothing is cut to 1,024 tokens.

Every number is deterministic on a CPU given the seed and the number of threads.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from nlrl.distill.dataset import IGNORED, TokenPair, pad
from nlrl.distill.knobs import LOGITS_PER_PASS, TOKENS_PER_PASS, Job, Outcome, Stopped, TrainingKnobs
from nlrl.distill.weights import load_model, make_optimizer, restore, write_model
from nlrl_backbones.bimamba.distill import BOTH, SOFT, distillation_loss


def train(job: Job, out: Path, stop: threading.Event | None = None) -> Outcome:
    """Train and write the new model to `out` (made if missing). In every process of a group; the first one writes.

    The random state of the process is as before when this returns.

    Raises:
        ConfigError: `job.state` is of a training of other parameters.
        Stopped: `stop` was set.
    """
    begun = time.perf_counter()
    device = _device(job.knobs.device)
    with _apart(job.seed, device, job.knobs.threads):
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = load_model(job)
        restore(model, job.state)
        optimizer = None if job.knobs.sharded else make_optimizer(model, job)
        losses: list[float] = []
        with tempfile.TemporaryDirectory(prefix="nlrl-train-") as scratch:
            trainer = _trainer(job, model, optimizer, device, scratch, [_Watch(losses, stop or threading.Event())])
            trainer.train()
        if stop is not None and stop.is_set():
            raise Stopped
        state: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped) if job.knobs.sharded else None
        if trainer.is_world_process_zero():
            write_model(model, job, out, optimizer, state)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        del trainer, optimizer, model, state
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return Outcome(tuple(losses), round(time.perf_counter() - begun, 3), peak)


class ReplyLoss:
    """Cross-entropy of the reply's tokens, in float32, divided by their number over the whole optimizer step.

    With a `teacher` (a causal model of the same vocabulary, run on the same tokens) against its distribution instead,
    or the mean of both: Kim and Rush 2016 (arXiv 1606.07947), word-level; the loss is Bi-Mamba's.
    """

    def __init__(self, teacher: Any = None, use_kd: int = SOFT) -> None:
        self.teacher = teacher
        self.use_kd = use_kd
        self.ids_BT: torch.Tensor | None = None

    def remember(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """A forward hook of the student: the teacher reads what it reads, and labels do not say it all."""
        self.ids_BT = kwargs["input_ids"]

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of a batch; `labels` [B, T] stand at their own tokens."""
        next_BT = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        counted = next_BT != IGNORED
        if self.teacher is None:
            total = F.cross_entropy(outputs.logits[counted].float(), next_BT[counted], reduction="sum")
            return total / (counted.sum() if num_items_in_batch is None else num_items_in_batch)
        with torch.no_grad():
            taught_BTV = self.teacher(input_ids=self.ids_BT, use_cache=False).logits
        return distillation_loss(outputs.logits, taught_BTV, next_BT, use_kd=self.use_kd, count=num_items_in_batch)


class AfterStep(TrainerCallback):
    """Calls the model's own `after_optimizer_step`: nGPT's vectors are of unit length again."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What training starts from may have been rounded."""
        self._step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before anything sees the weights that the optimizer has moved."""
        self._step()


class _Watch(TrainerCallback):
    """Keeps each step's loss, and ends the training when asked."""

    def __init__(self, losses: list[float], stop: threading.Event) -> None:
        self._losses, self._stop = losses, stop

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if logs is not None and "loss" in logs:
            self._losses.append(float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stop.is_set():
            control.should_training_stop = True

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._stop.is_set():
            raise Stopped


def _trainer(
    job: Job, model: Any, optimizer: Any, device: str, scratch: str, callbacks: list[TrainerCallback]
) -> Trainer:
    knobs = job.knobs
    rows, steps = passes(job.pairs, knobs, int(os.environ.get("WORLD_SIZE", "1")), model.config.vocab_size)
    arguments = TrainingArguments(
        output_dir=scratch,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=steps,
        num_train_epochs=knobs.epochs,
        learning_rate=knobs.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=knobs.weight_decay,
        max_grad_norm=knobs.clip,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        seed=job.seed % 2**32,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
        ddp_backend="gloo" if device == "cpu" and knobs.processes > 1 else None,
        fsdp=knobs.sharded,  # type: ignore[arg-type]
    )
    if arguments.n_gpu > 1:  # of this one process; else it would copy the model to every device it sees
        arguments._n_gpu = 1
    loss = ReplyLoss()
    if knobs.teacher is not None:
        teacher: Any = AutoModelForCausalLM.from_pretrained(knobs.teacher, use_safetensors=True, dtype="auto")
        loss = ReplyLoss(teacher.to(device).eval(), BOTH if knobs.soft == "both" else SOFT)
        model.register_forward_pre_hook(loss.remember, with_kwargs=True)
    if (step := getattr(model, "after_optimizer_step", None)) is not None:
        callbacks = [*callbacks, AfterStep(step)]
    tokenizer = AutoTokenizer.from_pretrained(job.base, trust_remote_code=False)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=list(job.pairs),  # type: ignore[arg-type]
        data_collator=partial(pad, padding=tokenizer.pad_token_id or 0),  # type: ignore[arg-type]
        compute_loss_func=loss,
        optimizers=(optimizer, None),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def passes(pairs: Sequence[TokenPair], knobs: TrainingKnobs, world: int, vocabulary: int = 1) -> tuple[int, int]:
    """Rows a forward pass of each process, and passes an optimizer step, for `knobs.batch` examples a step."""
    share = -(-min(knobs.batch, len(pairs)) // world)
    tokens = knobs.tokens_per_pass or min(TOKENS_PER_PASS, LOGITS_PER_PASS // vocabulary)
    most = max(1, tokens // max(map(len, pairs)))
    steps = -(-share // most)
    return -(-share // steps), steps


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


@contextmanager
def _apart(seed: int, device: str, threads: int) -> Iterator[None]:
    """Its own random state and threads: an engine of this process draws from the same generator."""
    import random

    import numpy as np

    logging.disable_progress_bar()  # it would be drawn into the live view
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # so would its advice about vLLM's process group, which is not ours to train in
    before = random.getstate(), np.random.get_state(), torch.get_num_threads()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(seed)
        if device == "cpu":
            torch.set_num_threads(threads or os.cpu_count() or 1)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_num_threads(before[2])
            logging.set_verbosity(verbosity)
