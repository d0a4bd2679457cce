"""Writes safetensors files one tensor at a time; `safetensors.save_file` wants all tensors of a file in memory at once.

A file is 8 bytes with the header's length, little endian, then the header as JSON, then the tensors' bytes without holes. The
header maps a name to dtype, shape and [begin, end], counted from the end of the header.

Source: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from enginewright.runtime.errors import ExportError

BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SINGLE_BYTES = ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0")
_CHUNK = 1 << 24  # bytes read at once


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor to be written; the writer and `TensorQueue` create it.

    name: in the file.
    dtype: the safetensors name ("BF16").
    shape: of the tensor.
    size: in bytes.
    chunks: returns the bytes in order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterable[bytes | memoryview]]


def write_safetensors(
    path: Path, entries: Sequence[TensorEntry], written: Callable[[TensorEntry], None] = lambda _: None
) -> int:
    """Write `entries` to the new file `path`, and return the number of bytes of all tensors.

    The widest types come first, so that each tensor begins at a multiple of its width.

    written: called after each tensor.

    Raises:
        ExportError: the chunks of a tensor have more or fewer bytes than its size.
    """
    ordered = sorted(entries, key=lambda entry: (-BYTES.get(entry.dtype, 1), entry.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in ordered:
        begin, end = end, end + entry.size
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in ordered:
            found = sum(file.write(chunk) for chunk in entry.chunks())
            if found != entry.size:
                raise ExportError(f"{path.name}: tensor {entry.name!r} got {found} bytes, expected {entry.size}")
            written(entry)
    return end


class TensorQueue:
    """Tensors that are computed once, in any order, and written later; the writer creates one for each file.

    They are kept in a file without a name, which goes when the queue is closed.
    """

    def __init__(self, directory: Path) -> None:
        self._file: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by close)

    def add(self, name: str, dtype: str, values: np.ndarray) -> TensorEntry:
        """Keep `values`, whose bytes are those of a tensor of type `dtype` and the shape of `values`."""
        begin = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(values).data)
        end = self._file.tell()
        return TensorEntry(
            name=name,
            dtype=dtype,
            shape=values.shape,
            size=end - begin,
            chunks=lambda: _read_span(self._file, begin, end),
        )

    def close(self) -> None:
        """Delete everything kept."""
        self._file.close()


def _read_span(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    file.seek(begin)
    while begin < end:
        chunk = file.read(min(_CHUNK, end - begin))
        assert chunk, "the queue's own file has become shorter"
        begin += len(chunk)
        yield chunk
