"""One position through a run: what was tried there, what was said of it, what was chosen, and what is best.

Everything is read from the record; only the verdict is the solver's. A run that learns is shown at two iterations, so
that one sees what the evaluations were before and after; a run without training at its one look-ahead, beside the plain
policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from nlrl.archive import recorded
from nlrl.config import RunConfig
from nlrl.errors import NoSuchRunError, StoreError
from nlrl.evaluate.graders import Grader, make_grader
from nlrl.evaluate.moves import TOLERANCE
from nlrl.reproduce.moments import Moment, Place, evidence_at, places_of
from nlrl.safe_text import as_text, one_line, safe_text
from nlrl.store import RunReader
from nlrl.task import build_task

SHOWN = 3
"""Roll-outs of a move that are written out."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A position, and all that the run has about it."""

    run: str
    what: str
    """The run's loop and game."""
    place: Place
    plain: tuple[tuple[int, str], ...]
    """(iteration, move) of the plain policy."""
    moments: tuple[Moment, ...]
    """Before and after; one where there is only one."""
    exact: Mapping[str, float] | None
    """Q* of each move; None where no solver is certain."""


def explain_recorded(
    runs: Path, run_id: str, state: str | None, between: tuple[int | None, int | None], target: Path | None
) -> None:
    """Print the explanation of a position, or write it to `target` as Markdown.

    Raises:
        NoSuchRunError: there is no such run, position or iteration in it.
        StoreError: the file cannot be written.
    """
    with RunReader.open(recorded(runs, run_id)) as reader:
        text = markdown(explain(reader, state, between))
    if target is None:
        Console().print(Markdown(text))
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"The explanation cannot be written to {target}: {error.strerror}.") from error
    Console().print(as_text(f"Wrote {target}"))


def explain(
    reader: RunReader, state: str | None = None, between: tuple[int | None, int | None] = (None, None)
) -> Explained:
    """What the run knows of a position.

    Args:
        reader: its record.
        state: words that the observation contains; None for one in which play became better.
        between: iterations to show; None for the first and the last with evidence about the position.

    Raises:
        NoSuchRunError: nothing was decided in such a position, or not in that iteration.
    """
    config = RunConfig.model_validate(reader.config)
    grader = make_grader(build_task(config).env)
    place, plain = _chosen(reader, state, grader)
    found = evidence_at(reader, place)
    if not found:
        raise NoSuchRunError(f"Run '{reader.id}' has no evidence about that position; leave --state out for one.")
    first, last = between
    moments = [_moment(reader, found, first, 0)]
    if (later := _moment(reader, found, last, -1)).iteration != moments[0].iteration:
        moments.append(later)
    exact = None if grader is None else grader.moves(place.observation, place.step)
    game = f"{config.env.id} {config.env.map}" if config.env.map else config.env.id
    what = f"{config.loop.replace('_', ' ')} on {game}"
    return Explained(reader.id, what, place, tuple(sorted(plain.items())), tuple(moments), exact)


def _moment(reader: RunReader, found: Sequence[Moment], iteration: int | None, otherwise: int) -> Moment:
    if iteration is None:
        return found[otherwise]
    known = {moment.iteration: moment for moment in found}
    if iteration not in known:
        listed = ", ".join(map(str, known))
        raise NoSuchRunError(f"Run '{reader.id}' has evidence about that position in iterations {listed} only.")
    return known[iteration]


def _chosen(reader: RunReader, state: str | None, grader: Grader | None) -> tuple[Place, dict[int, str]]:
    """The position, and what the plain policy did there by iteration."""
    found = places_of(reader)
    if state is not None:
        named = [pair for pair in found if " ".join(state.split()) in " ".join(pair[0].observation.split())]
        if not named:
            raise NoSuchRunError(f"No decision of run '{reader.id}' was made where the observation says '{state}'.")
        return max(named, key=lambda pair: len(pair[1]))
    if not found:
        raise NoSuchRunError(f"Run '{reader.id}' has no decisions that were made from evidence.")
    return max(found, key=lambda pair: (_gain(grader, *pair), len(pair[1])))


def _gain(grader: Grader | None, place: Place, plain: Mapping[int, str]) -> float:
    """What the plain policy's move lost at first, less what the last move that was chosen there loses."""
    exact = None if grader is None or not plain else grader.moves(place.observation, place.step)
    if exact is None:
        return 0.0
    first, last = plain[min(plain)], plain[max(plain)] if len(plain) > 1 else place.chosen
    return exact.get(last, min(exact.values())) - exact.get(first, min(exact.values()))


def markdown(found: Explained) -> str:
    """The explanation as Markdown; texts of models stand in code spans, so that they format nothing."""
    lines = [f"# From a position to a better move: {_plain(found.what)}", "", f"Run `{found.run}`.", ""]
    lines += ["## The position", "", "```", safe_text(found.place.picture).replace("```", ""), "```", ""]
    lines += [_code(found.place.observation), ""]
    if found.plain:
        first = found.plain[0]
        lines += [f"Untrained and without looking ahead, the policy answers {_code(first[1])}{_loss(found, first[1])}."]
    for number, moment in enumerate(found.moments):
        lines += ["", *_moment_lines(found, moment, ("before", "after")[number] if len(found.moments) > 1 else "")]
    if len(found.plain) > 1:
        iteration, move = found.plain[-1]
        lines += ["", "## What was learned", ""]
        lines += [f"After iteration {iteration}, again without looking ahead: {_code(move)}{_loss(found, move)}."]
    lines += ["", "## The exact verdict", ""]
    if found.exact is None:
        return "\n".join([*lines, "No solver is certain here."]) + "\n"
    best = max(found.exact.values())
    lines += ["| move | value under perfect play | |", "|---|---|---|"]
    for move, value in found.exact.items():
        lines.append(f"| {_code(move)} | {value:g} | {'best' if value >= best - TOLERANCE else ''} |")
    return "\n".join(lines) + "\n"


def _moment_lines(found: Explained, moment: Moment, when: str) -> list[str]:
    title = f"## Iteration {moment.iteration}" if moment.iteration else "## Looking ahead"
    lines = [f"{title} ({when})" if when else title]
    for evidence in moment.evidence_A:
        lines += ["", f"### {_plain(evidence.action)}", ""]
        lines += [f"- {_code(trial)}" for trial in evidence.trials_K[:SHOWN]]
        if (more := len(evidence.trials_K) - SHOWN) > 0:
            lines.append(f"- and {more} more")
        if not evidence.trials_K:
            lines.append("Nothing of this iteration began with it; its evaluation is the value student's own.")
        lines += ["", f"Said of it: {_code(evidence.value)}"]
    lines += ["", f"Chosen: {_code(moment.chosen)}{_loss(found, moment.chosen)}, in the words {_code(moment.thought)}."]
    return lines


def _loss(found: Explained, move: str) -> str:
    """How good a move is, in brackets."""
    if found.exact is None or move not in found.exact:
        return ""
    lost = max(found.exact.values()) - found.exact[move]
    return " (a best move)" if lost <= TOLERANCE else f" (worth {lost:g} less than the best)"


def _code(text: str) -> str:
    """A text of a model or a game on one line, as code."""
    return f"`{one_line(text, 400).replace('`', chr(39)).strip() or ' '}`"


def _plain(text: str) -> str:
    return one_line(text, 80).replace("`", "'").replace("|", "/")
