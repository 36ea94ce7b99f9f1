"""What loops yield as rows of a record: one function a kind of event, each within a transaction of its caller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nlrl import codec
from nlrl.engine.base import Completion, Request
from nlrl.store_file import RunFile
from nlrl.store_packing import pack_floats, pack_ids, to_column
from nlrl.store_schema import compact_json, constraint_text, messages_of
from nlrl.store_views import by_ids, decision_head
from nlrl.types import (
    CallId,
    Candidate,
    Estimated,
    Evaluation,
    Example,
    Failure,
    GameEnd,
    GameStart,
    Improved,
    Situation,
    Step,
    Trained,
)


def insert_call(file: RunFile, key: str, request: Request, completion: Completion, seconds: float) -> bool:
    """An answer of the language model; returns whether it is new."""
    call, drawn = request.call, request.sampling
    if _number(file, key, call) is not None:
        return False
    place: tuple[Any, ...] = (None, None, None, None, 0, None)
    if call is not None:
        action = None if call.action is None else file.text(call.action)
        place = (call.game, call.step, action, call.variation, call.ply, call.attempt)
    kind = "" if call is None else call.role
    form = None if request.constraint is None else file.text(constraint_text(request.constraint), "form")
    ids = ((completion.prompt_token_ids, f"prompt {kind}"), (completion.token_ids, f"reply {kind}"))
    row = (
        *(key, file.kind(None if call is None else call.role, drawn), *place, *_said(file, request, kind), form),
        *(drawn.seed, file.text(completion.text, f"reply {kind}")),
        None if completion.finish_reason == "stop" else completion.finish_reason,
        None if completion.error is None else to_column(completion.error),
        *(completion.constrained, *(file.blob(pack_ids(one), of) if one else None for one, of in ids)),
        *(pack_floats(completion.logprobs), completion.prompt_tokens, completion.completion_tokens),
        round(10_000 * seconds),
    )
    file.insert("calls", row)
    return True


def insert_failure(file: RunFile, key: str, failure: Failure) -> bool:
    """Why an answer could not be used; returns whether that is new."""
    number = _number(file, key, failure.call)
    if number is None or file.read("SELECT 1 FROM failures WHERE call = ?", number):
        return False
    reply = file.text(failure.reply, f"reply {failure.call.role}")
    file.insert_once("failures", (number, failure.kind, to_column(failure.reason), reply), key=1)
    return True


def _number(file: RunFile, key: str, call: CallId | None) -> int | None:
    place = (None, None) if call is None else (call.game, call.step)
    found = file.read("SELECT number FROM main.calls WHERE game IS ? AND step IS ? AND key = ?", *place, key)
    return found[0][0] if found else None


def _said(file: RunFile, request: Request, kind: str) -> tuple[int | None, int | None, str | None]:
    """(id of what the system says, id of the prompt, other lists of messages)."""
    messages = messages_of(request)
    match messages:
        case (("user", prompt),):
            return None, file.text(prompt, f"user {kind}"), None
        case (("system", system), ("user", prompt)):
            return file.text(system, f"system {kind}"), file.text(prompt, f"user {kind}"), None
    return None, None, file.messages(messages, kind)


def insert_game(file: RunFile, event: GameStart, phase: int) -> None:
    """A game that begins in a phase."""
    seen = (file.text(event.observation, "observation"), file.text(event.picture, "picture"))
    row = (event.game, phase, to_column(event.start), *seen, event.optimal_return, None, None, None, None)
    file.insert_once("games", row, key=1, fixed=6)


def insert_step(file: RunFile, event: Step) -> None:
    """A move, and every evaluation behind it: those in a table of their own, where SQL can reach them."""
    seen = (file.text(event.observation, "observation"), file.text(event.picture, "picture"), int(event.legal))
    move = (event.game, event.step, file.text(event.action), event.reward, event.total_return)
    decision, choice = event.decision, event.decision.choice
    told = compact_json(by_ids(codec.encode(decision), lambda text: file.text(text, "observation")))
    head = decision_head(event.game, event.step)
    assert told.startswith(head), "a step's decision is of its game and step"
    bare = "{" + told[len(head) :]
    kind = f"{decision.player} {decision.own} {bool(choice and choice.candidates_A)}"
    if not file.insert_once("steps", (*move, *seen, *file.packed(bare.encode("ascii"), kind)), key=2, fixed=8):
        if file.read("SELECT decision FROM steps WHERE game = ? AND step = ?", *move[:2]) != [(told,)]:
            raise file.other_course(f"steps, game {event.game}, step {event.step}")
        return
    for candidate in choice.candidates_A if choice else ():
        action = file.text(candidate.action)
        for number, value in [(-1, candidate.value), *((k, v.leaf) for k, v in enumerate(candidate.variations_K))]:
            said = (file.text(value.source), value.number, file.text(value.text, "evaluation"))
            file.insert_once("evaluations", (event.game, event.step, action, number, *said), key=4)


def end_game(file: RunFile, event: GameEnd) -> None:
    """How a game ended; raises `StoreError` when it had ended in another way."""
    row = (event.outcome, to_column(event.ending), event.total_return, event.steps)
    file.update_once("games", "outcome, ending, total_return, steps", row, "game", event.game)


def insert_estimates(file: RunFile, event: Estimated, phase: int) -> None:
    """The evaluations that were made from games or look-aheads, each with the numbers of those games."""
    for item, one in enumerate(event.evaluations):
        texts = (file.text(one.value.text, "evaluation"), file.text(one.reply, "reply"))
        value = (one.value.source, one.value.number, *texts)
        games = compact_json(games_behind(one))
        row = (phase, item, *_place(file, one.situation, one.action), *value, len(one.games_K), games)
        file.insert_once("estimates", row, key=2)


def insert_improvements(file: RunFile, event: Improved, phase: int) -> None:
    """What I chose in each situation, and from which candidates."""
    for item, (situation, choice) in enumerate(zip(event.situations_S, event.choices_S, strict=True)):
        action, thought, candidates = None, None, "[]"
        if choice is not None:
            action, thought = choice.action, file.text(choice.thought, "reply")
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
    texts = (file.messages(example.messages, example.role), file.text(example.target, "reply"))
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
    return call.game, call.step, situation.player, file.texts(situation.history, "observation"), moved


def _candidate(file: RunFile, candidate: Candidate) -> list[Any]:
    number = candidate.value.number
    plain = None if number is None or not math.isfinite(number) else number
    return [candidate.action, candidate.value.source, plain, file.text(candidate.value.text, "evaluation")]
