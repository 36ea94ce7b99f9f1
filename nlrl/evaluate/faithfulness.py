"""Faithfulness: is what an evaluation names really on the board?

Checked are threats, squares, counts, distances, the sum that leads from them to the stated worth, and, where the games
that an evaluation was made from are known, how those ended. The fixed sentences of the `compact` prompt set are read
completely; of a chat model's free sentences those that match a pattern (`claims_boards`, `claims_walks`), and the rest
is counted as unchecked. An evaluation can be faithful and wrong: whether its judgement holds is asked by
`nlrl.evaluate.values`.

The paper reports no such measure (arXiv 2411.14251); of its forerunner (2402.07157) hallucinated facts that accumulate
through backups are the named cause of failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from nlrl.evaluate.claims import Checked, check_text, said_in
from nlrl.evaluate.claims_boards import check_breakthrough, check_connect_four, check_tic_tac_toe
from nlrl.evaluate.claims_walks import check_lake, check_maze
from nlrl.evaluate.rates import Mean, Rate
from nlrl.types import Evaluation

CHECKS: dict[str, Callable[[Evaluation], Checked]] = {
    "tic_tac_toe": check_tic_tac_toe,
    "breakthrough": check_breakthrough,
    "connect_four": check_connect_four,
    "frozen_lake": check_lake,
    "maze": check_maze,
}


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """What evaluations said, held against what they were about."""

    evaluations: int
    true: Rate
    """Claims that hold, among those that were checked."""
    by_kind: tuple[tuple[str, Rate], ...]
    """The same for each kind of claim, in alphabetical order."""
    whole: Rate
    """Evaluations with claims that all hold, among those with claims."""
    unchecked: Rate
    """Sentences in which nothing could be checked, among all."""
    partly: int
    """Sentences with a checked claim and other words that were not."""
    omitted: int
    """Facts that a fixed sentence promises to list and left out."""

    def figures(self) -> Iterator[tuple[str, Rate | Mean | float]]:
        """Names and figures, as `nlrl.evaluate.grades.Grades` reports them."""
        yield "faithfulness/true", self.true
        yield "faithfulness/whole", self.whole
        yield "faithfulness/unchecked", self.unchecked
        yield "faithfulness/omitted", self.omitted
        for kind, rate in self.by_kind:
            yield f"faithfulness/{kind}", rate


def grade_faithfulness(evaluations: Iterable[Evaluation], env_id: str) -> Faithfulness:
    """Grades the words of evaluations of one game; of a game without a checker everything is unchecked."""
    check = CHECKS.get(env_id, _nothing)
    checked = [check(evaluation) for evaluation in evaluations]
    claims = [claim for one in checked for claim in one.claims]
    kinds = sorted({claim.kind for claim in claims})
    with_claims = [one for one in checked if one.claims]
    return Faithfulness(
        evaluations=len(checked),
        true=Rate(sum(claim.true for claim in claims), len(claims)),
        by_kind=tuple(
            (kind, Rate(sum(c.true for c in claims if c.kind == kind), sum(c.kind == kind for c in claims)))
            for kind in kinds
        ),
        whole=Rate(sum(all(c.true for c in one.claims) for one in with_claims), len(with_claims)),
        unchecked=Rate(sum(one.unchecked for one in checked), sum(one.sentences for one in checked)),
        partly=sum(one.partly for one in checked),
        omitted=sum(one.omitted for one in checked),
    )


def _nothing(evaluation: Evaluation) -> Checked:
    return check_text(said_in(evaluation.reply, evaluation.value.text), ())
