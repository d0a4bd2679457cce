"""A Hugging Face checkpoint directory: its config, its tensors by name, and its tokenizer files.

Only headers are read when it is opened. Tensors are read one by one, so that memory holds one at a time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from enginewright.exporters.source.supported_models import check_supported, check_supported_raw
from enginewright.runtime.errors import ExportError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHECKED_AT_ONCE = 1 << 22  # numbers, because the check copies them


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file; `open_checkpoint` creates it.

    file: the safetensors file.
    dtype: the safetensors name ("BF16").
    shape: of the tensor.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened checkpoint; `open_checkpoint` creates it.

    name: of the directory or of the hub repository.
    path: the directory.
    config: as transformers reads config.json.
    tensors: by name.
    generation: generation_config.json, empty without one.
    """

    name: str
    path: Path
    config: PreTrainedConfig
    tensors: dict[str, StoredTensor]
    generation: dict[str, Any] = field(default_factory=dict)

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        """Return the tensor `name` as float32, in memory of its own.

        part: number of the one slice [1, ...] to read; None: the whole tensor.
        """
        stored = self.tensors[name]
        try:
            with safe_open(stored.file, framework="pt") as f:  # opened anew: closing unmaps what was read
                found = f.get_tensor(name) if part is None else f.get_slice(name)[part : part + 1]
                tensor: torch.Tensor = found.to(torch.float32, copy=True)
        except (SafetensorError, OSError) as e:
            raise ExportError(f"{stored.file}: tensor {name!r} cannot be read ({e}); download the file again") from e
        if not all(bool(part.isfinite().all()) for part in torch.split(tensor.flatten(), _CHECKED_AT_ONCE)):
            raise ExportError(f"{stored.file}: tensor {name!r} holds NaN or infinity; the checkpoint is damaged")
        return tensor

    @property
    def max_positions(self) -> int:
        """The longest context that the model was made for, in tokens; 0 where the config names none."""
        return int(getattr(self.config, "max_position_embeddings", 0) or 0)

    def tokenizer_files(self) -> list[Path]:
        """The files that the runtime needs to turn text into tokens and back."""
        return [self.path / name for name in TOKENIZER_FILES if (self.path / name).is_file()]


def open_checkpoint(model: str) -> Checkpoint:
    """Open the directory `model`, or the Hugging Face hub repository of that name.

    Raises:
        ExportError: the directory, its config or a weight file is missing or damaged.
        UnsupportedError: the model is of a kind that cannot be exported; the reason is in the message.
    """
    path = _locate(model)
    raw = read_json(path / "config.json")
    check_supported_raw(raw, path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, OSError, StrictDataclassError) as e:
        raise ExportError(f"{path / 'config.json'}: transformers cannot read it ({e})") from e
    check_supported(config)
    generation = path / "generation_config.json"
    return Checkpoint(
        name=path.resolve().name if Path(model).expanduser().is_dir() else model.split("/")[-1],
        path=path,
        config=config,
        tensors=_index_tensors(path),
        generation=read_json(generation) if generation.is_file() else {},
    )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; ExportError when there is none."""
    if not path.is_file():
        raise ExportError(f"{path}: not found; expected a Hugging Face checkpoint directory with it")
    try:
        value = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ExportError(f"{path}: not valid JSON ({e}); download the file again") from e
    if not isinstance(value, dict):
        raise ExportError(f"{path}: got a JSON {type(value).__name__}, expected an object")
    return value


def _locate(model: str) -> Path:
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise ExportError(f"{model}: got no directory, expected a checkpoint directory or a hub id like owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.jinja"]
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise ExportError(f"{model}: no such directory, and the hub did not provide it ({e})") from e


def _index_tensors(path: Path) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(path):
        try:
            with safe_open(file, framework="pt") as f:
                for name in f.keys():  # noqa: SIM118 (no mapping)
                    part = f.get_slice(name)
                    tensors[name] = StoredTensor(file=file, dtype=part.get_dtype(), shape=tuple(part.get_shape()))
        except (SafetensorError, OSError) as e:
            raise ExportError(f"{file}: not a whole safetensors file ({e}); download it again") from e
    if (path / INDEX).is_file():
        _check_index(path, tensors)
    return tensors


def _weight_files(path: Path) -> list[Path]:
    index = path / INDEX
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise ExportError(f"{index}: got no weight_map, expected tensor names with their files")
        files = [path / name for name in sorted(set(shards.values()))]
    else:
        files = [path / WEIGHTS]
    for file in files:
        if not file.is_file():
            raise ExportError(f"{file}: not found{_hint(path)}")
    return files


def _hint(path: Path) -> str:
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in path.glob(pattern))
    if pickles:
        return f"; {pickles[0]} is a pickle, which can run code when read: convert it to safetensors first"
    return "; the checkpoint is incomplete, download it again"


def _check_index(path: Path, tensors: dict[str, StoredTensor]) -> None:
    for name, file in read_json(path / INDEX)["weight_map"].items():
        if name not in tensors or tensors[name].file.name != file:
            raise ExportError(f"{path / file}: tensor {name!r} is missing, but {INDEX} lists it; download it again")
