"""Questions to a language model: sent together, checked, asked again a stated number of times.

This is the only place where a reply's text becomes a value, and so the only place where one can fail. A failure is
recorded and counted; nothing is put in its stead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nlrl.engine.base import Completion, Constraint, Engine, Message, Request, Sampling
from nlrl.errors import ParseError
from nlrl.parse import Parsed, parse_reply
from nlrl.types import CallId, Failure, FailureKind, History
from nlrl_prompts import Prompt, PromptSet, Reply, constraint_pattern, fill_schema, quotes

RecordCall = Callable[[Request, Completion, Failure | None, float], None]
"""Called once for every answer: request, answer, why it was unusable (or None), seconds since it was asked."""


def _no_record(request: Request, completion: Completion, failure: Failure | None, seconds: float) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a role: which prompt, with which variables."""

    call: CallId
    variables: Mapping[str, str]
    actions: tuple[str, ...] = ()
    """The actions a reply may name: all legal ones, or the one it is about."""
    candidates: tuple[tuple[str, float | None], ...] = ()
    """For improve: each candidate action with the number its evaluation states."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: the parsed reply, or None after `attempts` bad ones."""

    parsed: Parsed | None
    reply: str
    failures: tuple[Failure, ...]

    @property
    def calls(self) -> int:
        """How often the model was asked."""
        return len(self.failures) + (self.parsed is not None)


@dataclass(frozen=True, slots=True)
class Asker:
    """A language model together with the prompts it reads. Every operator takes one; roles may have different ones."""

    engine: Engine
    prompts: PromptSet
    task: str
    """T_L, for prompts that want it."""
    attempts: int = 3
    """How often one question may be asked before its failure stands."""
    reask_temperature: float = 0.7
    """A re-ask is drawn at least this hot: at temperature 0 the same bad reply would come again."""
    record: RecordCall = _no_record

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """All questions in one go; those with bad replies again in one go, until `attempts` is reached."""
        replies = [""] * len(questions)
        parsed: list[Parsed | None] = [None] * len(questions)
        failures: list[list[Failure]] = [[] for _ in questions]
        for attempt in range(self.attempts):
            open_ = [i for i in range(len(questions)) if parsed[i] is None]
            if not open_:
                break
            requests = [self._request(questions[i], attempt) for i in open_]
            asked = time.perf_counter()
            completions = await self.engine.generate(requests)
            seconds = time.perf_counter() - asked
            for i, request, completion in zip(open_, requests, completions, strict=True):
                outcome = self._check(questions[i], request, completion)
                failure = outcome if isinstance(outcome, Failure) else None
                self.record(request, completion, failure, seconds)
                replies[i] = completion.text
                if isinstance(outcome, Failure):
                    failures[i].append(outcome)
                else:
                    parsed[i] = outcome
        return [Answer(p, r, tuple(f)) for p, r, f in zip(parsed, replies, failures, strict=True)]

    def _request(self, question: Question, attempt: int) -> Request:
        prompt = self.prompts[question.call.role]
        reply = _reply_of(prompt)
        variables = {"task": self.task, "actions": ", ".join(question.actions), **question.variables}
        if admissible := quotes(reply, question.candidates):
            constraint = Constraint("choice", admissible)
        elif reply.kind == "regex":
            constraint = Constraint("regex", constraint_pattern(reply, question.actions))
        else:
            constraint = Constraint("json", fill_schema(reply, question.actions))
        temperature = reply.temperature if attempt == 0 else max(reply.temperature, self.reask_temperature)
        return Request(
            messages=tuple(Message(role, text) for role, text in prompt.messages(**variables)),  # type: ignore[arg-type]
            sampling=Sampling(temperature=temperature, max_tokens=reply.max_tokens),
            constraint=constraint,
            call=replace(question.call, attempt=attempt),
        )

    def _check(self, question: Question, request: Request, completion: Completion) -> Parsed | Failure:
        assert request.call is not None
        if completion.finish_reason == "error":
            return Failure(request.call, "engine", completion.error or "The engine gave no reason.", completion.text)
        reply = _reply_of(self.prompts[question.call.role])
        finished = completion.finish_reason == "stop"
        try:
            return parse_reply(completion.text, reply, question.actions, finished=finished)
        except ParseError as error:
            kind: FailureKind = error.kind  # type: ignore[assignment]
            return Failure(request.call, kind, error.reason, completion.text)


def history_text(history: History) -> str:
    """A history as prompts show it: one item a line, oldest first, no final newline."""
    return "\n".join(item.rstrip("\n") for item in history)


def _reply_of(prompt: Prompt) -> Reply:
    if prompt.reply is None:
        raise ValueError(f"Template '{prompt.name}' is never sent to a model: it has no reply form.")
    return prompt.reply
