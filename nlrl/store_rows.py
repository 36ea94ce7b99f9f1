"""What loops yield as rows of a record: one function a kind of event, each within a transaction of its caller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nlrl import codec
from nlrl.store_file import RunFile
from nlrl.store_schema import compact_json, pack_floats, pack_ids, pack_text, to_column
from nlrl.types import Candidate, Estimated, Evaluation, Example, GameEnd, GameStart, Improved, Situation, Step, Trained


def insert_game(file: RunFile, event: GameStart, phase: int) -> None:
    """A game that begins in a phase."""
    seen = (file.text(event.observation), file.text(event.picture))
    row = (event.game, phase, to_column(event.start), *seen, event.optimal_return, None, None, None, None)
    file.insert_once("games", row, key=1, fixed=6)


def insert_step(file: RunFile, event: Step) -> None:
    """A move, and every evaluation behind it: those in a table of their own, where SQL can reach them."""
    seen = (file.text(event.observation), file.text(event.picture), int(event.legal))
    move = (event.game, event.step, to_column(event.action), event.reward, event.total_return)
    if not file.insert_once("steps", (*move, *seen, pack_text(codec.dumps(event.decision))), key=2):
        return
    for candidate in event.decision.choice.candidates_A if event.decision.choice else ():
        action = to_column(candidate.action)
        for number, value in [(-1, candidate.value), *((k, v.leaf) for k, v in enumerate(candidate.variations_K))]:
            row = (event.game, event.step, action, number, value.source, value.number, file.text(value.text))
            file.insert_once("evaluations", row, key=4)


def end_game(file: RunFile, event: GameEnd) -> None:
    """How a game ended; raises `StoreError` when it had ended in another way."""
    row = (event.outcome, to_column(event.ending), event.total_return, event.steps)
    file.update_once("games", "outcome, ending, total_return, steps", row, "game", event.game)


def insert_estimates(file: RunFile, event: Estimated, phase: int) -> None:
    """The evaluations that were made from games or look-aheads, each with the numbers of those games."""
    for item, one in enumerate(event.evaluations):
        value = (one.value.source, one.value.number, file.text(one.value.text), file.text(one.reply))
        games = compact_json(games_behind(one))
        row = (phase, item, *_place(file, one.situation, one.action), *value, len(one.games_K), games)
        file.insert_once("estimates", row, key=2)


def insert_improvements(file: RunFile, event: Improved, phase: int) -> None:
    """What I chose in each situation, and from which candidates."""
    for item, (situation, choice) in enumerate(zip(event.situations_S, event.choices_S, strict=True)):
        action, thought, candidates = None, None, "[]"
        if choice is not None:
            action, thought = choice.action, file.text(choice.thought)
            candidates = compact_json([_candidate(file, candidate) for candidate in choice.candidates_A])
        row = (phase, item, *_place(file, situation, action), thought, candidates)
        file.insert_once("improvements", row, key=2)


def insert_lessons(file: RunFile, examples: Sequence[Example], iteration: int, student: str) -> None:
    """What a student is to be trained on in an iteration, in order."""
    for position, example in enumerate(examples):
        insert_example(file, example)
        file.insert_once("lessons", (iteration, student, position, example.id), key=3)


def insert_example(file: RunFile, example: Example) -> None:
    """A pair that a model is to be trained on."""
    texts = (file.messages(example.messages), file.text(example.target))
    ids = (pack_ids(example.target_token_ids), example.weight, compact_json(list(example.sources)))
    file.insert_once("examples", (example.id, example.role, *texts, *ids), key=1)


def insert_training(file: RunFile, event: Trained) -> None:
    """A training that was done."""
    done = (event.checkpoint, event.examples, event.tokens, pack_floats(event.losses_T))
    file.insert_once("trainings", (event.iteration, event.student, *done), key=2)


def games_behind(evaluation: Evaluation) -> list[int]:
    """Numbers of the run's games that an evaluation was made from."""
    return sorted({look.game for look in evaluation.games_K if look.game is not None})


def _place(file: RunFile, situation: Situation, action: str | None) -> tuple[Any, ...]:
    call, moved = situation.call, None if action is None else to_column(action)
    return call.game, call.step, situation.player, file.texts(situation.history), moved


def _candidate(file: RunFile, candidate: Candidate) -> list[Any]:
    number = candidate.value.number
    plain = None if number is None or not math.isfinite(number) else number
    return [candidate.action, candidate.value.source, plain, file.text(candidate.value.text)]
