"""Tests of packed codes against compressed-tensors' own packing, and against the layouts' definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file

from enginewright.exporters.checkpoint_export.packed_codes import pack_output_pairs, pack_words
from enginewright.exporters.checkpoint_export.safetensors_writer import (
    TensorEntry,
    TensorQueue,
    write_safetensors,
)
from enginewright.runtime.errors import ExportError


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("k", [1, 7, 31, 32, 33, 96, 101])
def test_words_are_those_of_the_library(bits: int, k: int) -> None:
    codes = np.random.default_rng(k).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, k)).astype(np.int8)
    packed = torch.from_numpy(pack_words(codes, bits).copy())
    assert torch.equal(packed, pack_to_int32(torch.from_numpy(codes), bits))
    assert np.array_equal(unpack_from_int32(packed, bits, torch.Size(codes.shape)).numpy(), codes)


def test_pairs_of_outputs() -> None:
    codes = np.array([[-8, 7, 0], [-1, 1, 3], [2, -2, 5], [-5, 6, -3]], np.int8)
    assert pack_output_pairs(codes).tolist() == [[0xF8, 0x17, 0x30], [0xB2, 0x6E, 0xD5]]


def entry(name: str, dtype: str, values: np.ndarray) -> TensorEntry:
    """A tensor that is at hand."""
    return TensorEntry(
        name=name, dtype=dtype, shape=values.shape, size=values.nbytes, chunks=lambda: [values.tobytes()]
    )


def test_written_files_load(tmp_path: Path) -> None:
    queue = TensorQueue(tmp_path)
    values = {"a": np.arange(3, dtype=np.int8), "empty": np.zeros((0, 4), np.float32), "scalar": np.array(7)}
    kept = queue.add("kept", "F32", np.arange(6, dtype=np.float32).reshape(2, 3).T)
    types = {"a": "I8", "empty": "F32", "scalar": "I64"}
    written = []
    entries = [kept, *(entry(name, types[name], value) for name, value in values.items())]
    size = write_safetensors(tmp_path / "x.safetensors", entries, lambda e: written.append(e.name))
    queue.close()
    loaded = load_file(tmp_path / "x.safetensors")
    assert written == ["scalar", "empty", "kept", "a"] and size == 8 + 0 + 24 + 3
    assert loaded["kept"].tolist() == [[0, 3], [1, 4], [2, 5]] and loaded["scalar"] == 7
    assert loaded["empty"].shape == (0, 4) and loaded["a"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_tensor_with_too_few_bytes_is_noticed(tmp_path: Path) -> None:
    short = TensorEntry(name="t", dtype="U8", shape=(9,), size=9, chunks=lambda: [bytes(3), bytes(2)])
    with pytest.raises(ExportError, match=r"x.safetensors: tensor 't' got 5 bytes, expected 9"):
        write_safetensors(tmp_path / "x.safetensors", [short])
