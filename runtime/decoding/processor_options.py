"""Reads the options of a logits processor that a request or an engine names, with errors that say which option is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.errors import RequestError

T = TypeVar("T")


def read_options(kind: type[T], name: str, given: Mapping[str, Any]) -> T:
    """Return the `kind`, a dataclass, that the options of the processor `name` describe.

    Raises:
        RequestError: an option is missing, unknown, or of another type or value.
    """
    where = f"Sampling.logits_processors[{name!r}]"
    try:
        return parse(kind, _as_json(given), where)
    except ValueError as e:
        raise RequestError(str(e)) from e
    except RecursionError:
        raise RequestError(f"{where}: got values nested too deeply; pass flatter ones") from None


def check_ids(name: str, tokens: Iterable[int], vocab: int) -> None:
    """Raise RequestError where one of the tokens of the processor `name` is not of the vocabulary."""
    if outside := [token for token in tokens if not 0 <= token < vocab]:
        raise RequestError(
            f"Sampling.logits_processors[{name!r}]: got token id {outside[0]}, expected ids from 0 to {vocab - 1}"
        )


def _as_json(value: Any) -> Any:
    """Return the value with lists for tuples, as JSON would have it."""
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, (list, tuple)) else value
