"""Keys live in environment variables, and stay there: not in anything written, not in other programs' environments.

A variable is taken for a secret when its name says so, as in OPENAI_API_KEY, HF_TOKEN, DB_PASSWORD.
"""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_SAYS_SECRET = re.compile(r"(^|_)(API_?KEY|ACCESS_KEY|SECRET_KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)")
SHORTEST = 8
"""A shorter value is no secret worth the name, and taking it out would garble ordinary text."""


def secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that hold secrets, by name."""
    given = os.environ if environment is None else environment
    return {name: value for name, value in given.items() if _SAYS_SECRET.search(name.upper())}


def redact(text: str) -> str:
    """`text` with every secret of the environment replaced by the name of its variable in brackets."""
    for name, value in secrets().items():
        if len(value.strip()) >= SHORTEST:
            text = text.replace(value, f"[{name}]").replace(value.strip(), f"[{name}]")
    return text


def without_secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a program that needs no keys."""
    given = dict(os.environ if environment is None else environment)
    return {name: value for name, value in given.items() if name not in secrets(given)}


@contextmanager
def hidden_secrets() -> Iterator[None]:
    """Within it, this process's environment has no secrets, so whatever is started inherits none."""
    held = secrets()
    for name in held:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(held)


def redact_logs() -> None:
    """From now on no log record of any library holds a secret; safe to call twice."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def make_redacted(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit; logging would tell of it with all of them
            message = f"{record.msg} {record.args}"
        record.msg, record.args = redact(message), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    make_redacted.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)
