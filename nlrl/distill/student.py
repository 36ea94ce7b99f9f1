"""A student that learns by training and answers with its new weights at once: from examples to the running engine.

One `learn` is: encode the examples, train in a thread (or in a group of processes), write a checkpoint that is whole or
not there, load it into the engine in place, empty the engine's prefix cache. Each training begins from files, those of
the checkpoint before; so a run that was stopped anywhere and resumed trains as one that was not, and what it had
finished is loaded, not trained again.

An engine draws anew from the training's seed after each reload: what is drawn then does not depend on how the process
came there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlrl.checkpoints import complete_checkpoint, prune_states, write_checkpoint
from nlrl.distill.dataset import TokenPair, encode_examples, end_tokens, same_tokenizer
from nlrl.distill.knobs import Job, Outcome, TrainingKnobs
from nlrl.engine.base import Engine
from nlrl.errors import ConfigError, EngineUnavailableError, ResumeError, StoreError
from nlrl.model_files import fingerprint
from nlrl.store import RunStore
from nlrl.types import Example, StudentName, Trained

CARD = "training/card.json"
"""What a checkpoint says of its training, in its folder."""
ONLY_HOW = ("device", "threads", "tokens_per_pass", "keep_states")
"""Knobs that do not decide which weights come out."""


def check_takes_weights(engine: Engine) -> None:
    """Raise `ConfigError` for an engine whose weights cannot be replaced while it runs."""
    if not hasattr(engine, "update_weights"):
        raise ConfigError(
            f"A model behind an engine of kind '{engine.describe().kind}' cannot be trained from here: take "
            "engine.kind = vllm, or train elsewhere on the examples of `nlrl export`, serve that and give its URL."
        )


def check_trainable(base: Path, knobs: TrainingKnobs) -> None:
    """Raise `ConfigError` unless the model in `base` can be trained in this way."""
    config = json.loads((base / "config.json").read_text("utf-8"))
    if config.get("weight_format") == "packed":
        raise ConfigError(f"The weights in '{base}' are packed bits; train the folder of the latent weights.")
    if config["model_type"] == "ngpt" and knobs.sharded:
        raise ConfigError("nGPT normalises whole matrices after each step; train it with sharded = false.")
    if config["model_type"] == "bimamba" and knobs.lora_rank:
        raise ConfigError("Bi-Mamba's adapters cannot be merged into weights of one bit; train it with lora_rank = 0.")


def check_soft_teacher(student: Path, teacher: Path) -> None:
    """Raise `ConfigError` unless the distributions of `teacher` are over the student's own vocabulary."""
    sizes = {json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"] for folder in (student, teacher)}
    if len(sizes) > 1 or not same_tokenizer(student, teacher):
        raise ConfigError(
            f"The student in '{student}' and the teacher in '{teacher}' have different vocabularies, so distributions "
            "cannot be learned: leave out train.teacher to learn the replies' text, or take models of one tokenizer."
        )


class DistilledStudent:
    """A `nlrl.learn.Student` over an engine of this process.

    Args:
        base: the folder that the engine was started on.
        engine: the engine itself; it must have `update_weights`.
        store: the run's record, for checkpoints.
        knobs: how to train.
        as_drawn: whether the examples' token ids are of the student's tokenizer (`dataset.same_tokenizer`); if not,
            replies are tokenised again.
        reloaded: called after each reload (`nlrl.recorded.RecordedEngine.reloaded`).

    Raises:
        ConfigError: the engine cannot take weights, the model cannot be trained so, or the vocabulary of
            `knobs.teacher` is another.
        EngineUnavailableError: a package that training needs is not installed.
    """

    def __init__(
        self,
        base: Path,
        engine: Engine,
        store: RunStore,
        knobs: TrainingKnobs,
        *,
        as_drawn: bool = True,
        reloaded: Callable[[], None] = lambda: None,
    ) -> None:
        check_takes_weights(engine)
        check_trainable(base, knobs)
        if knobs.teacher is not None:
            check_soft_teacher(base, knobs.teacher)
        try:
            import accelerate  # noqa: F401

            if knobs.lora_rank:
                import peft  # noqa: F401
            from transformers import AutoTokenizer
        except ImportError as error:
            raise EngineUnavailableError(f"Training needs '{error.name}': pip install 'nlrl[train]'.") from error
        self._base, self._engine, self._store, self._knobs = base, engine, store, knobs
        self._as_drawn, self._reloaded = as_drawn, reloaded
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        self._context: int = engine.context  # type: ignore[attr-defined]
        self._ends = end_tokens(base, self._tokenizer)
        self._latest = ""
        self._trained: list[str] = []
        self._lineage = hashlib.sha256(fingerprint(base).encode()).hexdigest()

    async def learn(self, examples: Sequence[Example], *, iteration: int, student: StudentName, seed: int) -> Trained:
        """Train, reload, and say what was done; a training that is recorded is loaded instead.

        Without examples nothing changes.

        Raises:
            ConfigError: a sequence is too long.
            ResumeError: the run has a checkpoint of this name from other examples.
            EngineError: the engine cannot take the new weights.
            StoreError: the checkpoint cannot be written, or is not what was written.
        """
        name = f"{student}-{iteration}"
        if not examples:
            return Trained(iteration, student, self._latest, 0, 0)
        pairs = encode_examples(
            examples, self._tokenizer, context=self._context, end_ids=self._ends, as_drawn=self._as_drawn
        )
        lineage = self._follow(pairs, name, seed)
        place = complete_checkpoint(self._store, name)
        if place is None:
            place = await self._train(name, pairs, seed, lineage)
        card = json.loads((place / CARD).read_text(encoding="utf-8"))
        if card["lineage"] != lineage:
            raise ResumeError(
                f"The run's checkpoint '{name}' was trained on other examples or in another way than now; start a new "
                "run for a changed recipe."
            )
        self._engine.update_weights(place, seed=seed)  # type: ignore[attr-defined]
        self._reloaded()
        self._latest, self._lineage = name, lineage
        self._trained.append(name)
        if self._knobs.keep_states is not None:
            prune_states(self._store.path, self._trained[: -self._knobs.keep_states])
        return Trained(iteration, student, name, len(pairs), card["tokens"], tuple(card["losses"]))

    async def _train(self, name: str, pairs: Sequence[TokenPair], seed: int, lineage: str) -> Path:
        """A checkpoint, written by a thread and marked by this one."""
        from nlrl.distill import processes, training
        from nlrl.distill.weights import PARAMETERS, STATE

        state = self._store.path / "checkpoints" / self._latest / STATE if self._latest else None
        if state is not None and not (state / PARAMETERS).is_file():
            raise StoreError(f"The training '{name}' cannot go on from '{self._latest}': '{state}' is gone.")
        job = Job(self._base, state, tuple(pairs), self._knobs, seed)
        stop = threading.Event()
        run = training.train if self._knobs.processes == 1 else processes.train

        def write(draft: Path) -> None:
            outcome = run(job, draft, stop)
            (draft / CARD).write_text(json.dumps(_card(job, outcome, lineage), indent=2) + "\n", encoding="utf-8")
            # So that the checkpoint, opened as any folder, is asked as it was taught.
            said = {"prompts": self._engine.prompt_set, "checkpoint": name}
            (draft / "nlrl_card.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

        work = asyncio.ensure_future(asyncio.to_thread(write_checkpoint, self._store.path, name, write))
        try:
            files = await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()  # it ends with the pass that it is in, and leaves nothing
            await asyncio.wait({work})
            raise
        self._store.record_checkpoint(name, files)
        return self._store.path / "checkpoints" / name

    def _follow(self, pairs: Sequence[TokenPair], name: str, seed: int) -> str:
        """What decides the weights that come out: the trainings so far, and all of this one."""
        how = {k: str(v) for k, v in asdict(self._knobs).items() if k not in ONLY_HOW}
        said = [self._lineage, name, seed, how, [(one.prompt, one.reply) for one in pairs]]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _card(job: Job, outcome: Outcome, lineage: str) -> dict[str, Any]:
    how = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(job.knobs).items()}
    return {
        "lineage": lineage,
        "examples": len(job.pairs),
        "tokens": sum(len(one.reply) for one in job.pairs) * job.knobs.epochs,
        "losses": list(outcome.losses_T),
        "seed": job.seed,
        "knobs": how,
        "seconds": outcome.seconds,
        "peak_bytes": outcome.peak_bytes,
    }
