"""Plain copies of the values that a chat template gets: what JSON can hold, and no object with methods of its own.

A template is a program that anyone may have written, and the sandbox of Jinja knows the methods of Python's types alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from enginewright.runtime.errors import RequestError


def plain_copy(value: Any, where: str) -> Any:
    """Return a copy made of dicts, lists, tuples, texts, numbers, truth values and None.

    where: the value's name in error messages.

    Raises:
        RequestError: a value of another type, or one nested too deeply or in itself.
    """
    try:
        return _copy(value, where)
    except RecursionError:
        raise RequestError(f"{where}: got values nested too deeply; pass flatter ones") from None


def _copy(value: Any, where: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_copy(key, where): _copy(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copy(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return _copy_scalar(value, where)


def _copy_scalar(value: Any, where: str) -> Any:
    """Return the value of a subclass of str, int or float (an enum's member is one), or of a numpy scalar."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, np.generic) and not isinstance(item := value.item(), np.generic):
        return _copy(item, where)
    raise RequestError(
        f"{where}: got {type(value).__name__}, expected text, a number, true or false, None, a list or a mapping; "
        "pass plain data"
    )
