"""Frozen dataclasses from plain JSON values, strict about every key and type."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

R = TypeVar("R")
_LARGEST = 2**1023  # of whole numbers that a float holds, up to rounding


def parse(cls: type[R], raw: Any, where: str) -> R:
    """Return the `cls` that `raw` (parsed JSON) describes.

    Raises ValueError naming `where` and the key for a missing key, an unknown key or a value of another type.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: got {type(raw).__name__}, expected an object")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(raw.keys() - fields.keys()):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = _convert(hints[name], raw[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: key {name!r} is missing")
    try:
        return cls(**values)
    except ValueError as e:  # of a check of the class itself, which names the field
        raise ValueError(f"{where}.{e}") from e


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Return `value` as the type `hint` names."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return value
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, where)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where}: got {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and type(value) is int and abs(value) <= _LARGEST:
        return float(value)
    if type(value) is not (origin or hint):
        raise ValueError(f"{where}: got {value!r}, expected {getattr(hint, '__name__', hint)}")
    return value


def _convert_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in arguments:
        return None
    failures = []
    for hint in (a for a in arguments if a is not types.NoneType):
        try:
            return _convert(hint, value, where)
        except ValueError as failure:
            failures.append(str(failure))
    raise ValueError(failures[-1])
