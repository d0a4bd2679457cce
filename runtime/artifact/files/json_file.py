"""Reads every JSON file and JSON text that others may have written, within bounds of size and depth.

Only what JSON itself has is taken: UTF-8, also after a byte order mark; no NaN and no infinity; no number of more digits than
Python converts; no half of a surrogate pair, which could not be printed. Where a key stands twice the last one counts, as in
the libraries that read the same files.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn

from enginewright.runtime.artifact.files.bounded_file import read_bounded
from enginewright.runtime.errors import EnginewrightError

MOST_BYTES = 16 << 20
"""The largest JSON file; parsed, its values take some 400 MB at worst. An index of 100,000 tensors has 10 MB."""
MOST_TOKENIZER = 256 << 20
"""The largest file of a tokenizer; those of vocabularies of 256,000 tokens have 35 MB."""
MOST_DEPTH = 100
"""Objects and lists within each other; code that walks values may then recurse."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(path: Path, error: type[EnginewrightError], mend: str, *, most: int = MOST_BYTES) -> Any:
    """Return the value of the JSON file.

    error: the class of the error; mend: its last part, which says what to do; most: the most bytes.

    Raises:
        EnginewrightError: of the class `error`: the file cannot be read, is too large, or is not valid JSON.
    """
    return parse_json(read_bounded(path, most, error, mend), path, error, mend, most=most)


def read_object(path: Path, error: type[EnginewrightError], mend: str, *, most: int = MOST_BYTES) -> dict[str, Any]:
    """Return the JSON object of the file; with the arguments and errors of `read_json`."""
    return as_object(read_json(path, error, mend, most=most), path, error, mend)


def parse_json(
    content: bytes | str, where: object, error: type[EnginewrightError], mend: str, *, most: int = MOST_BYTES
) -> Any:
    """Return the value of the JSON text; `where` it stands is named in errors, which are as in `read_json`."""
    if len(content) > most:
        raise error(f"{where}: got {len(content):,} bytes of JSON, expected {most:,} at most; {mend}")
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = _DECODER.decode(text)
        _check_depth(value)
        if _SURROGATE.search(text):
            _check_unicode(value)
    except RecursionError as e:
        raise error(f"{where}: not valid JSON (nested more than {MOST_DEPTH} deep); {mend}") from e
    except ValueError as e:  # no JSON, no UTF-8
        reason = "a number of too many digits" if "set_int_max_str_digits" in str(e) else e
        raise error(f"{where}: not valid JSON ({reason}); {mend}") from e
    return value


def as_object(value: Any, where: object, error: type[EnginewrightError], mend: str) -> dict[str, Any]:
    """Return the parsed `value`, which has to be an object; with the arguments and errors of `parse_json`."""
    if not isinstance(value, dict):
        raise error(f"{where}: got a JSON {type(value).__name__}, expected an object; {mend}")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return
        level = [child for each in containers for child in (each.values() if isinstance(each, dict) else each)]
    raise RecursionError


def _check_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair, expected valid Unicode text") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name}, expected a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        _refuse(text[:20])
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)
