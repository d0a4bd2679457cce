"""The numpy definition of KVarN's tile codec: balance a tile, round it, store it, read it back.

A tile holds one KV head's keys (rows: channels, columns: tokens) or values (rows: tokens, columns: channels), rotated by
`hadamard` along the channels. A row is the quantiser's group: it has one scale and one offset.

Source: arXiv 2606.03458 (KVarN), section 3 and appendix H; constants and record layout as the authors released them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Doubles = NDArray[np.float64]
Halves = NDArray[np.float16]
Bytes = NDArray[np.uint8]
Mode = Literal["release", "robust"]

MODES: tuple[Mode, ...] = ("release", "robust")
BITS = (2, 4, 8)
ITERATIONS = 8
STD_RANGE = (1e-3, 1e3)
LOG_SCALE_RANGE = (-0.3, 10.0)
SMALLEST_STEP = 1e-10
HALF_MAX = 65504.0


class Balanced(NamedTuple):
    """A tile as balanced * row_scale[:, None] * column_scale; created by `balance`.

    balanced: [..., R, C].
    column_scale: [..., C].
    row_scale: [..., R].
    imbalance_trace: [iterations + 1, ...], the imbalance before the first iteration, then after each. The smallest one
        belongs to the result; among equals it is the latest.
    """

    balanced: Doubles
    column_scale: Doubles
    row_scale: Doubles
    imbalance_trace: Doubles


@dataclass(frozen=True)
class Tile:
    """A stored tile, whose element [r, c] is (codes[r, c] * a[r] + b[r]) * c[c]; created by `encode` and `from_record`.

    codes: [..., R, C] uint8, below 2 ** bits.
    a: [..., R] float16, the scale of each row.
    b: [..., R] float16, the offset of each row.
    c: [..., C] float16, the scale of each column.
    """

    codes: Bytes
    a: Halves
    b: Halves
    c: Halves


def hadamard(size: int) -> Doubles:
    """The orthonormal Sylvester Hadamard matrix [size, size]: symmetric, its own inverse.

    Raises:
        ValueError: size is not a power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"hadamard: size: got {size}, expected a power of two")
    matrix: Doubles = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: Doubles = matrix / np.sqrt(size)
    return scaled


def balance(tile: Floats, iterations: int = ITERATIONS, mode: Mode = "release") -> Balanced:
    """Divide tile [..., R, C] by a scale for each column and for each row, to make their standard deviations equal.

    Each iteration sets the columns' scales, then the rows'. The iterate with the smallest imbalance is kept; the input
    itself counts as one.

    mode: `release` bounds scales by e^-0.3 from below for tiles of any magnitude, so a tile of small numbers is left as it
        is. `robust` first divides by the tile's root mean square, which the column scales then contain.

    Raises:
        ValueError: the tile has fewer than two rows or columns or a number that is not finite, `iterations` is negative, or
            `mode` is unknown.
    """
    x = _checked(tile, iterations, mode)
    size = _root_mean_square(x) if mode == "robust" else np.ones((*x.shape[:-2], 1, 1))
    x = x / size
    log_columns, log_rows = np.zeros_like(x[..., :1, :]), np.zeros_like(x[..., :, :1])
    current = x
    best, columns, rows = _imbalance(x), np.exp(log_columns), np.exp(log_rows)
    trace = [best]
    for _ in range(iterations):
        log_columns = np.clip(log_columns + _log_std(current, axis=-2), *LOG_SCALE_RANGE)
        current = x / np.exp(log_columns) / np.exp(log_rows)
        log_rows = np.clip(log_rows + _log_std(current, axis=-1), *LOG_SCALE_RANGE)
        current = x / np.exp(log_columns) / np.exp(log_rows)
        trace.append(_imbalance(current))
        better = trace[-1] <= best
        best = np.where(better, trace[-1], best)
        columns = np.where(better[..., None, None], np.exp(log_columns), columns)
        rows = np.where(better[..., None, None], np.exp(log_rows), rows)
    return Balanced(x / columns / rows, (columns * size)[..., 0, :], rows[..., 0], np.array(trace))


def encode(tile: Floats, bits: int, iterations: int = ITERATIONS, mode: Mode = "release") -> Tile:
    """Balance tile [..., R, C] and round it to `bits` bits: each row from its minimum to its maximum, ties to even.

    iterations: 0 leaves the tile unbalanced, which is plain asymmetric rounding of each row.

    Raises:
        ValueError: `bits` is not in BITS, or `balance` raises it.
    """
    if bits not in BITS:
        raise ValueError(f"encode: bits: got {bits}, expected one of {', '.join(map(str, BITS))}")
    balanced, columns, rows, _ = balance(tile, iterations, mode)
    low, high = balanced.min(axis=-1), balanced.max(axis=-1)
    top = 2**bits - 1
    step = np.maximum((high - low) / top, SMALLEST_STEP)
    codes = np.clip(np.rint((balanced - low[..., None]) / step[..., None]), 0, top).astype(np.uint8)
    return Tile(codes, _half(rows * step), _half(rows * low), _half(columns))


def decode(tile: Tile) -> Doubles:
    """The elements [..., R, C] of a stored tile."""
    a, b, c = (np.asarray(x, np.float64) for x in (tile.a, tile.b, tile.c))
    return (tile.codes * a[..., None] + b[..., None]) * c[..., None, :]


def pack(codes: Bytes, bits: int) -> Bytes:
    """Pack codes [..., n] into bytes [..., n * bits / 8], the first code in the lowest bits."""
    each = 8 // bits
    groups = codes.reshape(*codes.shape[:-1], -1, each).astype(np.uint16)
    packed: Bytes = (groups << (np.arange(each, dtype=np.uint16) * bits)).sum(axis=-1).astype(np.uint8)
    return packed


def unpack(packed: Bytes, bits: int) -> Bytes:
    """Unpack bytes [..., n] into codes [..., 8 / bits * n]; the inverse of `pack`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: Bytes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def record_bytes(head_dim: int, tokens: int, k_bits: int, v_bits: int) -> int:
    """Bytes of one record: a key tile [head_dim, tokens] and a value tile [tokens, head_dim] of one KV head."""
    key = head_dim * tokens * k_bits // 8 + 2 * (2 * head_dim + tokens)
    value = head_dim * tokens * v_bits // 8 + 2 * (head_dim + 2 * tokens)
    return key + value


def to_record(key: Tile, value: Tile, k_bits: int, v_bits: int) -> Bytes:
    """The record of one KV head's tiles: key codes, a, b, c, then value codes, c, a, b; uint8 [record_bytes]."""
    parts = [pack(key.codes, k_bits), key.a, key.b, key.c, pack(value.codes, v_bits), value.c, value.a, value.b]
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


def from_record(record: Bytes, head_dim: int, tokens: int, k_bits: int, v_bits: int) -> tuple[Tile, Tile]:
    """The key tile and the value tile of a record.

    Raises:
        ValueError: the record has another size.
    """
    expected = record_bytes(head_dim, tokens, k_bits, v_bits)
    if record.shape != (expected,):
        raise ValueError(f"from_record: got shape {record.shape}, expected ({expected},) bytes")
    at = 0

    def take(size: int) -> Bytes:
        nonlocal at
        at += size
        return record[at - size : at]

    def halves(count: int) -> Halves:
        return np.frombuffer(take(2 * count).tobytes(), np.float16)

    key_codes = unpack(take(head_dim * tokens * k_bits // 8).reshape(head_dim, -1), k_bits)
    key = Tile(key_codes, halves(head_dim), halves(head_dim), halves(tokens))
    value_codes = unpack(take(head_dim * tokens * v_bits // 8).reshape(tokens, -1), v_bits)
    columns = halves(head_dim)
    return key, Tile(value_codes, halves(tokens), halves(tokens), columns)


def _checked(tile: Floats, iterations: int, mode: str) -> Doubles:
    x = np.asarray(tile, np.float64)
    if x.ndim < 2 or min(x.shape[-2:]) < 2:
        raise ValueError(f"balance: tile: got shape {x.shape}, expected two rows and two columns at least")
    if not np.isfinite(x).all():
        raise ValueError("balance: tile: got numbers that are not finite")
    if iterations < 0:
        raise ValueError(f"balance: iterations: got {iterations}, expected 0 or more")
    if mode not in MODES:
        raise ValueError(f"balance: mode: got {mode!r}, expected one of {', '.join(MODES)}")
    return x


def _imbalance(x: Doubles) -> Doubles:
    """Largest over smallest standard deviation of the columns, plus that of the rows; 2 if all are equal."""
    total = np.zeros(x.shape[:-2])
    for axis in (-2, -1):
        std = x.std(axis=axis, ddof=1)
        total = total + std.max(axis=-1) / np.maximum(std.min(axis=-1), 1e-8)
    return total


def _log_std(x: Doubles, axis: int) -> Doubles:
    log_std: Doubles = np.log(np.clip(x.std(axis=axis, ddof=1, keepdims=True), *STD_RANGE))
    return log_std


def _root_mean_square(x: Doubles) -> Doubles:
    """The root mean square of each tile, [..., 1, 1]; 1 for a tile of zeros."""
    size = np.sqrt(np.mean(x * x, axis=(-2, -1), keepdims=True))
    return np.where(size > 0, size, 1.0)


def _half(x: Doubles) -> Halves:
    """The numbers in float16; those out of range become the largest finite ones."""
    return np.clip(x, -HALF_MAX, HALF_MAX).astype(np.float16)
