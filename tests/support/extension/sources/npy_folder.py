"""A sample source of an extension: a directory with config.json, and one .npy file for each tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from enginewright.exporters.source.tensor_source import FolderFiles, SourceFormat, StoredTensor

TYPES = {"float32": "F32", "float16": "F16"}  # numpy's names -> safetensors'


class NpyFolder(FolderFiles):
    """An opened directory; `SOURCE.open` creates it."""

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors by the names of their files."""
        return {path.stem: _describe(path) for path in sorted(self.path.glob("*.npy"))}

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return a tensor, or one slice of it, as float32."""
        values = np.load(self.path / f"{name}.npy", mmap_mode="r")
        chosen = values if part is None else values[part : part + 1]
        return torch.from_numpy(np.array(chosen, np.float32))

    def content(self, name: str) -> Iterator[bytes]:
        """Yield the numbers after the file's header."""
        yield np.load(self.path / f"{name}.npy").tobytes()


def _describe(path: Path) -> StoredTensor:
    values = np.load(path, mmap_mode="r")
    dtype = values.dtype.name
    refusal = "" if dtype in TYPES else f"expected {' or '.join(TYPES)}"
    return StoredTensor(
        file=path, dtype=TYPES.get(dtype, dtype), shape=values.shape, size=values.nbytes, refusal=refusal
    )


SOURCE = SourceFormat(
    name="npy_folder",
    expects="a directory with config.json and NAME.npy for each tensor",
    recognise=lambda path: path.is_dir() and any(path.glob("*.npy")),
    open=NpyFolder,
)
