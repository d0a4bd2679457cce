"""Tests of unpacked codes: against a sum over bits, the inverse of what exports pack, and the numbers with exponents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import FP4_VALUES

from enginewright.exporters.checkpoint_export.packed_codes import pack_words
from enginewright.exporters.source.quantized.packing import E2M1, center, unpack_pairs, unpack_words
from tests.support.exporters.packed_checkpoints import words


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (3, 32), (2, 33), (5, 7), (0, 8)])
def test_words_of_every_number_of_bits(bits: int, rows: int, count: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (rows, count)).astype(np.uint8)
    packed = words(codes, bits).numpy() if rows else np.empty((0, -(-count * bits // 32)), np.int32)
    got = unpack_words(packed, bits, count)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_it_is_the_inverse_of_what_exports_pack(bits: int) -> None:
    half = 1 << (bits - 1)
    codes = np.random.default_rng(bits).integers(-half, half, (4, 37)).astype(np.int8)
    np.testing.assert_array_equal(center(unpack_words(pack_words(codes, bits), bits, 37), bits), codes)


def test_words_of_a_transposed_matrix() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(2, 32) % 16
    turned = np.ascontiguousarray(words(codes, 4).numpy().T).T
    np.testing.assert_array_equal(unpack_words(turned, 4, 32), codes)


def test_pairs_and_numbers_with_exponents() -> None:
    assert unpack_pairs(np.array([[0x21, 0xF0]], np.uint8)).tolist() == [[1, 2, 0, 15]]
    assert unpack_pairs(np.empty((0, 2, 4), np.uint8)).shape == (0, 2, 8)
    np.testing.assert_array_equal(E2M1, 2 * torch.tensor(FP4_VALUES).numpy())
