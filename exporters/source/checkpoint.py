"""A checkpoint: its config, its tensors by name, and its tokenizer files, from a source of any format.

Only headers are read when it is opened. Tensors are read one by one, so that memory holds one at a time.
"""

from __future__ import annotations

import fnmatch
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from enginewright.exporters.source.bounds.config_bounds import check_numbers
from enginewright.exporters.source.formats.safetensors import INTEGERS
from enginewright.exporters.source.json_file import parse_json
from enginewright.exporters.source.multimodal.text_config import is_multimodal
from enginewright.exporters.source.multimodal.text_source import TextSource
from enginewright.exporters.source.multimodal.whole_model import build_whole
from enginewright.exporters.source.registry import find_source, locate
from enginewright.exporters.source.rope_scaling import longest_context, named_context
from enginewright.exporters.source.supported_models import MODEL_ERRORS, check_supported, check_supported_raw
from enginewright.exporters.source.tensor_source import TEMPLATES, SourceFormat, StoredTensor, TensorSource
from enginewright.exporters.source.unused import Unused
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.artifact.files.real_path import real_path
from enginewright.runtime.errors import ExportError

CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER_FILES = {
    "": (
        "tokenizer*.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
        "tekken.json",
        "*.model",
        "*.tiktoken",
        "chat_template.json",
        "chat_template.jinja",
    ),
    TEMPLATES: ("*.jinja",),
}
"""Patterns of the names of a tokenizer's files, by the folder that they are in."""
_CHECKED_AT_ONCE = 1 << 22  # numbers, because the check copies them


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint; `open_checkpoint` creates it.

    name: of the directory, the file or the hub repository.
    format: of the source.
    source: gives the tensors and the other files.
    config: as transformers reads config.json, of a multimodal model that of its text part.
    generation: generation_config.json, empty without one.
    unused: the parts of its files that an export has found no use for.
    is_text_part: whether `source` and `config` are those of the text part of a multimodal model; other files, config.json
        among them, are those of the whole model.
    """

    name: str
    format: SourceFormat
    source: TensorSource
    config: PreTrainedConfig
    generation: dict[str, Any] = field(default_factory=dict)
    unused: Unused = field(default_factory=Unused)
    is_text_part: bool = False

    @property
    def path(self) -> Path:
        """The directory or the file, for error messages."""
        return self.source.path

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """The tensors by name."""
        return self.source.tensors

    @property
    def missing(self) -> Mapping[str, Path]:
        """The tensors that the checkpoint lists without having them, each with the file that should hold it."""
        return self.source.missing

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return the tensor `name` as float32, in memory of its own.

        part: number of the one slice [1, ...] to read; None: the whole tensor.

        Raises:
            ExportError: the tensor cannot be read, or holds NaN or infinity.
        """
        stored, tensor = self.tensors[name], self.source.read(name, part)
        expected = stored.shape if part is None else (1, *stored.shape[1:])
        if tensor.dtype is not torch.float32 or tuple(tensor.shape) != expected:
            raise ExportError(
                f"{stored.file}: tensor {name!r} got {tensor.dtype} {list(tensor.shape)} from {self.format.name}, expected "
                f"float32 {list(expected)}"
            )
        if not all(bool(piece.isfinite().all()) for piece in torch.split(tensor.flatten(), _CHECKED_AT_ONCE)):
            raise ExportError(f"{stored.file}: tensor {name!r} holds NaN or infinity; the checkpoint is damaged")
        return tensor

    def read_exact(self, name: str) -> torch.Tensor:
        """Return the tensor `name` as `read` does, or in its own type where that is one of integers or booleans.

        Raises:
            ExportError: the tensor cannot be read, holds NaN or infinity, or has a type that is neither.
        """
        stored = self.tensors[name]
        if dtype := INTEGERS.get(stored.dtype):
            content = bytearray().join(self.content(name))
            return (
                torch.frombuffer(content, dtype=dtype).reshape(stored.shape)
                if content
                else torch.empty(stored.shape, dtype=dtype)
            )
        if stored.refusal:
            expected = f"{stored.refusal}, {', '.join(INTEGERS)}"
            raise ExportError(
                f"{stored.file}: tensor {name!r} got type {stored.dtype}, {expected}; convert the checkpoint"
            )
        return self.read(name)

    def content(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of the tensor `name` as they are stored, a piece at a time."""
        return self.source.content(name)

    def codes(self, name: str, part: int | None = None) -> QuantizedRows | None:
        """Return codes and scales of the tensor `name`, or of one slice of it; None where it is stored as numbers."""
        return self.source.codes(name, part)

    @property
    def default_context(self) -> int:
        """The context that the config names, in tokens; 0 where it names none."""
        return named_context(self.config)

    @property
    def longest_context(self) -> int:
        """The longest context that the model can be used with, in tokens; 0 where the config names none."""
        return longest_context(self.config)

    def file_names(self) -> tuple[str, ...]:
        """Names of the files besides the tensors."""
        return self.source.file_names()

    def read_file(self, name: str) -> bytes:
        """Return the content of one of `file_names`.

        Raises:
            ExportError: it cannot be read.
        """
        try:
            return self.source.read_file(name)
        except OSError as e:
            raise ExportError(f"{self.path / name}: cannot be read ({e.strerror or e})") from e

    def config_content(self) -> bytes:
        """Return the content of the config.json of a checkpoint of these tensors: the file, or the config of the text part."""
        if not self.is_text_part:
            return self.read_file(CONFIG)
        content = parse_json(self.config.to_json_string().encode(), self.path / CONFIG)
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(self.config)]
        content["architectures"] = [kind.__name__]
        return (json.dumps(content, indent=2) + "\n").encode()

    def tokenizer_files(self) -> dict[str, bytes]:
        """The files from which transformers can make the tokenizer, by name; not what they refer to."""
        return {name: self.read_file(name) for name in self.file_names() if _is_tokenizer_file(name)}


def open_checkpoint(model: str) -> Checkpoint:
    """Open the file or directory `model`, or the Hugging Face hub repository of that name.

    Raises:
        ExportError: there is no checkpoint, or one of no known format, or its config or a weight file is missing or damaged.
        UnsupportedError: the model is of a kind that cannot be exported; the reason is in the message.
    """
    path = locate(model)
    found = find_source(path)
    source = found.open(path)
    names = source.file_names()
    if CONFIG not in names:
        raise ExportError(f"{path / CONFIG}: not found; expected a Hugging Face checkpoint directory with it")
    raw = parse_json(source.read_file(CONFIG), path / CONFIG)
    check_supported_raw(raw, path)
    check_numbers(raw, path / CONFIG)
    config = _make_config(raw, path)
    unused = Unused()
    _note_other_files(source, unused)
    if multimodal := is_multimodal(config):
        whole = build_whole(config)
        source, config = TextSource(source, whole), whole.text
    source.tensors  # noqa: B018 (reads and checks the headers)
    generation = parse_json(source.read_file(GENERATION), path / GENERATION) if GENERATION in names else {}
    for parts in source.unused():
        unused.add(parts.file, parts.names, parts.reason, by_design=parts.by_design)
    return Checkpoint(
        name=_name(path) if Path(model).expanduser().exists() else model.split("/")[-1],
        format=found,
        source=source,
        config=config,
        generation=generation,
        unused=unused,
        is_text_part=multimodal,
    )


def _note_other_files(source: TensorSource, unused: Unused) -> None:
    """Name the files of tensors in the checkpoint's directory that none of its tensors lies in."""
    read = {stored.file.name for stored in source.tensors.values()}
    for name in source.file_names():
        if name.endswith(".safetensors") and name not in read:
            unused.add(name, ["every tensor"], f"the model's tensors are those of {', '.join(sorted(read)[:3])}")


def _is_tokenizer_file(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return any(fnmatch.fnmatchcase(file, pattern) for pattern in TOKENIZER_FILES.get(folder, ()))


def _name(path: Path) -> str:
    place = real_path(path)
    return place.stem if place.is_file() else place.name


def _make_config(raw: dict[str, Any], path: Path) -> PreTrainedConfig:
    """Return transformers' config of `raw`, which it reads from a file alone."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(raw))
        try:
            config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            check_supported(config)
        except (*MODEL_ERRORS, OSError) as e:
            raise ExportError(f"{path / CONFIG}: transformers cannot read it ({type(e).__name__}: {e})") from e
    return config
