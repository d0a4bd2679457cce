"""An opened adapter: its settings, its tensors, and their places in the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from enginewright.exporters.methods.lora.adapter_file import AdapterFile, AdapterTensor
from enginewright.exporters.methods.lora.pairs import Pair, collect_pairs
from enginewright.exporters.methods.lora.places import Places
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.runtime.artifact.adapters.settings import AdapterConfig, read_settings
from enginewright.runtime.errors import ArtifactError, ExportError


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An opened adapter; `open_adapter` creates it.

    root: its directory.
    pairs: its pairs of factors.
    """

    root: Path
    settings: AdapterConfig
    file: AdapterFile
    pairs: tuple[Pair, ...]
    places: Places

    def entries(self, *roles: str) -> Iterator[AdapterTensor]:
        """The tensors of these roles, in order."""
        return (entry for entry in self.file.entries if entry.role in roles)

    def check_shape(self, entry: AdapterTensor, shape: tuple[int, ...], parameter: str) -> None:
        """Raise ExportError unless `shape`, which `entry` is for, is the parameter's."""
        expected = self.places.shape(parameter)
        if shape == expected:
            return
        if self.places.is_vocabulary(parameter) and shape[1:] == expected[1:]:
            raise ExportError(
                f"{self.root}: {entry.name!r} got {shape[0]} tokens, expected the {expected[0]} of the checkpoint; give the "
                f"checkpoint the adapter's vocabulary first: resize_token_embeddings({shape[0]}) and save_pretrained in "
                "transformers, with the adapter's tokenizer"
            )
        raise ExportError(
            f"{self.root}: {entry.name!r} got {list(shape)}, expected {list(expected)}; the adapter is for another model"
        )


def open_adapter(root: Path, checkpoint: Checkpoint) -> Adapter:
    """Open the adapter in the directory `root`, for the model of `checkpoint`.

    Raises:
        ExportError: a file is missing or broken, or holds half a pair.
        UnsupportedError: the adapter is of a kind that cannot be merged.
    """
    try:
        settings = read_settings(root)
    except ArtifactError as e:
        raise ExportError(str(e)) from e
    file = AdapterFile(root)
    pairs = tuple(collect_pairs(file, settings))
    places = Places(root, checkpoint, settings)
    tensors = [entry.name for entry in file.entries if entry.role in ("plain", "saved", "base")]
    modules = [pair.module for pair in pairs] + [entry.name for entry in file.entries if entry.role == "tokens"]
    places.learn(modules, tensors)
    return Adapter(root=root, settings=settings, file=file, pairs=pairs, places=places)
