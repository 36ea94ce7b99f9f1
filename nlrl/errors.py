"""Every failure nlrl raises on purpose: one hierarchy, one class a boundary.

Each class also inherits the standard exception it refines, so callers who do not know nlrl can still catch it. The
message is one sentence that says what to do; the command line prints it and leaves with `exit_code`, no traceback:
2 what was asked for cannot be done, 3 the record cannot be written or read, 4 stopped early and ready to be resumed.

A bad *reply* of a language model is not an exception that ends a run: it is data (`nlrl.types.Failure`), counted and
re-asked. `ParseError` is how a parser reports one to its caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class NlrlError(Exception):
    """Base of all errors of nlrl."""

    exit_code = 2


class ConfigError(NlrlError, ValueError):
    """A recipe, an option or a combination of them cannot be used."""


class UnknownNameError(ConfigError, LookupError):
    """A name that no registry knows; the message lists those that it knows."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        super().__init__(f"Unknown {kind} '{name}'; known: {', '.join(names)}.{hint}")


class EnvError(NlrlError, ValueError):
    """A game was asked for something it does not have."""


class PromptError(NlrlError, ValueError):
    """A prompt set lacks a role, or a template's variables do not match its role."""


class EngineError(NlrlError, RuntimeError):
    """An engine could not start or could not answer."""


class EngineUnavailableError(EngineError, ImportError):
    """The packages an engine needs are not installed."""


class ContextLengthError(EngineError, ValueError):
    """A prompt and its reply do not fit into the model's context."""


class UnsafeFileError(EngineError, ValueError):
    """A model's file that is damaged or could do harm; nothing of it was used."""


class OutageError(EngineError, ConnectionError):
    """No server could be reached for longer than the config allows; the run can be resumed."""

    exit_code = 4


class BudgetError(NlrlError, RuntimeError):
    """A run has used up its budget; it can be resumed with a greater one."""

    exit_code = 4


class StoreError(NlrlError, OSError):
    """A run's record cannot be written or read."""

    exit_code = 3


class NoSuchRunError(StoreError, LookupError):
    """There is no such run, or it has no such part."""

    exit_code = 2


class ResumeError(ConfigError):
    """A run cannot go on, because what decides its answers has changed."""


class ParseError(NlrlError, ValueError):
    """A reply that does not have the form its role asks for; `kind` is a `nlrl.types.FailureKind`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
