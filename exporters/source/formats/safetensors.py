"""Hugging Face checkpoint directories: config.json, and float tensors in one safetensors file or in several with an index."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open

from enginewright.exporters.source.json_file import parse_json, read_json
from enginewright.exporters.source.tensor_source import FolderFiles, SourceFormat, StoredTensor
from enginewright.runtime.artifact.files.real_path import is_within
from enginewright.runtime.artifact.safetensors_file import MOST_HEADER
from enginewright.runtime.errors import ExportError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The types whose values are not rounded when they are read."""
_TYPES = {
    **DTYPES,
    **INTEGERS,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
CONFIG, _INDEX_END = "config.json", ".safetensors.index.json"
NAMED = "transformers_weights"
"""The key of config.json that names the file of tensors, or the index, where that is not one of the usual names."""
_PIECE = 1 << 24  # bytes read at once


class SafetensorsSource(FolderFiles):
    """An opened checkpoint directory; `SOURCE.open` creates it. A file is opened anew at each read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._begins: dict[str, int] = {}

    @functools.cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors by name; the files' headers are read and checked when they are asked for first."""
        found: dict[str, StoredTensor] = {}
        for file in self._files:
            for name, stored in self._read_header(file):
                if name in found:
                    raise ExportError(f"{file}: tensor {name!r} is in {found[name].file.name}, too; keep one of them")
                found[name] = stored
        return found

    @functools.cached_property
    def missing(self) -> dict[str, Path]:
        """The tensors that the index lists, but no file holds."""
        return {name: file for name, file in self._listed.items() if name not in self.tensors}

    @functools.cached_property
    def _listed(self) -> dict[str, Path]:
        """The tensors of the index with their files; empty where one file holds all."""
        entry = _entry(self.path)
        return _read_index(entry) if entry.name.endswith(_INDEX_END) else {}

    @property
    def _files(self) -> list[Path]:
        """The files of tensors; of those that an index lists, the ones that are there.

        Raises:
            ExportError: none is there.
        """
        entry = _entry(self.path)
        wanted = sorted(set(self._listed.values())) or [entry]
        if files := [file for file in wanted if file.is_file()]:
            return files
        raise ExportError(f"{wanted[0]}: not found; the checkpoint is incomplete, download it again")

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return a tensor, or one slice of it, as float32."""
        return self._copy(name, part, torch.float32)

    def read_stored(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return a tensor, or one slice of it, in the type in which it is stored, in memory of its own.

        Raises:
            ExportError: the file cannot be read any more.
        """
        return self._copy(name, part, None)

    def _copy(self, name: str, part: int | None, dtype: torch.dtype | None) -> torch.Tensor:
        """The tensor, read at its place in the file: to parse a header of 20,000 tensors for each one takes 40 ms."""
        stored = self.tensors[name]
        shape, begin = stored.shape, self._begins[name]
        size = stored.size
        if part is not None:
            size //= shape[0]
            shape, begin = (1, *shape[1:]), begin + part * size
        content = bytearray(size)
        try:
            with stored.file.open("rb") as file:
                file.seek(begin)
                count = file.readinto(content)
        except OSError as e:
            raise _unreadable(stored.file, name, str(e)) from e
        if count != size:
            raise _unreadable(stored.file, name, "the file has become shorter")
        kind = _TYPES[stored.dtype]
        found = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
        return found.reshape(shape).to(dtype or kind)

    def content(self, name: str) -> Iterator[bytes]:
        """Yield a tensor's bytes."""
        stored = self.tensors[name]
        left = stored.size
        try:
            with stored.file.open("rb") as file:
                file.seek(self._begins[name])
                while left and (piece := file.read(min(_PIECE, left))):
                    left -= len(piece)
                    yield piece
        except OSError as e:
            raise _unreadable(stored.file, name, str(e)) from e
        if left:
            raise _unreadable(stored.file, name, "the file has become shorter")

    def _read_header(self, file: Path) -> Iterator[tuple[str, StoredTensor]]:
        try:
            with safe_open(file, framework="pt") as f:  # checks the whole header
                names = list(f.keys())
            with file.open("rb") as content:
                (length,) = struct.unpack("<Q", content.read(8))
                header = parse_json(content.read(length), file, most=MOST_HEADER)
        except (SafetensorError, OSError) as e:
            raise ExportError(f"{file}: not a whole safetensors file ({e}); download it again") from e
        for name in names:
            dtype, (begin, end) = header[name]["dtype"], header[name]["data_offsets"]
            self._begins[name] = 8 + length + begin
            refusal = "" if dtype in DTYPES else f"expected one of {', '.join(DTYPES)}"
            shape = tuple(header[name]["shape"])
            yield name, StoredTensor(file=file, dtype=dtype, shape=shape, size=end - begin, refusal=refusal)


def recognise(path: Path) -> bool:
    """Whether `path` is a directory with a file in this format, or with an index of such files."""
    if not path.is_dir():
        return False
    return (path / INDEX).exists() or any(path.glob("model*.safetensors")) or _is_entry(_named(path))


def _named(path: Path) -> object:
    """The file of tensors, or the index, that config.json names; None if it names none."""
    try:
        return read_json(path / CONFIG).get(NAMED)
    except (ExportError, OSError):
        return None


def _is_entry(named: object) -> bool:
    return isinstance(named, str) and named.endswith((".safetensors", _INDEX_END))


def _entry(path: Path) -> Path:
    """The file of tensors or the index to begin with, in transformers' order: one file goes before an index."""
    if (named := _named(path)) is not None:
        if not _is_entry(named) or not is_within(path / str(named), path):
            raise ExportError(
                f"{path / CONFIG}: {NAMED}: got {named!r}, expected a file in the directory, *.safetensors or *{_INDEX_END}"
            )
        return path / str(named)
    return path / (INDEX if (path / INDEX).is_file() and not (path / WEIGHTS).is_file() else WEIGHTS)


def _read_index(index: Path) -> dict[str, Path]:
    """The file of each tensor that the index lists."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise ExportError(f"{index}: got no weight_map, expected tensor names with their files")
    if outside := [file for file in shards.values() if not _is_inside(file)]:
        raise ExportError(
            f"{index}: weight_map: got the file {outside[0][:60]!r}, expected one in the directory; download it again"
        )
    return {name: index.parent / file for name, file in shards.items()}


def _is_inside(file: str) -> bool:
    """Whether a name can be that of a file in a directory or in its folders; links are followed, as a hub's cache has them."""
    parts = PurePosixPath(file).parts
    return bool(parts) and "\0" not in file and all(part not in ("/", "..") and len(part) < 256 for part in parts)


def _unreadable(file: Path, name: str, reason: str) -> ExportError:
    return ExportError(f"{file}: tensor {name!r} cannot be read ({reason}); download the file again")


SOURCE = SourceFormat(
    name="safetensors",
    expects=f"a directory with config.json and {WEIGHTS}, or else with {INDEX} and the files that it lists",
    recognise=recognise,
    open=SafetensorsSource,
    hub_files=("*.safetensors",),
    in_transformers=True,
)
