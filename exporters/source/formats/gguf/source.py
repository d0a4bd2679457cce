"""A GGUF checkpoint as a source: config and tokenizer from its metadata, tensors from its blocks, one at a time."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig

from enginewright.exporters.source.formats.gguf import tokenizer
from enginewright.exporters.source.formats.gguf.files import find_file, read_headers
from enginewright.exporters.source.formats.gguf.model_config import read_config
from enginewright.exporters.source.formats.gguf.tensors import TensorTable
from enginewright.exporters.source.formats.gguf.transformers_reading import ARCHITECTURE, ArchitectureReading
from enginewright.exporters.source.supported_models import MODEL_ERRORS
from enginewright.exporters.source.tensor_source import StoredTensor
from enginewright.exporters.source.unused import UnusedParts
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

CONFIG, GENERATION = "config.json", "generation_config.json"


class GgufSource:
    """An opened file, or the files of a split checkpoint; `SOURCE.open` creates it.

    Headers are read when it is opened, the tokenizer is made when it is asked for, and a file is opened anew at each read.
    """

    def __init__(self, path: Path) -> None:
        self._header = read_headers(find_file(path))
        self._settings, self._used = read_config(self._header)

    @property
    def path(self) -> Path:
        """The first file."""
        return self._header.file

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors by the names of transformers' parameters; others keep their name in the file."""
        return self._described

    @property
    def missing(self) -> dict[str, Path]:
        """Nothing: a header lists the tensors that its own file has."""
        return {}

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return a tensor, or one slice of it, as float32."""
        return torch.from_numpy(np.ascontiguousarray(self._table.read(name, part)))

    def content(self, name: str) -> Iterator[bytes]:
        """Yield a tensor's numbers, or its blocks as they are in the file."""
        return self._table.content(name)

    def codes(self, name: str, part: int | None = None) -> QuantizedRows | None:
        """Return codes and scales of a matrix, or of one slice of experts, in blocks that are multiples of a scale."""
        return self._table.codes(name, part)

    def file_names(self) -> tuple[str, ...]:
        """Names of the files that are made of the metadata."""
        return (CONFIG, GENERATION, *tokenizer.file_names(self._header))

    def read_file(self, name: str) -> bytes:
        """The content of a file that is made of the metadata."""
        if name == CONFIG:
            return json.dumps(self._settings, indent=2).encode()
        if name == GENERATION:
            ends = tokenizer.end_tokens(self._header)
            return json.dumps({"eos_token_id": ends} if ends else {}).encode()
        return self._tokenizer_files[name]

    def unused(self) -> Iterator[UnusedParts]:
        """Keys of the metadata that nothing is made of."""
        header, architecture = self._header, self._header.get(ARCHITECTURE)
        keys, splitting = tokenizer.unused_keys(header)
        mine = [key for key in header.metadata if key.startswith(f"{architecture}.") and key not in self._used]
        sampling = [key for key in header.metadata if key.startswith("general.sampling.")]
        name = header.file.name
        yield UnusedParts(file=name, names=tuple(mine), reason="no setting of transformers' model stands for them")
        yield UnusedParts(file=name, names=tuple(keys + sampling), reason="engines have nothing that takes them")
        if splitting:
            yield UnusedParts(
                file=name,
                names=(splitting,),
                reason="no way to split text that is known here; it is split as GPT-2 does, and token ids may differ",
            )

    @functools.cached_property
    def _tokenizer_files(self) -> dict[str, bytes]:
        return tokenizer.make_files(self._header)

    @functools.cached_property
    def _table(self) -> TensorTable:
        tensors = {name: tensor for name, tensor in self._header.tensors.items() if name not in self._used}
        reading = ArchitectureReading(self._header.get(ARCHITECTURE), self._settings)
        config = AutoConfig.for_model(**self._settings)
        try:
            names = reading.names(config)
        except MODEL_ERRORS as e:
            raise ExportError(
                f"{self._header.file}: transformers cannot make a {config.model_type} model of the metadata ({e}); the file is "
                "damaged"
            ) from e
        return TensorTable(tensors, reading, names)

    @functools.cached_property
    def _described(self) -> dict[str, StoredTensor]:
        return self._table.describe()
