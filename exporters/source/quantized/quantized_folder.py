"""The base of formats whose matrices are codes: directories of safetensors files, in which several tensors stand for one.

A format derives from `QuantizedFolder`, and says with `matrices` which stored tensors make which tensor of the model. All
other tensors of the files are numbers, as in a directory that is not quantised.
"""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from enginewright.exporters.source.formats.safetensors import CONFIG, SafetensorsSource, recognise
from enginewright.exporters.source.json_file import read_json
from enginewright.exporters.source.tensor_source import FolderFiles, SourceFormat, StoredTensor, TensorSource
from enginewright.exporters.source.unused import UnusedParts
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

SETTINGS, TEXT = "quantization_config", "text_config"
"""The keys of config.json that say how a checkpoint is quantised, and of the part of a multimodal model where that may be."""
_OLD = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that old versions of AutoGPTQ and AutoAWQ wrote next to config.json, and the method of each."""
_AUTO_ROUND = ("auto-round", "intel/auto-round")


@dataclass(frozen=True, kw_only=True)
class StoredMatrix:
    """A tensor of the model, in codes that several stored tensors hold; a format creates it.

    parts: names of those stored tensors.
    shape: of the tensor: [n, k], or [experts, ...].
    codes_name: of the type of codes, for reports: "int4 in groups of 128".
    read: returns the tensor, or the one slice [1, ...] of the number given, as float32 in memory of its own.
    codes: returns its codes, or those of one slice, as `TensorSource.codes`; None: engines cannot keep them.
    restored: the reason where `codes` is None, as a phrase: "its numbers are float8".
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    codes_name: str
    read: Callable[[int | None], torch.Tensor]
    codes: Callable[[int | None], QuantizedRows | None] | None = None
    restored: str = ""

    def __post_init__(self) -> None:
        assert (self.codes is None) == bool(self.restored)


class QuantizedFolder(FolderFiles, ABC):
    """An opened directory whose matrices are codes; the `open` of a format's SOURCE creates it. Headers alone are read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.files = SafetensorsSource(path)

    @abstractmethod
    def matrices(self) -> Mapping[str, StoredMatrix]:
        """Return the tensors that are codes, by the names that they have in a checkpoint of numbers ("X.weight").

        Raises:
            ExportError, UnsupportedError: the settings or the stored tensors do not go together.
        """

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of `read_settings`."""
        return read_settings(self.path)

    @property
    def where_set(self) -> str:
        """The file of the settings, and their key in it, for error messages."""
        file, _ = _find_settings(self.path)
        return f"{self.path / file}: {SETTINGS if file == CONFIG else 'quantisation'}"

    @functools.cached_property
    def _matrices(self) -> dict[str, StoredMatrix]:
        found = dict(self.matrices())
        if missing := [part for each in found.values() for part in each.parts if part not in self.files.tensors]:
            raise ExportError(
                f"{where_missing(self, missing[0])}: tensor {missing[0]!r} is not in the checkpoint, but others of its matrix are; download it again"
            )
        return found

    @functools.cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors of numbers as they are stored, and each matrix under the name that it has in the model."""
        parts = {part for matrix in self._matrices.values() for part in matrix.parts}
        kept = {name: stored for name, stored in self.files.tensors.items() if name not in parts}
        return {**kept, **{name: self._describe(matrix) for name, matrix in self._matrices.items()}}

    @property
    def missing(self) -> Mapping[str, Path]:
        """The tensors that the index lists, but no file holds, and the matrices that they are parts of."""
        missing, tensors = self.files.missing, self.tensors
        matrices = {self.matrix_of(name): file for name, file in missing.items()}
        return {**{name: file for name, file in matrices.items() if name not in tensors}, **missing}

    def matrix_of(self, part: str) -> str:
        """Return the name that the matrix has of which the stored tensor `part` is a part, if it is one."""
        return f"{part.rpartition('.')[0]}.weight"

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return a tensor, or one slice of it, as float32."""
        matrix = self._matrices.get(name)
        return self.files.read(name, part) if matrix is None else matrix.read(part)

    def content(self, name: str) -> Iterator[bytes]:
        """Yield a tensor's bytes, or those of all the tensors that stand for it."""
        matrix = self._matrices.get(name)
        for part in (name,) if matrix is None else matrix.parts:
            yield from self.files.content(part)

    def codes(self, name: str, part: int | None = None) -> QuantizedRows | None:
        """Return codes and scales of a matrix; None for any other tensor."""
        matrix = self._matrices.get(name)
        return None if matrix is None or matrix.codes is None else matrix.codes(part)

    def read_file(self, name: str) -> bytes:
        """The content of a file in the directory; config.json without the settings that this source has applied."""
        if name != CONFIG:
            return super().read_file(name)
        config = read_json(self.path / CONFIG)
        for part in (config, config.get(TEXT)):
            if isinstance(part, dict):
                part.pop(SETTINGS, None)
        return json.dumps(config).encode()

    def unused(self) -> Iterable[UnusedParts]:
        """Nothing, unless a format derives more."""
        return ()

    def array(self, name: str, part: int | None = None) -> np.ndarray:
        """Return a stored tensor, or one slice of it, as it is stored; types that numpy lacks become float32."""
        tensor = self.files.read_stored(name, part)
        return (tensor if tensor.dtype in _IN_NUMPY else tensor.to(torch.float32)).numpy()

    def has_halves(self, name: str) -> bool:
        """Return whether a stored tensor is of IEEE halves."""
        return self.files.tensors[name].dtype == _HALF

    def _describe(self, matrix: StoredMatrix) -> StoredTensor:
        first = self.files.tensors[matrix.parts[0]]
        return StoredTensor(
            file=first.file,
            dtype=matrix.codes_name,
            shape=matrix.shape,
            size=sum(self.files.tensors[part].size for part in matrix.parts),
            codes=matrix.codes_name,
            restored=matrix.restored,
        )


_HALF = "F16"
_IN_NUMPY = {
    torch.float16,
    torch.float32,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
}


def read_settings(path: Path) -> dict[str, Any]:
    """Return a directory's `quantization_config`, or what files of old checkpoints say instead; empty without either.

    It is in config.json, or in the text's part of it.
    """
    return _find_settings(path)[1]


def _find_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """The name of the file that has the settings, and the settings; config.json and none without them."""
    if inline := _inline_settings(path):
        return CONFIG, inline
    for name, method in _OLD.items():
        try:
            return name, {"quant_method": method, **read_json(path / name)}
        except (ExportError, OSError):
            continue
    return CONFIG, {}


def _inline_settings(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path / CONFIG)
    except (ExportError, OSError):
        return {}
    text = config.get(TEXT)
    found = config.get(SETTINGS) or (text.get(SETTINGS) if isinstance(text, dict) else None)
    return found if isinstance(found, dict) else {}


def is_quantised_with(path: Path, *methods: str) -> bool:
    """Whether `path` is a directory of safetensors files whose config.json names one of `methods` as its `quant_method`."""
    return recognise(path) and read_settings(path).get("quant_method") in methods


def is_packed_by_auto_round(path: Path, *packings: str) -> bool:
    """Whether `path` is such a directory of AutoRound's, in one of `packings`, whose layouts are those of other methods."""
    return is_quantised_with(path, *_AUTO_ROUND) and read_settings(path).get("packing_format") in packings


def quantized_format(
    name: str, open_folder: Callable[[Path], TensorSource], recognise_folder: Callable[[Path], bool], expects: str = ""
) -> SourceFormat:
    """Return the SOURCE of a format of directories whose matrices are codes.

    expects: what such a directory has besides safetensors files, in words; empty: a config.json that names the method `name`.
    """
    has = expects or f"whose config.json has {SETTINGS} with quant_method {name}"
    return SourceFormat(
        name=name,
        expects=f"a directory of safetensors files {has}",
        recognise=recognise_folder,
        open=open_folder,
        instead_of="safetensors",
        hub_files=("*.safetensors",),
    )


def where_missing(source: QuantizedFolder, name: str) -> Path:
    """Return the file that the index names for the stored tensor `name`, which is missing; the directory without one."""
    return source.files.missing.get(name, source.path)


def check_part(source: QuantizedFolder, name: str, shape: tuple[int, ...], *dtypes: str, need: str = "") -> None:
    """Raise ExportError unless the stored tensor `name` has the shape and one of the types that its matrix needs.

    dtypes: safetensors' names.
    need: the settings that the shape follows from, in words; empty: none.
    """
    stored = source.files.tensors.get(name)
    if stored is None:
        raise ExportError(
            f"{where_missing(source, name)}: tensor {name!r} is missing, expected {list(shape)}; download the checkpoint again"
        )
    if stored.shape != shape or stored.dtype not in dtypes:
        raise ExportError(
            f"{stored.file}: tensor {name!r} got {stored.dtype} {list(stored.shape)}, expected {' or '.join(dtypes)} "
            f"{list(shape)}{f' as {need} need' if need else ''}; the file is damaged, or the settings belong to another checkpoint"
        )
