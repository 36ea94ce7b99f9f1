"""Duplicate questions asked once: 256 games begin on the empty board, and one answer does for all of them.

The authors' code asks about every occurrence of a state (arXiv 2411.14251's pipeline: some 1,956 states an iteration
of 512 games, 256 of them the empty board). Here questions that would be the same text are one question, unless they
are meant as separate samples, which callers say by their number (`CallId.variation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nlrl.ask import Answer, Asker, Question
from nlrl.types import Failure


@dataclass(frozen=True, slots=True)
class Answers:
    """What came of many questions."""

    answers_I: tuple[Answer, ...]
    """One a question, in order; equal questions share one answer."""
    distinct: tuple[Answer, ...]
    """The answers that were asked for."""

    @property
    def calls(self) -> int:
        """How often the model was asked."""
        return sum(answer.calls for answer in self.distinct)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Every reply that could not be used, once."""
        return tuple(failure for answer in self.distinct for failure in answer.failures)


async def ask_once(ask: Asker, questions: Sequence[Question], *, samples: bool = False) -> Answers:
    """All questions in one go, equal ones once, under the `CallId` of the first of them.

    With `samples`, questions that differ in `call.variation` are not equal: they are draws of a sample.
    """
    place: dict[tuple, int] = {}
    kept: list[Question] = []
    where = []
    for question in questions:
        variables = tuple(sorted(question.variables.items()))
        sample = question.call.variation if samples else None
        key = (question.call.role, sample, variables, question.actions, question.candidates)
        if key not in place:
            place[key] = len(kept)
            kept.append(question)
        where.append(place[key])
    distinct = tuple(await ask.ask(kept))
    return Answers(tuple(distinct[i] for i in where), distinct)
