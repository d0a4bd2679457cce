"""The interface of a checkpoint's source: everything that generic code asks of a format of checkpoints.

A format is one module in `exporters/source/formats/` with a `SOURCE`, a `SourceFormat`. Its `open` returns a `TensorSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from enginewright.exporters.source.unused import UnusedParts
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.artifact.files.bounded_file import read_bounded
from enginewright.runtime.artifact.files.json_file import MOST_TOKENIZER
from enginewright.runtime.errors import ExportError

TEMPLATES = "additional_chat_templates"
"""The folder of a checkpoint whose files are chat templates besides the default one."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor as a source stores it; the source creates it when it is opened.

    file: that it lies in, for error messages.
    dtype: safetensors' name of the type ("BF16") where it has that type, or else the format's own ("Q4_1").
    shape: of the tensor.
    size: bytes of its content.
    refusal: why `read` does not take it, as "expected one of F32, BF16"; empty where it does.
    codes: name of the type of codes that it is stored as, as "Q4_1"; empty for numbers.
    restored: why `codes` of the source does not give them, as a phrase; empty where it does.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    size: int
    refusal: str = ""
    codes: str = ""
    restored: str = ""


class StoredTensors(Protocol):
    """The tensors of an opened source by name, without their numbers."""

    @property
    def path(self) -> Path:
        """The directory, or the one file, that error messages name."""
        ...

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors by the names that transformers has for them in a checkpoint of that family.

        Headers are all that is read for it.

        Raises:
            ExportError: a file of tensors is missing or damaged.
        """
        ...

    @property
    def missing(self) -> Mapping[str, Path]:
        """The tensors that an index lists, but that are in no file, each with the file that should hold it.

        It is an error only if a parameter or buffer needs one.
        """
        ...


class TensorSource(StoredTensors, Protocol):
    """An opened source; `SourceFormat.open` creates it."""

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return the tensor `name` as float32, in memory of its own; nothing else is kept in memory.

        part: number of the one slice [1, ...] to read; None: the whole tensor.

        Raises:
            ExportError: the file cannot be read any more.
        """
        ...

    def content(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of the tensor as they are stored, in order, a piece at a time.

        Equal bytes, types and shapes mean equal tensors. For a type of safetensors they are the numbers, row by row, little
        endian.

        Raises:
            ExportError: the file cannot be read any more.
        """
        ...

    def codes(self, name: str, part: int | None = None) -> QuantizedRows | None:
        """Return codes and scales of a matrix [outputs, inputs] that is stored as such, so that an engine can keep them.

        None for a tensor of numbers, or of codes that `QuantizedRows` cannot express: it is then read with `read`.

        part: number of the one slice [1, ...] of a tensor of experts, which is a matrix.
        """
        ...

    def file_names(self) -> tuple[str, ...]:
        """Names of the files besides the tensors: config.json, and where there are such, generation_config.json and the
        tokenizer's, those in the folder TEMPLATES with its name and a slash before theirs. A format without these files makes
        their content from its metadata.
        """
        ...

    def read_file(self, name: str) -> bytes:
        """Return the content of one of `file_names`."""
        ...

    def unused(self) -> Iterable[UnusedParts]:
        """Yield the parts of the checkpoint that the source itself makes nothing of, such as keys of metadata."""
        ...


@dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """A format of checkpoints, one per module of `exporters/source/formats/`, there called SOURCE.

    name: of the format.
    expects: a path of this format in words, for error messages: "a directory with config.json and model.safetensors".
    recognise: whether a path that exists is of this format; it looks at names and at a file's first bytes alone, and raises
        nothing.
    open: opens such a path, and reads no more of it than it must.
    instead_of: name of a format that recognises the same paths, and that this one goes before. Two formats that
        recognise one path are an error otherwise.
    hub_files: patterns of the files that are fetched from a hub repository, besides JSON and templates; empty: only what is
        on disk is opened.
    in_transformers: whether `from_pretrained` of transformers reads such a directory. The model that engines are compared
        with comes from there then, and is filled by `read` otherwise.
    """

    name: str
    expects: str
    recognise: Callable[[Path], bool]
    open: Callable[[Path], TensorSource]
    instead_of: str = ""
    hub_files: tuple[str, ...] = ()
    in_transformers: bool = False


class FolderFiles:
    """The files of a source that is a directory; a source of that kind is made by deriving from this class."""

    def __init__(self, path: Path) -> None:
        self._folder = path

    @property
    def path(self) -> Path:
        """The directory."""
        return self._folder

    @property
    def missing(self) -> Mapping[str, Path]:
        """Nothing: there is no index."""
        return {}

    def codes(self, name: str, part: int | None = None) -> QuantizedRows | None:
        """Return None: the tensors are numbers."""
        return None

    def file_names(self) -> tuple[str, ...]:
        """All files directly in the directory, and the templates in its folder for them, such as "FOLDER/tool_use.jinja"."""
        found = [*self._folder.iterdir(), *(self._folder / TEMPLATES).glob("*.jinja")]
        return tuple(sorted(path.relative_to(self._folder).as_posix() for path in found if path.is_file()))

    def read_file(self, name: str) -> bytes:
        """The content of a file in the directory."""
        return read_bounded(self._folder / name, MOST_TOKENIZER, ExportError, "download the file again")

    def unused(self) -> Iterable[UnusedParts]:
        """Nothing: each file is given whole."""
        return ()
