"""Tests of the files of a checkpoint: split ones, directories, and parts that are missing or strangers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.gguf.files import find_file, read_headers
from enginewright.runtime.errors import ExportError
from tests.support.exporters.gguf_files import make_model, write_gguf


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A directory with a checkpoint in several files."""
    (tmp_path / "split").mkdir()
    write_gguf(make_model("llama"), tmp_path / "split/m.gguf", split=8)
    return tmp_path / "split"


def names(folder: Path) -> list[str]:
    """The files in a directory."""
    return sorted(path.name for path in folder.iterdir())


def test_a_split_checkpoint_is_that_of_one_file(split: Path, tmp_path: Path) -> None:
    parts = names(split)
    assert parts[0] == f"m-00001-of-{len(parts):05d}.gguf" and len(parts) > 2
    whole = open_checkpoint(str(write_gguf(make_model("llama"), tmp_path / "whole.gguf")))
    for path in (split, split / parts[0], split / parts[-1]):
        opened = open_checkpoint(str(path))
        assert opened.tensors.keys() == whole.tensors.keys()
        assert opened.read_file("config.json") == whole.read_file("config.json")
        assert all(torch.equal(opened.read(name), whole.read(name)) for name in whole.tensors)


def test_a_missing_part(split: Path) -> None:
    second = names(split)[1]
    (split / second).unlink()
    with pytest.raises(ExportError, match=rf"split: {second} not found; the checkpoint is incomplete"):
        open_checkpoint(str(split))


def test_a_missing_first_part(split: Path) -> None:
    first, second = names(split)[:2]
    (split / first).unlink()
    with pytest.raises(ExportError, match=rf"{first}"):
        open_checkpoint(str(split))
    with pytest.raises(ExportError, match=rf"split: {first} not found"):
        open_checkpoint(str(split / second))


def test_parts_in_another_order(split: Path) -> None:
    second, third = names(split)[1:3]
    (split / second).rename(split / "x")
    (split / third).rename(split / second)
    (split / "x").rename(split / third)
    with pytest.raises(ExportError, match=rf"{second}: got part 2 of \d+, counted from 0, expected part 1 of"):
        open_checkpoint(str(split))


def test_a_part_of_another_checkpoint(split: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_gguf(make_model("llama", num_hidden_layers=3), tmp_path / "other/m.gguf", split=10)
    parts, others = names(split), names(tmp_path / "other")
    assert len(parts) == len(others)
    shutil.copy(tmp_path / "other" / others[1], split / parts[1])
    with pytest.raises(ExportError, match=r"tensor .* is in .* too|got \d+ tensors in all parts, expected"):
        open_checkpoint(str(split))


def test_a_part_with_another_name(split: Path) -> None:
    first = split / names(split)[0]
    with pytest.raises(ExportError, match=r"model.gguf: got one of \d+ parts, expected a name that ends in -00001-of-"):
        read_headers(first.rename(split / "model.gguf"))


def test_several_checkpoints_in_a_directory(split: Path) -> None:
    model = make_model("qwen2")
    write_gguf(model, split / "a.Q8_0.gguf", kinds={"ffn": "Q8_0"})
    with pytest.raises(
        ExportError, match=r"split: got 2 GGUF files \(a.Q8_0.gguf, m-00001-of-.*gguf\), expected one; pass"
    ):
        open_checkpoint(str(split))
    assert open_checkpoint(str(split / "a.Q8_0.gguf")).name == "a.Q8_0"


def test_the_one_file_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a model")
    file = write_gguf(make_model("qwen2"), tmp_path / "b.gguf")
    assert find_file(tmp_path) == file and find_file(file) == file
