"""One model in both roles, which must not forget one while it learns the other.

Trained on values alone, a small model is no policy afterwards, and the other way round (`runs/LOG.md`). The paper has a
model for each role (arXiv 2411.14251, section 4.3); where there is one for both, it is taught the last lessons of the
other role along with the new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlrl.learn import Student
from nlrl.types import Example, StudentName, Trained


class Rehearsing:
    """A `nlrl.learn.Student` of two roles that goes over what it was last taught in the other one."""

    def __init__(self, student: Student) -> None:
        self._student = student
        self._last: dict[StudentName, tuple[Example, ...]] = {}

    async def learn(self, examples: Sequence[Example], *, iteration: int, student: StudentName, seed: int) -> Trained:
        """Train on `examples` and on the other role's last ones; `Trained.examples` counts the former.

        Without new examples nothing is learned, and what was last taught is still to be gone over.
        """
        others = [one for role, lessons in self._last.items() if role != student for one in lessons]
        if examples:
            self._last[student] = tuple(examples)
        together = [*examples, *others] if examples else []
        done = await self._student.learn(together, iteration=iteration, student=student, seed=seed)
        return replace(done, examples=len(examples))
