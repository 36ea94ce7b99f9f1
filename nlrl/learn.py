"""What a loop asks of a model that learns: take these examples in, then answer with what was learned.

A loop (`nlrl.iterate`) knows nothing of optimizers, engines or files. It hands examples to a `Student` and goes on when
the model behind the student's `Asker` has changed. Implementations: `nlrl.distill.student` (transformers' trainer and
new weights for the running engine), `nlrl.engine.oracle` (a table, with which every loop is tabular reinforcement
learning).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nlrl.types import Example, StudentName, Trained


@runtime_checkable
class Student(Protocol):
    """A model that learns by context distillation (arXiv 2411.14251, section 4.3)."""

    async def learn(self, examples: Sequence[Example], *, iteration: int, student: StudentName, seed: int) -> Trained:
        """Train on `examples`, put the new weights where the student's questions are answered, and say what was done.

        The same student with the same examples, iteration and seed is the same training. One that a run has done before
        it was resumed is not repeated: its weights are put back instead.

        Raises:
            ConfigError: the examples do not suit the model (no target tokens, longer than its context).
            EngineError: the engine cannot take the new weights.
        """
        ...


@dataclass(frozen=True, slots=True)
class Students:
    """Who learns what; one object in both places is one model that learns both."""

    value: Student
    policy: Student
