"""GGUF, the format of llama.cpp: one file, or the parts of a split one, with the weights, the config and the tokenizer."""

from __future__ import annotations

from pathlib import Path

from enginewright.exporters.source.tensor_source import SourceFormat, TensorSource

__all__ = ["SOURCE"]


def recognise(path: Path) -> bool:
    """Whether `path` is a file with the format's first bytes or name, or a directory with a file of that name."""
    if path.is_dir():
        return any(path.glob("*.gguf"))
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as opened:
            return opened.read(4) == b"GGUF"
    except OSError:
        return False


def open_source(path: Path) -> TensorSource:
    """Open the checkpoint; its libraries are imported now, because other formats do not need them."""
    from enginewright.exporters.source.formats.gguf.source import GgufSource

    return GgufSource(path)


SOURCE = SourceFormat(
    name="gguf",
    expects="a .gguf file, the first of a split one, or a directory with one",
    recognise=recognise,
    open=open_source,
)
