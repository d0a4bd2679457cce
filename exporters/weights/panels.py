"""Packs matrices of codes or of bfloat16 into the panels that BlockLinear reads; `plugins/csrc/layout/panel.h` has the layout."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from enginewright.plugins.ops.block_linear import CHUNK_COLUMNS, FACTOR_COLUMNS, NUMBER_BITS, PANEL_ROWS
from enginewright.runtime.errors import ExportError

_LARGEST = (2 - 2.0**-7) * 2.0**127  # of bfloat16


def panel_bytes(columns: int, bits: int, block: int, *, scale_bits: int, minima: bool) -> int:
    """Return the bytes of a panel of 16 rows.

    columns: of the matrix.
    bits: of a code, or 16 for bfloat16.
    block: columns that share a scale: 16, or a multiple of 32.
    scale_bits: of a scale, and of a minimum.
    minima: whether a block has a minimum.
    """
    chunks = -(-columns // CHUNK_COLUMNS)
    if bits == NUMBER_BITS:
        return chunks * _chunk_bytes(bits)
    groups = -(-chunks // _chunks_of_group(block))
    factors = -(-columns // FACTOR_COLUMNS) * PANEL_ROWS * 2 if scale_bits == 8 else 0
    numbers = groups * _numbers_of_group(block) * scale_bits // 8 + factors
    return chunks * _chunk_bytes(bits) + numbers * (1 + minima)


def pack_panels(
    codes: np.ndarray,
    scales: np.ndarray,
    minima: np.ndarray | None,
    bits: int,
    block: int,
    factors: np.ndarray | None = None,
) -> np.ndarray:
    """Return the panels int8 [ceil(n / 16), bytes] of codes [n, k] in 0 .. 2^bits - 1.

    scales, minima: [n, ceil(k / block)] of float16 or float32, which is how they are stored, or of int8 with factors. Rows that
    fill up the last panel have scales of 0.
    factors: of each 256 columns, what scales of int8 are multiplied by, and then with minima what these are: float16
    [n, ceil(k / 256)], or twice as many.
    """
    n, k = codes.shape
    panels, chunks = -(-n // PANEL_ROWS), -(-k // CHUNK_COLUMNS)
    padded = np.zeros((panels * PANEL_ROWS, chunks * CHUNK_COLUMNS), np.uint8)
    padded[:n, :k] = codes
    packed = _pack_chunks(padded.reshape(panels, PANEL_ROWS, chunks, 8, 4), bits)  # [panels, chunks, bytes]
    numbers = [_pack_numbers(part, panels, block) for part in (scales, minima) if part is not None]
    step, pieces = _chunks_of_group(block), []
    for group, begin in enumerate(range(0, chunks, step)):
        pieces.append(packed[:, begin : begin + step].reshape(panels, -1))
        pieces.extend(part[:, group] for part in numbers)
    if factors is not None:
        turned = np.zeros((panels * PANEL_ROWS, factors.shape[1]), np.float16)
        turned[:n] = factors
        turned = turned.reshape(panels, PANEL_ROWS, -1).transpose(0, 2, 1)
        pieces.append(np.ascontiguousarray(turned).reshape(panels, -1).view(np.uint8))
    return np.concatenate(pieces, axis=1).view(np.int8)


def pack_bfloat16(rows: np.ndarray) -> np.ndarray:
    """Return the panels int8 [ceil(n / 16), bytes] of numbers [n, k], which are rounded to the nearest of bfloat16.

    Raises:
        ExportError: a number is beyond the largest of bfloat16.
    """
    n, k = rows.shape
    panels, chunks = -(-n // PANEL_ROWS), -(-k // CHUNK_COLUMNS)
    padded = np.zeros((panels * PANEL_ROWS, chunks * CHUNK_COLUMNS), np.uint16)
    rounded = rows.astype(ml_dtypes.bfloat16)
    if np.isinf(rounded[~np.isinf(rows)]).any():
        most = float(np.abs(rows[np.isfinite(rows)]).max())
        raise ExportError(
            f"weights: got a number of {most:.4g}, expected at most {_LARGEST:.4g}, the largest of bfloat16; do --weights "
            "float32"
        )
    padded[:n, :k] = rounded.view(np.uint16)
    pairs = padded.reshape(panels, PANEL_ROWS, -1, 2).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(pairs).reshape(panels, -1).view(np.int8)


def _chunk_bytes(bits: int) -> int:
    return PANEL_ROWS * CHUNK_COLUMNS * bits // 8


def _chunks_of_group(block: int) -> int:
    return max(block // CHUNK_COLUMNS, 1)


def _numbers_of_group(block: int) -> int:
    return PANEL_ROWS * max(CHUNK_COLUMNS // block, 1)


def _pack_chunks(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [panels, 16, chunks, 8, 4] as planes, the low bits first: [panels, chunks, bytes of a chunk]."""
    low = 8 if bits == 8 else 4 if bits >= 4 else 2
    planes = []
    for width, shift in ((low, 0), (bits - low, low)):
        if not width:
            continue
        together = 8 // width  # fours of columns in a byte
        part = (codes >> shift & ((1 << width) - 1)).reshape(*codes.shape[:3], width, together, 4)
        byte = np.zeros((*codes.shape[:3], width, 4), np.uint8)
        for i in range(together):
            byte |= part[..., i, :] << (i * width)
        planes.append(byte.transpose(0, 2, 3, 1, 4).reshape(codes.shape[0], codes.shape[2], -1))
    return np.concatenate(planes, axis=2)


def _pack_numbers(numbers: np.ndarray, panels: int, block: int) -> np.ndarray:
    """Scales or minima [n, blocks] as bytes of each group: uint8 [panels, groups, bytes]."""
    n, blocks = numbers.shape
    parts = max(CHUNK_COLUMNS // block, 1)
    groups = -(-blocks // parts)
    padded = np.zeros((panels * PANEL_ROWS, groups * parts), numbers.dtype)
    padded[:n, :blocks] = numbers
    turned = padded.reshape(panels, PANEL_ROWS, groups, parts).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(turned).reshape(panels, groups, -1).view(np.uint8)
