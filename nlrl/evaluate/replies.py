"""How replies were, by role: of the form that was asked for, legal, and whether the question got an answer at all.

The authors' code puts a random legal move where a reply cannot be read and counts it nowhere (arXiv 2411.14251's
repository; facts in `nlrl.parse`). Here every bad reply is a `Failure`; what stands in the place of "fallback" is the
share of questions that stayed without an answer after all attempts, which are forfeited games and left-out evaluations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nlrl.evaluate.rates import Rate
from nlrl.types import CallId, Failure


@dataclass(frozen=True, slots=True)
class ReplyGrades:
    """The replies of one role, or of all."""

    role: str
    """"all" for every reply."""
    parsed: Rate
    """Replies of the form asked for, among all."""
    legal: Rate
    """Those that named no illegal move, among the parsed."""
    at_first: Rate
    """Questions whose first reply could be used."""
    unanswered: Rate
    """Questions that had no usable reply after all attempts."""
    failures: tuple[tuple[str, int], ...]
    """Bad replies by kind (`nlrl.types.FailureKind`), in alphabetical order."""


def grade_replies(calls: Iterable[tuple[CallId, Failure | None]]) -> dict[str, ReplyGrades]:
    """Grades by role, and under "all" of everything.

    Args:
        calls: each call with what was wrong with its reply; of a recorded run
            `(c.request.call, c.failure) for c in reader.calls()`.
    """
    found = list(calls)
    roles = sorted({call.role for call, _ in found})
    by_role = {role: [pair for pair in found if pair[0].role == role] for role in roles}
    return {name: _grade(name, pairs) for name, pairs in (("all", found), *by_role.items())}


def _grade(role: str, calls: list[tuple[CallId, Failure | None]]) -> ReplyGrades:
    kinds = Counter(failure.kind for _, failure in calls if failure is not None)
    parsed = len(calls) - sum(n for kind, n in kinds.items() if kind != "illegal")
    first: dict[CallId, bool] = {}
    answered: dict[CallId, bool] = {}
    for call, failure in calls:
        question = replace(call, attempt=0)
        if call.attempt == 0:
            first[question] = failure is None
        answered[question] = answered.get(question, False) or failure is None
    return ReplyGrades(
        role=role,
        parsed=Rate(parsed, len(calls)),
        legal=Rate(parsed - kinds["illegal"], parsed),
        at_first=Rate(sum(first.values()), len(first)),
        unanswered=Rate(len(answered) - sum(answered.values()), len(answered)),
        failures=tuple(sorted(kinds.items())),
    )
