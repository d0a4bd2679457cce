"""Changed GGUF files: an export reads their headers and configs, or names what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import load_skeleton
from tests.support.exporters.gguf_files import make_model, write_gguf
from tests.support.fuzzing.attempts import attempt
from tests.support.fuzzing.mutations import change_bytes
from tests.support.fuzzing.rounds import draws, rounds


def read(file: Path) -> None:
    """Do what an export does before it captures a graph."""
    checkpoint = open_checkpoint(str(file))
    bind_parameters(checkpoint, load_skeleton(checkpoint, attention="eager", max_context=64).model)


@pytest.mark.filterwarnings("ignore")
def test_changed_files(tmp_path: Path) -> None:
    content = write_gguf(make_model("qwen3"), tmp_path / "model.gguf").read_bytes()
    header = content.find(b"token_embd.weight") + 2000  # most of what is read before a tensor's values
    rng = draws(0)
    for _ in range(rounds(60)):
        made = change_bytes(rng, content[:header]) + content[header:]
        (tmp_path / "model.gguf").write_bytes(made)
        attempt(made[:header], lambda: read(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    "counts", [b"\xff" * 8 + b"\x00" * 8, b"\x00" * 8 + b"\xff" * 8, b"\x00\x00\x00\x40" + b"\x00" * 12]
)
def test_a_sparse_file_is_not_read_whole(tmp_path: Path, counts: bytes) -> None:
    with (tmp_path / "model.gguf").open("wb") as file:
        file.write(b"GGUF\x03\x00\x00\x00" + counts)
        file.truncate(5 << 30)
    attempt(counts, lambda: read(tmp_path / "model.gguf"))
