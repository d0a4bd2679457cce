"""Matrices of numbers with few bits that have an exponent: E2M1 and E2M3, which engines keep, and float8, which they do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from enginewright.exporters.source.quantized.packing import E2M1, E2M3, unpack_pairs, unpack_stream
from enginewright.exporters.source.quantized.quantized_folder import StoredMatrix
from enginewright.exporters.source.quantized.shared_scales import ScaleTile
from enginewright.exporters.source.quantized.stored_parts import ModuleParts, matrix_of_codes, matrix_of_numbers
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

FLOAT8 = ("F8_E4M3", "F8_E5M2")
"""safetensors' names of the types of float8."""
FLOAT8_RESTORED = "its numbers are float8"
_BITS = 8  # codes times a power of two are whole, from -12 to 12, or from -60 to 60


def small_float_shape(parts: ModuleParts, weight: str, bits: int, group_size: int) -> tuple[int, int]:
    """Return (n, k) of the codes `weight` uint8 [n, k * bits / 8], checked against groups of `group_size`.

    Raises:
        ExportError: the bytes do not hold whole groups.
    """
    n, width = parts.matrix(weight, "U8")
    k = width * 8 // bits
    if width * 8 % bits or k % group_size:
        stored = parts.stored(weight)
        raise ExportError(
            f"{stored.file}: tensor {parts.name(weight)!r} got {list(stored.shape)}, expected rows of whole groups of "
            f"{group_size} codes of {bits} bits; the settings belong to another checkpoint"
        )
    return n, k


def small_float_matrix(
    parts: ModuleParts,
    names: tuple[str, ...],
    told: str,
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    scales: Callable[[int], np.ndarray],
) -> StoredMatrix:
    """Return the matrix of codes E2M1 (4 bits, two a byte, the low nibble first) or E2M3 (6 bits, a stream, lowest bit first).

    names: of its stored tensors, codes first, as "weight_packed".
    told: name of the type.
    shape: (n, k) of `small_float_shape`.
    scales: returns scales [n, k / group_size] float32, divided by the number given, which codes are multiplied by.
    """
    table, factor = (E2M1, 2) if bits == 4 else (E2M3, 8)

    def load() -> tuple[np.ndarray, np.ndarray]:
        packed = parts.array(names[0])
        unpacked = unpack_pairs(packed) if bits == 4 else unpack_stream(packed, bits, shape[1])
        return table[unpacked], scales(factor)

    rows = QuantizedRows(bits=_BITS, group_size=group_size, load=load)
    return matrix_of_codes(parts.names(*names), shape, told, rows)


def float8_matrix(
    parts: ModuleParts, names: tuple[str, ...], tile: ScaleTile, scales: Callable[[], np.ndarray]
) -> StoredMatrix:
    """Return the matrix of float8 numbers times the scales of tiles, as numbers.

    names: of its stored tensors, the float8 numbers first.
    scales: returns the scales as they are stored, float32.
    """
    read = partial(_read_float8, parts, names[0], tile, scales)
    return matrix_of_numbers(parts.names(*names), tile.shape, f"float8 {tile.told}", read, FLOAT8_RESTORED)


def _read_float8(parts: ModuleParts, weight: str, tile: ScaleTile, scales: Callable[[], np.ndarray]) -> np.ndarray:
    return tile.scale(parts.array(weight), scales())
