"""Defines BlockLinear and BlockLookup in numpy, and the layout of their matrices."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.ops.block_linear import CHUNK_COLUMNS, NUMBER_BITS, PANEL_ROWS

Floats = NDArray[np.float32]


def block_linear(
    x: Floats,
    panels: NDArray[np.int8],
    bias: Floats | None = None,
    residual: Floats | None = None,
    *,
    rows: int,
    columns: int,
    width: int,
    bits: int,
    block: int,
    scale_bits: int = 16,
    minima: int = 0,
    exact: int = 0,
    norm: int = 0,
    epsilon: float = 1e-6,
    gate: int = 0,
) -> Floats:
    """Return x W^T, with what the optional inputs and attributes add.

    x: [1, T, columns].
    panels: [ceil(rows / 16), bytes of a panel].
    bias: [rows].
    residual: [1, T, width].
    """
    weight = unpack_panels(panels, rows, columns, bits, block, scale_bits=scale_bits, minima=bool(minima))
    tokens = x[0].astype(np.float64)
    if norm:
        tokens = tokens / np.sqrt(np.square(tokens).mean(-1, keepdims=True) + epsilon)
    round_rows = _rounded_to_bfloat16 if bits == NUMBER_BITS else _rounded
    result = (tokens if exact else round_rows(tokens)) @ weight.astype(np.float64).T
    if bias is not None:
        result = result + bias
    if gate:
        pairs = result.reshape(len(result), width // PANEL_ROWS, 2, PANEL_ROWS)
        result = (_activate(gate, pairs[:, :, 0]) * pairs[:, :, 1]).reshape(len(result), width)
    if residual is not None:
        result = result + residual[0]
    return result[None].astype(np.float32)


def block_lookup(
    panels: NDArray[np.int8],
    ids: NDArray[np.int64],
    *,
    rows: int,
    columns: int,
    bits: int,
    block: int,
    scale_bits: int = 16,
    minima: int = 0,
) -> Floats:
    """Return W[ids], [1, T, columns], of the W that `panels` stand for; ids [1, T]."""
    weight = unpack_panels(panels, rows, columns, bits, block, scale_bits=scale_bits, minima=bool(minima))
    return np.ascontiguousarray(weight[ids])


def unpack_panels(
    panels: NDArray[np.int8], rows: int, columns: int, bits: int, block: int, *, scale_bits: int, minima: bool
) -> Floats:
    """Return W [rows, columns] that panels stand for."""
    if bits == NUMBER_BITS:
        pairs = panels.view(np.uint16).reshape(len(panels), -1, PANEL_ROWS, 2).astype(np.uint32) << 16
        return pairs.transpose(0, 2, 1, 3).reshape(len(panels) * PANEL_ROWS, -1)[:rows, :columns].view(np.float32)
    chunks, group = -(-columns // CHUNK_COLUMNS), max(block // CHUNK_COLUMNS, 1)
    parts = CHUNK_COLUMNS // block if block < CHUNK_COLUMNS else 1
    scale_type = np.float16 if scale_bits == 16 else np.float32
    weight = np.zeros((len(panels), PANEL_ROWS, chunks, CHUNK_COLUMNS), np.float32)
    at = 0
    for begin in range(0, chunks, group):
        here = range(begin, min(begin + group, chunks))
        codes = np.zeros((len(panels), PANEL_ROWS, len(here), CHUNK_COLUMNS), np.float32)
        for i in range(len(here)):
            codes[:, :, i] = _codes_of_chunk(panels[:, at : at + 64 * bits].view(np.uint8), bits)
            at += 64 * bits
        numbers = []
        for _ in range(1 + minima):
            size = parts * PANEL_ROWS * scale_bits // 8
            raw = np.ascontiguousarray(panels[:, at : at + size]).view(scale_type).astype(np.float32)
            numbers.append(raw.reshape(len(panels), parts, PANEL_ROWS).transpose(0, 2, 1)[:, :, None, :, None])
            at += size
        split = codes.reshape(*codes.shape[:3], parts, -1)
        whole = split * numbers[0] + numbers[1] if minima else (split - (1 << (bits - 1))) * numbers[0]
        weight[:, :, begin : begin + len(here)] = whole.reshape(codes.shape)
    return weight.reshape(-1, chunks * CHUNK_COLUMNS)[:rows, :columns]


def _codes_of_chunk(chunk: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Return codes [panels, 16, 32] of a chunk's bytes [panels, 64 * bits]."""
    low = 8 if bits == 8 else 4 if bits >= 4 else 2
    codes, at = np.zeros((len(chunk), PANEL_ROWS, CHUNK_COLUMNS), np.uint8), 0
    for plane, shift in ((low, 0), (bits - low, low)):
        for i in range(CHUNK_COLUMNS // 4 if plane else 0):
            vector = chunk[:, at + i * plane // 8 * 64 :][:, :64].reshape(-1, PANEL_ROWS, 4)
            codes[:, :, 4 * i : 4 * i + 4] |= (vector >> i * plane % 8 & ((1 << plane) - 1)) << shift
        at += 64 * plane
    return codes


def _rounded(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows [T, inputs] with each 32 numbers rounded to codes of 8 bits times a scale; NaN where one of them is not finite."""
    chunks = -(-rows.shape[1] // CHUNK_COLUMNS)
    padded = np.zeros((len(rows), chunks * CHUNK_COLUMNS))
    padded[:, : rows.shape[1]] = rows
    split = padded.reshape(len(rows), chunks, CHUNK_COLUMNS)
    scale = np.abs(split).max(-1, keepdims=True) / 127
    codes = np.rint(np.divide(split, scale, out=np.zeros_like(split), where=scale > 0))
    whole = np.where(np.isfinite(split).all(-1, keepdims=True), codes * scale, np.nan)
    return whole.reshape(padded.shape)[:, : rows.shape[1]]


def _rounded_to_bfloat16(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows with numbers rounded to the nearest of bfloat16, to even where two are; NaN and infinities as they are."""
    bits = rows.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(rows), rounded.view(np.float32), rows)


def _activate(gate: int, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if gate == 1:
        share = 1 / (1 + np.exp(-x))
    elif gate == 2:
        share = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    else:
        share = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    result: NDArray[np.float64] = x * share
    return result
