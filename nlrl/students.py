"""Who learns in a run: the student behind each role, with everything it is taught put into the record first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlrl import registry
from nlrl.cast import Cast, Speaker, build_engine
from nlrl.config import RunConfig
from nlrl.config_parts import DistilConfig, EngineConfig
from nlrl.distill.forms import check_teachable
from nlrl.distill.rehearsal import Rehearsing
from nlrl.errors import ConfigError
from nlrl.learn import Student, Students
from nlrl.recorded import RecordedEngine
from nlrl.store import RunStore
from nlrl.task import Task
from nlrl.types import Example, Role, StudentName, Trained

LEARNERS: Mapping[str, tuple[StudentName, ...]] = {
    "policy_iteration": ("policy",),
    "td_values": ("value",),
    "actor_critic": ("value", "policy"),
}
"""Which roles learn in which loop."""
TEACHERS: Mapping[tuple[str, StudentName], tuple[Role, ...]] = {
    ("policy_iteration", "policy"): ("improve",),
    ("td_values", "value"): ("aggregate",),
    ("actor_critic", "value"): ("monte_carlo",),
    ("actor_critic", "policy"): ("improve",),
}
"""Whose replies they are taught."""
LOCAL = ("vllm", "torch")
"""Engines that hold the model in this process, so that its weights can be replaced."""


@dataclass(frozen=True, slots=True)
class RecordedStudent:
    """A student whose lessons are in the record before it is taught; its engine is another model afterwards."""

    student: Student
    engine: RecordedEngine
    store: RunStore

    async def learn(self, examples: Sequence[Example], *, iteration: int, student: StudentName, seed: int) -> Trained:
        """See `nlrl.learn.Student`; raises `StoreError` when a resumed run would teach something else than before."""
        self.store.record_lessons(examples, iteration, student)
        done = await self.student.learn(examples, iteration=iteration, student=student, seed=seed)
        self.engine.reloaded()
        return done


class FixedStudent:
    """A student that `training.learners` leaves out: it keeps its weights, and only its lessons are recorded."""

    async def learn(self, examples: Sequence[Example], *, iteration: int, student: StudentName, seed: int) -> Trained:
        """Nothing; see `nlrl.learn.Student`."""
        return Trained(iteration, student, "", 0, 0)


def fixed_roles(config: RunConfig) -> tuple[StudentName, ...]:
    """The students of a config's loop that keep their weights."""
    roles = LEARNERS[config.loop] if config.learns else ()
    return tuple(role for role in roles if role not in config.training.learners)


def check_students(config: RunConfig) -> None:
    """Raise `ConfigError` where the roles of a config cannot be taught; nothing is started for it.

    Which model a role is, and so whether it can be taught, a config says before anything is spent.
    """
    if not config.learns:
        return
    fixed = fixed_roles(config)
    if "policy" in fixed and (config.env.opponent == "pool" or config.training.past_share):
        raise ConfigError("Past policies to play against come from a policy that learns: name it in training.learners.")
    for role in (role for role in LEARNERS[config.loop] if role not in fixed):
        table: EngineConfig = getattr(config.roles, role) or config.engine
        if table.kind not in (*LOCAL, "oracle"):
            raise ConfigError(
                f"The {role} student cannot be trained behind an engine of kind '{table.kind}'; take engine.kind = "
                '"vllm" for it and put the server under roles.teacher, or keep its weights as they are with '
                f"training.learners = {[one for one in config.training.learners if one != role]}."
            )
    distil = config.distil or DistilConfig()
    if distil.loss != "tokens" and set(fixed) != set(LEARNERS[config.loop]):
        teacher = config.roles.teacher or config.engine
        if teacher.kind not in LOCAL:
            raise ConfigError(
                f"distil.loss = '{distil.loss}' needs the teacher's weights in this process, and roles.teacher is of "
                f"kind '{teacher.kind}'; take distil.loss = 'tokens'."
            )


def build_students(
    config: RunConfig, task: Task, cast: Cast, models: Mapping[Speaker, RecordedEngine], store: RunStore
) -> Students | None:
    """The students of a run; None where nothing is trained. One model in both roles is one student.

    Raises:
        ConfigError: an engine cannot take weights, a loss does not suit the models, or a student's form of reply does
            not allow what it is to be taught.
        EngineUnavailableError: a package that training needs is not installed.
    """
    if not config.learns:
        return None
    made: dict[tuple[Speaker, bool], Student] = {}
    roles: dict[str, Student] = {}
    fixed = fixed_roles(config)
    for role in LEARNERS[config.loop]:
        speaker: Speaker = getattr(cast, role)
        check_teachable(
            role, speaker.prompts, cast.teacher.prompts, actions=task.env.legal_actions,
            roles=TEACHERS[config.loop, role],
        )  # fmt: skip
        if (key := (speaker, role in fixed)) not in made:
            if role in fixed:
                inner: Student = FixedStudent()
            else:
                inner = speaker.table or _distilled(config, cast, speaker, models[speaker], store)
                if config.distil is not None and config.distil.rehearse:
                    inner = Rehearsing(inner)
            made[key] = RecordedStudent(inner, models[speaker], store)
        roles[role] = made[key]
    other = next(iter(roles.values()))
    return Students(roles.get("value", other), roles.get("policy", other))


def open_past(config: RunConfig, task: Task, speaker: Speaker, trained: Trained, run: Path) -> Speaker:
    """The policy as it is right after a training, for games against past policies; an engine of its own.

    A table is copied. A model is opened from its checkpoint in the run's folder by the torch engine, whatever runs the
    present one: several vLLM engines would each want their share of the accelerator.
    """
    if speaker.table is not None:
        copied = speaker.table.copy()
        return replace(speaker, engine=build_engine(speaker.config, config, task, copied), table=copied)
    folder = run / "checkpoints" / trained.checkpoint if trained.checkpoint else _folder(speaker)
    table = speaker.config.model_copy(update={"kind": "torch", "backbone": str(folder)})
    return replace(speaker, config=table, engine=build_engine(table, config, task))


def _distilled(config: RunConfig, cast: Cast, speaker: Speaker, model: RecordedEngine, store: RunStore) -> Student:
    from nlrl.distill.dataset import same_tokenizer
    from nlrl.distill.knobs import TrainingKnobs
    from nlrl.distill.student import DistilledStudent

    distil, base, teacher = config.distil or DistilConfig(), _folder(speaker), _folder(cast.teacher)
    assert base is not None
    more: dict[str, Any] = {} if distil.loss == "tokens" else {"teacher": teacher, "soft": _SOFT[distil.loss]}
    knobs = TrainingKnobs(**distil.model_dump(exclude={"loss", "rehearse"}), **more)
    as_drawn = cast.teacher is speaker or (teacher is not None and same_tokenizer(base, teacher))
    return DistilledStudent(base, speaker.engine, store, knobs, as_drawn=as_drawn, reloaded=model.reloaded)


_SOFT = {"logits": "teacher", "both": "both"}


def _folder(speaker: Speaker) -> Path | None:
    """The folder that a role's engine was started on; None for a model elsewhere."""
    return registry.resolve_model(speaker.config.backbone).fetch().path if speaker.config.kind in LOCAL else None
