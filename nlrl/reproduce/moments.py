"""Where a run decided something, and on what evidence: the same form for look-aheads and for games that were played."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nlrl.store_reader import RunReader
from nlrl.types import Candidate, Decision, Step

_BEFORE = (
    "SELECT s.game, s.step, s.action, coalesce(p.iteration, 0), coalesce(p.name, ''), coalesce(p.stage, ''), "
    "coalesce(b.observation, g.observation), coalesce(b.picture, g.picture) "
    "FROM steps s JOIN games g ON g.game = s.game LEFT JOIN phases p ON p.number = g.phase "
    "LEFT JOIN steps b ON b.game = s.game AND b.step = s.step - 1"
)
"""Each move with where it was made: ids of the texts before it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A position in which somebody decided on evidence."""

    text: int
    """Id of its observation in the record's texts."""
    observation: str
    picture: str
    step: int
    """Moves made before it, where it first occurred."""
    chosen: str
    """What was chosen there on the last evidence."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a move."""

    action: str
    trials_K: tuple[str, ...]
    """Look-aheads or games, a line each: the moves, what they brought, and what V^L said of their end."""
    value: str
    """Its evaluation Q^L."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A decision on evidence, in an iteration (0 in a run that only looks ahead)."""

    iteration: int
    evidence_A: tuple[Evidence, ...]
    chosen: str
    thought: str


def places_of(reader: RunReader) -> list[tuple[Place, dict[int, str]]]:
    """Each position that was decided in on evidence, with the plain policy's move there by iteration.

    The plain policy is what is evaluated in a loop that learns, and a baseline beside a run that does not.
    """
    chosen: dict[int, tuple[int, int, str]] = {}
    plain: dict[int, dict[int, str]] = {}
    for _, step, action, iteration, phase, stage, text, picture in reader.rows(f"{_BEFORE} ORDER BY s.game, s.step"):
        if stage == "plain policy" or (phase == "evaluate" and stage != "policy iteration"):
            plain.setdefault(text, {}).setdefault(iteration, str(action))
        elif _looks_ahead(phase, stage):
            chosen[text] = (chosen[text][0] if text in chosen else step, picture, str(action))
    for _, text, action, _ in _improved(reader):
        if text in plain and action is not None:
            step, picture = _seen(reader, text)
            chosen[text] = (step, picture, action)
    return [
        (Place(text, reader.text(text), reader.text(picture), step, action), plain.get(text, {}))
        for text, (step, picture, action) in chosen.items()
    ]


def _looks_ahead(phase: str, stage: str) -> bool:
    """Whether a phase's own moves are made on evidence; a record of the first versions has neither name."""
    return phase == "improve" or stage in ("policy iteration", "")


def evidence_at(reader: RunReader, place: Place) -> list[Moment]:
    """What each iteration had about a position, in order; the first decision of an iteration stands for it."""
    found: dict[int, Moment] = {}
    query = f"{_BEFORE} WHERE coalesce(b.observation, g.observation) = ? ORDER BY s.game, s.step"
    for game, step, _, iteration, phase, stage, *_ in reader.rows(query, place.text):
        if iteration in found or not _looks_ahead(phase, stage):
            continue
        decision = next(
            e.decision for e in reader.events(game) if isinstance(e, Step) and e.step == step
        )  # fmt: skip
        if decision.choice is not None and decision.choice.candidates_A:
            found[iteration] = _looked_ahead(iteration, decision)
    for iteration, text, action, (thought, candidates) in _improved(reader):
        if text == place.text and action is not None and iteration not in found:
            evidence = [_played(reader, iteration, place.text, *one) for one in candidates]
            found[iteration] = Moment(iteration, tuple(evidence), action, reader.text(thought))
    return [found[iteration] for iteration in sorted(found)]


def _looked_ahead(iteration: int, decision: Decision) -> Moment:
    assert decision.choice is not None
    evidence = tuple(_of(candidate) for candidate in decision.choice.candidates_A)
    return Moment(iteration, evidence, decision.choice.action, decision.choice.thought)


def _of(candidate: Candidate) -> Evidence:
    trials = (
        f"{', '.join(v.look.actions)}; reward {v.look.total_reward:g}. {v.look.terminal_text or v.leaf.text}"
        for v in candidate.variations_K
    )
    return Evidence(candidate.action, tuple(trials), candidate.value.text)


def _improved(reader: RunReader) -> Iterator[tuple[int, int, str | None, tuple[int, list[tuple[str, int]]]]]:
    """(iteration, id of the observation, move, (id of the thought, [(move, id of its evaluation)])) of each choice."""
    columns = "p.iteration, i.history, i.action, i.thought, i.candidates"
    for iteration, history, action, thought, candidates in reader.rows(
        f"SELECT {columns} FROM improvements i JOIN phases p ON p.number = i.phase ORDER BY i.phase, i.item"
    ):
        named = [(str(move), text) for move, _, _, text in json.loads(candidates)]
        if thought is not None:
            yield iteration, json.loads(history)[-1], action, (thought, named)


def _seen(reader: RunReader, text: int) -> tuple[int, int]:
    """(moves before it, id of its picture) of a position, where it first occurred."""
    rows = reader.rows(f"{_BEFORE} WHERE coalesce(b.observation, g.observation) = ? LIMIT 1", text)
    return rows[0][1], rows[0][7]


def _played(reader: RunReader, iteration: int, text: int, action: str, value: int) -> Evidence:
    """A move by the games that went on with it, where the iteration's estimate names any."""
    rows = reader.rows(
        "SELECT e.games, e.text, e.history FROM estimates e JOIN phases p ON p.number = e.phase "
        "WHERE p.iteration = ? AND e.action = ?",
        *(iteration, action),
    )
    trials: list[str] = []
    for games, said, history in rows:
        if json.loads(history)[-1] == text:
            trials += [_rest(reader, game, text) for game in json.loads(games)]
            trials += [f"G1 over these: {reader.text(said)}"]
    return Evidence(action, tuple(trials), reader.text(value))


def _rest(reader: RunReader, game: int, text: int) -> str:
    """How a game went on from a position, in one line."""
    query = f"{_BEFORE} WHERE s.game = ? ORDER BY s.step"
    moves: Sequence[tuple] = reader.rows(query, game)
    at = next((i for i, row in enumerate(moves) if row[6] == text), 0)
    ((ending, total),) = reader.rows("SELECT coalesce(ending, ''), total_return FROM games WHERE game = ?", game)
    return f"{', '.join(str(row[2]) for row in moves[at:])}; return {total:g}. {ending}"
