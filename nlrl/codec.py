"""Frozen dataclasses to JSON and back, by their type annotations alone.

What it knows: str, int, float, bool, None, Literal, Optional, tuples (fixed and of any length), dicts with
string keys, dataclasses, and unions. A union of dataclasses is told apart by a "type" key, any other union
by the JSON type. A field whose metadata is `nlrl.types.UNRECORDED` is neither written nor read. Floats that
JSON lacks are written as the strings "nan", "inf" and "-inf". Nothing is executed and no class is named by
the data, so a file from a stranger can at worst be refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from functools import lru_cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class CodecError(ValueError):
    """Data that does not have the shape of the type it is read as; one sentence."""


_COMPACT = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def dumps(value: Any, as_type: Any = None) -> str:
    """JSON text of a record; give `as_type` when it is a union of dataclasses. ASCII only, keys in field order."""
    return _COMPACT.encode(encode(value, as_type))


def loads(text: str | bytes, as_type: type[T]) -> T:
    """The record of type `as_type` that `dumps` wrote.

    Raises:
        CodecError: the text is not JSON, or not of that type.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"Not JSON: {error}.") from error
    return decode(data, as_type)


_PLAIN = frozenset((str, int, bool))


def encode(value: Any, as_type: Any = None) -> Any:
    """`value` as JSON types (dict, list, str, int, float, bool, None)."""
    if value is None or type(value) in _PLAIN:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = _hints(type(value))
        fields = {name: encode(getattr(value, name), hint) for name, hint in hints.items()}
        return {"type": type(value).__name__, **fields} if _is_tagged(as_type) else fields
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        items = _item_types(as_type, len(value)) if as_type is not None else (None,) * len(value)
        return [encode(item, hint) for item, hint in zip(value, items, strict=True)]
    if isinstance(value, dict):
        hint = get_args(as_type)[1] if get_origin(as_type) is dict else None
        return {str(key): encode(item, hint) for key, item in value.items()}
    raise TypeError(f"A record cannot hold a {type(value).__name__}.")


def decode(data: Any, as_type: Any) -> Any:
    """JSON types as an `as_type`; raises `CodecError` on any mismatch."""
    origin = get_origin(as_type)
    if as_type is Any:
        return data
    if origin in (Union, types.UnionType):
        return _decode_union(data, get_args(as_type))
    if origin is Literal:
        if data not in get_args(as_type):
            raise CodecError(f"{data!r} is none of {get_args(as_type)}.")
        return data
    if dataclasses.is_dataclass(as_type) and isinstance(as_type, type):
        return _decode_dataclass(data, as_type)
    if origin is tuple:
        _require(isinstance(data, list), data, as_type)
        return tuple(decode(d, t) for d, t in zip(data, _item_types(as_type, len(data)), strict=True))
    if origin is dict:
        _require(isinstance(data, dict), data, as_type)
        return {key: decode(item, get_args(as_type)[1]) for key, item in data.items()}
    return _decode_scalar(data, as_type)


def _decode_scalar(data: Any, as_type: Any) -> Any:
    if as_type is float:
        if isinstance(data, str) and data in ("nan", "inf", "-inf"):
            return float(data)
        _require(isinstance(data, int | float) and not isinstance(data, bool), data, as_type)
        return float(data)
    if as_type is int:
        _require(isinstance(data, int) and not isinstance(data, bool), data, as_type)
    elif as_type in (None, type(None)):
        _require(data is None, data, as_type)
    elif as_type in (str, bool):
        _require(isinstance(data, as_type), data, as_type)
    else:
        raise TypeError(f"The codec does not know the type {as_type}.")
    return data


def _decode_dataclass(data: Any, as_type: type) -> Any:
    _require(isinstance(data, dict), data, as_type)
    hints = _hints(as_type)
    if unknown := set(data) - set(hints) - {"type"}:
        raise CodecError(f"{as_type.__name__} has no field '{min(unknown)}'.")
    try:
        return as_type(**{name: decode(data[name], hint) for name, hint in hints.items() if name in data})
    except TypeError as error:
        raise CodecError(f"{as_type.__name__} cannot be read: {error}.") from error


def _decode_union(data: Any, options: tuple[Any, ...]) -> Any:
    records = {t.__name__: t for t in options if dataclasses.is_dataclass(t) and isinstance(t, type)}
    if isinstance(data, dict) and records:
        tag = data.get("type") if len(records) > 1 else next(iter(records))
        if tag not in records:
            raise CodecError(f"The record type {tag!r} is none of {', '.join(records)}.")
        return _decode_dataclass(data, records[tag])
    for option in options:
        try:
            return decode(data, option)
        except CodecError:
            continue
    raise CodecError(f"{_short(data)} fits none of {options}.")


def _item_types(as_type: Any, count: int) -> tuple[Any, ...]:
    """One type an item; `as_type` may be a tuple type or a union that contains one."""
    if get_origin(as_type) in (Union, types.UnionType):
        as_type = next((t for t in get_args(as_type) if get_origin(t) is tuple), None)
    args = get_args(as_type) if get_origin(as_type) is tuple else (None, ...)
    if len(args) == 2 and args[1] is ...:
        return (args[0],) * count
    if len(args) != count:
        raise CodecError(f"{count} items do not fit {as_type}.")
    return args


@lru_cache(maxsize=256)
def _is_tagged(as_type: Any) -> bool:
    options = get_args(as_type) if get_origin(as_type) in (Union, types.UnionType) else ()
    return sum(1 for option in options if dataclasses.is_dataclass(option)) > 1


@lru_cache(maxsize=256)
def _hints(record: type) -> dict[str, Any]:
    hints = get_type_hints(record)
    fields = [field for field in dataclasses.fields(record) if field.metadata.get("recorded", True)]
    return {field.name: hints[field.name] for field in fields}


def _require(condition: bool, data: Any, as_type: Any) -> None:
    if not condition:
        raise CodecError(f"{_short(data)} is not a {getattr(as_type, '__name__', as_type)}.")


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."
