"""Questions to a language model: sent together, checked, asked again a stated number of times.

This is the only place where a reply's text becomes a value, and so the only place where one can fail. A failure is
recorded and counted; nothing is put in its stead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from nlrl.engine.base import Completion, Constraint, Engine, Message, Request, Sampling
from nlrl.errors import ParseError
from nlrl.parse import Parsed, parse_reply
from nlrl.types import CallId, Failure, FailureKind, History
from nlrl_prompts import Prompt, PromptSet, Reply, constraint_pattern, fill_schema, quotes

RecordFailure = Callable[[Request, Failure], None]
"""Called once for every answer that could not be used. Answers themselves are recorded by the engine (a
`nlrl.recorded.RecordedEngine`), which has each of them before its batch is complete."""


def _no_record(request: Request, failure: Failure) -> None:
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
    token_ids: tuple[int, ...] = ()
    """The reply as the engine drew it, for training; () from an engine that shows none."""

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
    player: str = "player"
    """Through whose eyes: the name of a seat, for prompts that want it; `replace` it for another seat."""
    policy_items: int | None = None
    """Observations and moves that role "policy" reads of what it is given, from the end; None for all of them."""
    attempts: int = 3
    """How often one question may be asked before its failure stands."""
    temperature: float | None = None
    """At which replies are drawn, in place of the prompt's own."""
    reask_temperature: float = 0.7
    """A re-ask is drawn at least this hot: at temperature 0 the same bad reply would come again."""
    record: RecordFailure = _no_record
    seed: int | None = None
    """The run's seed, from which each question that is answered by drawing gets one of its own; None for no seeds."""
    logprobs: bool = False
    """Whether the probabilities of the drawn tokens are wanted."""

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """All questions in one go; those with bad replies again in one go, until `attempts` is reached."""
        last = [Completion("")] * len(questions)
        parsed: list[Parsed | None] = [None] * len(questions)
        failures: list[list[Failure]] = [[] for _ in questions]
        for attempt in range(self.attempts):
            open_ = [i for i in range(len(questions)) if parsed[i] is None]
            if not open_:
                break
            requests = [self._request(questions[i], attempt) for i in open_]
            completions = await self.engine.generate(requests)
            for i, request, completion in zip(open_, requests, completions, strict=True):
                outcome = self._check(questions[i], request, completion)
                last[i] = completion
                if isinstance(outcome, Failure):
                    self.record(request, outcome)
                    failures[i].append(outcome)
                else:
                    parsed[i] = outcome
        return [Answer(p, c.text, tuple(f), c.token_ids) for p, c, f in zip(parsed, last, failures, strict=True)]

    def messages(self, question: Question) -> tuple[Message, ...]:
        """What the model reads, whatever attempt it is."""
        known = {"task": self.task, "player": self.player, "actions": ", ".join(question.actions)}
        shown = self.prompts[question.call.role].messages(**(known | dict(question.variables)))
        return tuple(Message(role, text) for role, text in shown)  # type: ignore[arg-type]

    def _request(self, question: Question, attempt: int) -> Request:
        reply = _reply_of(self.prompts[question.call.role])
        if admissible := quotes(reply, question.candidates):
            constraint = Constraint("choice", admissible)
        elif reply.kind == "regex":
            # Asked again, a reply is made to end: whoever babbled once would be cut again.
            constraint = Constraint("regex", constraint_pattern(reply, question.actions, ends=attempt > 0))
        else:
            constraint = Constraint("json", fill_schema(reply, question.actions))
        temperature = reply.temperature if self.temperature is None else self.temperature
        temperature = temperature if attempt == 0 else max(temperature, self.reask_temperature)
        call = replace(question.call, attempt=attempt) if attempt else question.call
        seed = None if self.seed is None or temperature == 0 else sample_seed(self.seed, call)
        return Request(
            messages=self.messages(question),
            sampling=Sampling(temperature, max_tokens=reply.max_tokens, seed=seed, logprobs=self.logprobs),
            constraint=constraint,
            call=call,
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


def sample_seed(seed: int, call: CallId) -> int:
    """The seed of a call: 31 bits that depend on the run's seed and on the call's place, not on the order of asking."""
    place = (seed, call.game, call.step, call.role, call.action, call.variation, call.ply, call.attempt)
    return int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:4], "big") >> 1


def history_text(history: History) -> str:
    """A history as prompts show it: one item a line, oldest first, no final newline."""
    return "\n".join(item.rstrip("\n") for item in history)


def _reply_of(prompt: Prompt) -> Reply:
    if prompt.reply is None:
        raise ValueError(f"Template '{prompt.name}' is never sent to a model: it has no reply form.")
    return prompt.reply
