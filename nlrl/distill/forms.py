"""Whether a student may say what its teacher says: checked on the forms of their replies, before anything is asked.

A value student answers in the form of role "value", and is taught the replies of "monte_carlo", "aggregate" or
"blend"; a policy student answers as "policy" and is taught those of "improve". Whether one regular expression or schema
allows all that another does is not decided here; instead texts that the teacher's form allows are put to the student's:
every alternative and both ends of every repetition and range, each varied alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

# The compiler's own reading of a pattern; there is no public one.
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parse  # type: ignore[attr-defined]
from typing import Any

from nlrl.errors import ConfigError, ParseError
from nlrl.parse import parse_reply
from nlrl.types import Role, StudentName
from nlrl_prompts import PromptSet, Reply, fill_actions, fill_schema

TAUGHT: dict[StudentName, tuple[Role, tuple[Role, ...]]] = {
    "value": ("value", ("monte_carlo", "aggregate", "blend")),
    "policy": ("policy", ("improve",)),
}
"""Each student's own role, and the teacher's roles whose replies it is trained on."""
_LONGEST = 400


def check_teachable(
    student: StudentName,
    student_prompts: PromptSet,
    teacher_prompts: PromptSet,
    *,
    actions: Sequence[str],
    roles: Sequence[Role] | None = None,
) -> None:
    """Raise `ConfigError` unless the student's form of reply allows what the teacher's forms allow.

    `actions` are any of the game's moves; `roles` are those of the teacher that are used (all of `TAUGHT` by default).
    """
    own, taught = TAUGHT[student]
    form = student_prompts[own].reply
    assert form is not None
    for role in roles or taught:
        teacher = teacher_prompts[role].reply
        assert teacher is not None
        for text in sample_replies(teacher, actions):
            try:
                parse_reply(text, form, actions)
            except ParseError as error:
                raise ConfigError(
                    f"The {student} student could not say {text[:80]!r}, which its teacher may answer as '{role}': in "
                    f"replies.toml of prompt set '{student_prompts.name}' [{own}] must allow what [{role}] of "
                    f"'{teacher_prompts.name}' allows."
                ) from error
        if teacher.max_tokens > form.max_tokens:
            raise ConfigError(
                f"The {student} student may say {form.max_tokens} tokens, its teacher {teacher.max_tokens} as "
                f"'{role}': raise max_tokens of [{own}] in replies.toml of prompt set '{student_prompts.name}'."
            )


def sample_replies(reply: Reply, actions: Sequence[str]) -> list[str]:
    """Different texts that a form allows; the first is the plainest."""
    if reply.kind == "json":
        return _objects(json.loads(fill_schema(reply, tuple(actions))))
    return list(dict.fromkeys(_sequence(sre_parse.parse(fill_actions(reply.pattern, tuple(actions))))))


def _sequence(items: Any) -> list[str]:
    """Texts of parts in a row: the first of each, then each other text of each part alone."""
    parts = [_part(operator, argument) for operator, argument in items]
    first = [texts[0] for texts in parts]
    varied = ("".join((*first[:i], text, *first[i + 1 :])) for i, texts in enumerate(parts) for text in texts[1:])
    return ["".join(first), *varied]


def _part(operator: Any, argument: Any) -> list[str]:
    if operator is sre.LITERAL:
        return [chr(argument)]
    if operator is sre.IN:
        return _characters(argument)
    if operator is sre.ANY:
        return ["a"]
    if operator is sre.SUBPATTERN:
        return _sequence(argument[-1])
    if operator is sre.BRANCH:
        return [text for branch in argument[1] for text in _sequence(branch)]
    if operator in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, inner = argument
        texts = _sequence(inner)
        times = least + 2 if most is sre.MAXREPEAT else int(most)
        return [texts[0] * least, *(text * times for text in texts)]
    raise ValueError(f"A reply's pattern may not use {str(operator).lower()}.")


def _characters(items: Any) -> list[str]:
    found = []
    for operator, argument in items:
        if operator is sre.NEGATE:
            return ["a"]
        if operator is sre.LITERAL:
            found.append(chr(argument))
        elif operator is sre.RANGE:
            found += [chr(argument[0]), chr(argument[1])]
        else:
            found += {sre.CATEGORY_DIGIT: ["0", "9"], sre.CATEGORY_WORD: ["a"], sre.CATEGORY_SPACE: [" "]}[argument]
    return found


def _objects(schema: dict[str, Any]) -> list[str]:
    values = {name: _values(one) for name, one in schema["properties"].items()}
    first = {name: texts[0] for name, texts in values.items()}
    varied = [first | {name: value} for name, texts in values.items() for value in texts[1:]]
    return [json.dumps(one) for one in (first, *varied)]


def _values(schema: dict[str, Any]) -> list[Any]:
    if "enum" in schema:
        return list(schema["enum"])
    if schema["type"] == "string":
        return ["a", "a" * min(schema.get("maxLength", _LONGEST), _LONGEST)]
    if schema["type"] in ("number", "integer"):
        return [schema.get("minimum", -100), schema.get("maximum", 100)]
    raise ValueError(f"A reply's schema may not hold a property of type '{schema['type']}'.")
