"""Reads the header of one GGUF file: its metadata, and where each tensor lies.

The library `gguf` has a reader, too. It makes several arrays of each token, which takes it a minute for 262,144 of them, and
its errors name neither the file nor the tensor. So it is used for the blocks alone, and the header is read here.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginewright.exporters.source.formats.gguf.tensor_types import block_of, type_name
from enginewright.runtime.errors import ExportError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_DIMENSIONS = 4
_MOST_TEXT = 1 << 26  # bytes, such as of a chat template
_MOST_VALUES = 1 << 24  # of a list, such as the tokens; tensors, and keys
_ALIGNMENT = 32  # where the metadata name none


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of the metadata, with the types by which it is stored; `read_header` creates it.

    value: a number, a text, or a list of either.
    kind: GGUF's number of its type.
    element: that of a list's elements; None for any other.
    """

    value: Any
    kind: int
    element: int | None = None


@dataclass(frozen=True, kw_only=True)
class FileTensor:
    """A tensor in a GGUF file; `read_header` creates it.

    name: in the file, such as "blk.0.attn_q.weight".
    kind: GGUF's number of its type.
    shape: with the contiguous axis last.
    begin: of its content, in bytes from the begin of the file.
    size: of its content, in bytes; 0 for a type of unknown size.
    """

    file: Path
    name: str
    kind: int
    shape: tuple[int, ...]
    begin: int
    size: int


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a file; `read_header` creates it."""

    file: Path
    metadata: dict[str, Value]
    tensors: dict[str, FileTensor]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the metadata."""
        found = self.metadata.get(key)
        return default if found is None else found.value


def read_header(file: Path) -> Header:
    """Return the header of `file`, after a check that every tensor lies within the file.

    Raises:
        ExportError: it is no GGUF file of a version that is known, or it is damaged or not whole.
    """
    try:
        with file.open("rb") as opened:
            if opened.read(len(MAGIC)) != MAGIC:
                raise ExportError(f"{file}: got no GGUF file, expected one that begins with {MAGIC.decode()}")
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _HeaderReader(file, content).read()
    except OSError as e:
        raise ExportError(f"{file}: cannot be read ({e.strerror or e})") from e


class _HeaderReader:
    """Reads a header from begin to end; `read_header` creates it. Every count is compared with the bytes there are."""

    def __init__(self, file: Path, content: mmap.mmap) -> None:
        self._file, self._content = file, content
        self._size = len(content)
        self._at = len(MAGIC)

    def read(self) -> Header:
        """Return the whole header."""
        version = self._number("I")
        if version not in _VERSIONS:
            order = " (a file for big-endian machines)" if version & 0xFFFF == 0 else ""
            raise ExportError(
                f"{self._file}: got GGUF version {version}{order}, expected 2 or 3 in little-endian order"
            )
        tensor_count, value_count = self._number("Q"), self._number("Q")
        self._check_count("tensors", tensor_count)
        self._check_count("keys", value_count)
        metadata: dict[str, Value] = {}
        for _ in range(value_count):
            key = self._text()
            if key in metadata:
                raise self._damaged(f"the metadata have {key!r} twice")
            metadata[key] = self._value(key)
        rows = [self._tensor_row() for _ in range(tensor_count)]
        alignment = metadata["general.alignment"].value if "general.alignment" in metadata else _ALIGNMENT
        if not isinstance(alignment, int) or alignment < 1:
            raise self._damaged(f"general.alignment: got {alignment}, expected a positive number")
        data = -(-self._at // alignment) * alignment
        return Header(file=self._file, metadata=metadata, tensors=self._tensors(rows, data))

    def _tensors(self, rows: list[tuple[str, tuple[int, ...], int, int]], data: int) -> dict[str, FileTensor]:
        """The tensors by name, from rows of the table and the begin of the content."""
        tensors: dict[str, FileTensor] = {}
        for name, shape, kind, offset in rows:
            if name in tensors:
                raise self._damaged(f"tensor {name!r} is in it twice")
            size = self._tensor_size(name, shape, kind)
            begin = data + offset
            if begin + size > self._size:
                raise self._damaged(f"tensor {name!r} ends at byte {begin + size}, but the file has {self._size}")
            tensors[name] = FileTensor(file=self._file, name=name, kind=kind, shape=shape, begin=begin, size=size)
        return tensors

    def _tensor_size(self, name: str, shape: tuple[int, ...], kind: int) -> int:
        block = block_of(kind)
        if block is None:
            return 0
        elements, width = block
        if not shape or shape[-1] % elements:
            raise self._damaged(
                f"tensor {name!r} of shape {list(shape)} is stored as {type_name(kind)}, whose blocks have {elements} numbers"
            )
        return math.prod(shape) // elements * width

    def _tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
        """A row of the table of tensors: name, shape, type and offset."""
        name, count = self._text(), self._number("I")
        if count > _MOST_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} has {count} dimensions, expected at most {_MOST_DIMENSIONS}")
        shape = tuple(self._number("Q") for _ in range(count))[::-1]  # stored with the contiguous axis first
        return name, shape, self._number("I"), self._number("Q")

    def _value(self, key: str) -> Value:
        kind = self._number("I")
        if kind != _ARRAY:
            return Value(value=self._element(key, kind), kind=kind)
        element, count = self._number("I"), self._number("Q")
        self._check_count(f"values of {key!r}", count)
        if element in _SCALARS:
            layout = f"<{count}{_SCALARS[element]}"
            return Value(value=list(self._unpack(layout, count)), kind=kind, element=element)
        if element != _STRING:
            raise self._damaged(f"{key!r} is a list of type {element}, expected one of numbers or texts")
        return Value(value=[self._text() for _ in range(count)], kind=kind, element=element)

    def _element(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind not in _SCALARS:
            raise self._damaged(f"{key!r} has a value of type {kind}, which is unknown")
        return self._number(_SCALARS[kind])

    def _number(self, letter: str) -> Any:
        return self._unpack(f"<{letter}", 1)[0]

    def _unpack(self, layout: str, count: int) -> tuple[Any, ...]:
        if count > self._size or (size := struct.calcsize(layout)) > self._size - self._at:
            raise self._damaged("the header is cut off")
        values = struct.unpack_from(layout, self._content, self._at)
        self._at += size
        return values

    def _check_count(self, name: str, count: int) -> None:
        if count > min(self._size, _MOST_VALUES):
            raise self._damaged(f"it has {count} {name}, more than a file has")

    def _text(self) -> str:
        length = self._number("Q")
        if length > min(self._size - self._at, _MOST_TEXT):
            raise self._damaged("the header is cut off, or one of its texts is too long")
        self._at += length
        try:
            return self._content[self._at - length : self._at].decode()
        except UnicodeDecodeError as e:
            raise self._damaged(f"a text in the header is not UTF-8 ({e.reason})") from e

    def _damaged(self, reason: str) -> ExportError:
        return ExportError(f"{self._file}: not a whole GGUF file ({reason}); download it again")
