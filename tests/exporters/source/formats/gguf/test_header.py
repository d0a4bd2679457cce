"""Tests of headers: the values that the library reads, and every kind of damage by its message."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.formats.gguf.header import read_header
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.runtime.errors import ExportError, UnsupportedError
from tests.support.exporters.gguf_files import make_model, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole file; F32 but for the queries."""
    more = {
        "general.tags": ["a", "é"],
        "general.numbers": [1, -2],
        "general.on": True,
        "tokenizer.ggml.tokens": ["", "x"],
    }
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_gguf(make_model("llama"), path, kinds={"attn_q": "Q4_1"}, metadata=more)


def test_a_header_is_what_the_library_reads(file: Path) -> None:
    header, library = read_header(file), GGUFReader(file)
    theirs = {name: field.contents() for name, field in library.fields.items() if not name.startswith("GGUF.")}
    assert {key: value.value for key, value in header.metadata.items()} == theirs
    for tensor in library.tensors:
        ours = header.tensors[tensor.name]
        assert ours.shape == tuple(int(size) for size in reversed(tensor.shape)) and ours.kind == tensor.tensor_type
        assert (ours.begin, ours.size) == (tensor.data_offset, tensor.n_bytes)


def every_type(path: Path) -> Path:
    """A file with a value of each type of numbers, and another alignment."""
    writer = GGUFWriter(path, "llama")
    for kind in GGUFValueType:
        if kind not in (GGUFValueType.ARRAY, GGUFValueType.STRING):
            value = True if kind is GGUFValueType.BOOL else 3
            writer.add_key_value(f"x.{kind.name}", value, kind)
            writer.add_key_value(f"x.{kind.name}s", [value, value], GGUFValueType.ARRAY, kind)
    writer.add_custom_alignment(64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def test_values_of_every_type(tmp_path: Path) -> None:
    values = read_header(every_type(tmp_path / "m.gguf")).metadata
    for kind in GGUFValueType:
        if kind not in (GGUFValueType.ARRAY, GGUFValueType.STRING):
            assert values[f"x.{kind.name}"].value == (True if kind is GGUFValueType.BOOL else 3)
            assert values[f"x.{kind.name}s"].value == 2 * [values[f"x.{kind.name}"].value]


def change(path: Path, target: Path, *changes: tuple[int, bytes]) -> Path:
    """Write a copy with other bytes at some places."""
    content = bytearray(path.read_bytes())
    for place, new in changes:
        content[place : place + len(new)] = new
    target.write_bytes(content)
    return target


def place_of(path: Path, text: bytes, after: int) -> int:
    """The place `after` bytes after the text."""
    return path.read_bytes().index(text) + len(text) + after


def damage(file: Path) -> Iterator[tuple[str, list[tuple[int, bytes]], str]]:
    """Pieces of damage: a name, the changes, and a part of the message."""
    kind = place_of(file, b"blk.0.attn_q.weight", 4 + 2 * 8)
    shape, offset = kind - 16, kind + 4
    count = place_of(file, b"blk.0.attn_q.weight", 0)
    key = place_of(file, b"llama.block_count", 0)
    yield "magic", [(0, b"GGML")], "got no GGUF file"
    yield "version", [(4, struct.pack("<I", 1))], "got GGUF version 1, expected 2 or 3"
    yield "order", [(4, struct.pack(">I", 3))], "big-endian"
    yield "tensors", [(8, struct.pack("<Q", 1 << 60))], "it has 1152921504606846976 tensors, more than a file has"
    yield "keys", [(16, struct.pack("<Q", 1 << 60))], "not a whole GGUF file"
    yield "dimensions", [(count, struct.pack("<I", 5))], "'blk.0.attn_q.weight' has 5 dimensions"
    yield "row", [(shape, struct.pack("<Q", 97))], r"'blk.0.attn_q.weight' of shape \[96, 97\] is stored as Q4_1"
    yield "size", [(shape + 8, struct.pack("<Q", 1 << 40))], "'blk.0.attn_q.weight' ends at byte .* the file has"
    yield "offset", [(offset, struct.pack("<Q", 1 << 40))], "'blk.0.attn_q.weight' ends at byte"
    yield "type of value", [(key, struct.pack("<I", 77))], "'llama.block_count' has a value of type 77"
    yield "length", [(24, struct.pack("<Q", 1 << 50))], "the header is cut off"
    yield "text", [(32, b"\xff\xff")], "not UTF-8"


@pytest.mark.parametrize("number", range(12))
def test_damage(number: int, file: Path, tmp_path: Path) -> None:
    name, changes, message = list(damage(file))[number]
    with pytest.raises(ExportError, match=message):
        read_header(change(file, tmp_path / f"{name}.gguf", *changes))


def test_a_name_that_is_there_twice(file: Path, tmp_path: Path) -> None:
    twice = change(file, tmp_path / "a.gguf", (place_of(file, b"blk.0.attn_q.weight", -8), b"k"))
    with pytest.raises(ExportError, match=r"tensor 'blk.0.attn_k.weight' is in it twice"):
        read_header(twice)


def test_a_file_that_is_cut_off_anywhere(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    random.seed(0)
    for length in [*range(0, 200, 7), *random.sample(range(len(content)), 60), len(content) - 40]:
        (tmp_path / "m.gguf").write_bytes(content[:length])
        with pytest.raises(ExportError, match=r"m.gguf: "):
            open_checkpoint(str(tmp_path / "m.gguf"))


def test_an_unknown_type_of_tensor_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    kind = place_of(file, b"blk.0.attn_q.weight", 4 + 2 * 8)
    opened = open_checkpoint(str(change(file, tmp_path / "m.gguf", (kind, struct.pack("<I", 99)))))
    model = build_skeleton(opened.config, attention="eager", max_context=16).model
    with pytest.raises(
        ExportError, match=r"'model.layers.0.self_attn.q_proj.weight' got type .*99.*, expected one of F32"
    ):
        bind_parameters(opened, model)


@pytest.mark.parametrize("name", ["attention.head_count", "attention.head_count_kv", "embedding_length"])
def test_a_size_of_zero(name: str, file: Path, tmp_path: Path) -> None:
    value = place_of(file, f"llama.{name}".encode(), 4)  # after the type of the value
    with pytest.raises((ExportError, UnsupportedError), match=r"m.gguf: |llama: "):
        opened = open_checkpoint(str(change(file, tmp_path / "m.gguf", (value, bytes(4)))))
        bind_parameters(opened, build_skeleton(opened.config, attention="eager", max_context=16).model)


def test_a_file_that_has_become_shorter(file: Path, tmp_path: Path) -> None:
    copy = change(file, tmp_path / "m.gguf")
    opened = open_checkpoint(str(copy))
    copy.write_bytes(copy.read_bytes()[:2000])
    for name in opened.tensors:
        with pytest.raises(ExportError, match=r"cannot be read .the file has become shorter"):
            opened.read(name)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 3000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_any_damage_is_an_error_of_ours(
    changes: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.getbasetemp()
    whole = root / "whole.gguf"
    if not whole.exists():
        write_gguf(make_model("llama"), whole)
    try:
        opened = open_checkpoint(str(change(whole, root / "damaged.gguf", *changes)))
        bind_parameters(opened, build_skeleton(opened.config, attention="eager", max_context=16).model)
    except (ExportError, UnsupportedError):
        pass
