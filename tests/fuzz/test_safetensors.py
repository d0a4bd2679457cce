"""Changed safetensors files: the reader of checkpoints and that of vectors and adapters take them or name what is wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from enginewright.exporters.source.formats.safetensors import SOURCE
from enginewright.runtime.artifact.safetensors_file import read_floats
from tests.support.fuzzing.attempts import attempt
from tests.support.fuzzing.mutations import change_bytes, change_text, changed
from tests.support.fuzzing.read_corpus import read_corpus
from tests.support.fuzzing.rounds import draws, rounds

VALID = save({"a": torch.ones(2, 3), "b": torch.ones(4).bfloat16(), "c": torch.ones(1, 1).half()}, {"format": "pt"})
LENGTH = struct.unpack("<Q", VALID[:8])[0]
HEADER = json.loads(VALID[8 : 8 + LENGTH])
DATA = VALID[8 + LENGTH :]


def assemble(header: bytes) -> bytes:
    """The file with this header."""
    return struct.pack("<Q", len(header)) + header + DATA


def read_all(root: Path) -> None:
    """Read every tensor as an export does."""
    source = SOURCE.open(root)
    for name, stored in source.tensors.items():
        if not stored.refusal:
            source.read(name)


def try_file(root: Path, content: bytes) -> None:
    """Read the content with both readers."""
    (root / "model.safetensors").write_bytes(content)
    attempt(content, lambda: read_all(root))
    attempt(content, lambda: read_floats(root / "model.safetensors", 1000))


def test_changed_headers(tmp_path: Path) -> None:
    rng = draws(0)
    for _ in range(rounds(700)):
        try_file(tmp_path, assemble(change_text(rng, HEADER)))


def test_changed_bytes(tmp_path: Path) -> None:
    rng = draws(1)
    for _ in range(rounds(300)):
        try_file(tmp_path, change_bytes(rng, VALID))


@pytest.mark.parametrize("case", read_corpus("safetensors"), ids=str)
def test_what_once_failed(tmp_path: Path, case: dict[str, object]) -> None:
    try_file(tmp_path, assemble(json.dumps(changed(HEADER, tuple(case["path"]), case["value"])).encode()))  # type: ignore[arg-type]
