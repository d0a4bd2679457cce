"""Makes configs from text: from `name:key=value,key=value` on the command line, or from mappings in a recipe file.

A config is a frozen dataclass. Its fields give the known keys, the types of the values, and the defaults.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from typing import Any, TypeVar

from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.errors import ExportError

C = TypeVar("C")


def split_spec(text: str) -> tuple[str, dict[str, str]]:
    """Split `name:key=value,key=value` into the name and the pairs, whose values are still text."""
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ExportError(f"{text!r}: got {item!r}, expected key=value after {name!r}")
        if key in options:
            raise ExportError(f"{text!r}: key {key!r} stands twice")
        options[key] = value
    return name, options


def make_config(cls: type[C], options: dict[str, Any], where: str) -> C:
    """Return an instance of `cls` from options whose values are text, or already of the field's type.

    Raises:
        ExportError: an unknown or missing key, or a value of another type; the known keys are listed.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in options:
        if key not in hints:
            raise ExportError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
    try:
        values = {key: _from_text(hints[key], value) for key, value in options.items()}
        return parse(cls, values, where)
    except ValueError as e:
        raise ExportError(f"{e}; known keys: {', '.join(known)}") from e


def _from_text(hint: Any, value: Any) -> Any:
    """Return text as the JSON value that a field of type `hint` expects, and anything else unchanged."""
    if not isinstance(value, str):
        return value
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value in ("", "none"):
            return None
        hint = next(a for a in typing.get_args(hint) if a is not types.NoneType)
    if hint is bool:
        return {"true": True, "false": False}.get(value.lower(), value)
    if hint in (int, float):
        try:
            return hint(value)
        except ValueError:
            return value  # `parse` names the field and the type it expects
    return value


def describe_fields(cls: type) -> tuple[str, dict[str, str]]:
    """Return the beginning of a dataclass's docstring, and its text on each field: after `name:` or `name, name:`.

    A field that the docstring does not mention is looked up in those of its base classes.
    """
    text = "\n".join(line.strip() for line in (cls.__doc__ or "").splitlines())
    names = "|".join(re.escape(field.name) for field in dataclasses.fields(cls))
    # a field's name opens a line or a sentence
    parts = re.split(rf"(?:^|(?<=[.;] ))((?:{names})(?:, (?:{names}))*): ", text, flags=re.MULTILINE)
    told: dict[str, str] = {}
    for base in reversed(cls.__mro__[1:]):
        told |= describe_fields(base)[1] if dataclasses.is_dataclass(base) else {}
    for heads, doc in zip(parts[1::2], parts[2::2], strict=True):
        for name in heads.split(", "):
            told[name] = " ".join(doc.partition("\n\n")[0].split()).removesuffix(".")
    return parts[0].strip().removesuffix("Attributes:").strip(), told
