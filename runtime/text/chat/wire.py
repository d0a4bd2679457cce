"""Messages between the process that serves and those that render: JSON of a known length, with what JSON alone has not.

JSON has neither tuples nor keys other than text, and a template can tell them from lists and text.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct("<Q")
_TUPLE, _PAIRS = "\0tuple", "\0pairs"


def pack(message: Any) -> bytes:
    """Return the bytes of a message: its length in 8 bytes, then its JSON.

    Raises:
        RecursionError: it is nested too deeply.
        ValueError: it has a whole number of more digits than Python writes.
    """
    text = json.dumps(_tagged(message), ensure_ascii=False)
    content = text.encode("utf-8", "surrogatepass")
    return _LENGTH.pack(len(content)) + content


def unpack(content: bytes) -> Any:
    """Return the message of this JSON."""
    return _restored(json.loads(str(content, "utf-8", "surrogatepass")))


def receive(read: Callable[[int], bytes]) -> bytes:
    """Return the JSON of the next message.

    read: returns some of the next bytes, as many as it is told or fewer, and none at the end.

    Raises:
        EOFError: there is no message any more, or no whole one.
    """
    (length,) = _LENGTH.unpack(_read_all(read, _LENGTH.size))
    return _read_all(read, length)


def _read_all(read: Callable[[int], bytes], size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        piece = read(min(size - len(content), 1 << 20))
        if not piece:
            raise EOFError("the other process has ended")
        content += piece
    return bytes(content)


def _tagged(value: Any) -> Any:
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("\0") for key in value):
            return {key: _tagged(item) for key, item in value.items()}
        return {_PAIRS: [[_tagged(key), _tagged(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_tagged(item) for item in value]}
    return [_tagged(item) for item in value] if isinstance(value, list) else value


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(_restored(item) for item in value[_TUPLE])
    if _PAIRS in value:
        return {_restored(key): _restored(item) for key, item in value[_PAIRS]}
    return {key: _restored(item) for key, item in value.items()}
