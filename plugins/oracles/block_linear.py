"""Defines BlockLinear, GreedyLinear, BlockLookup and ExpertMixture in numpy, and the layout of their matrices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.plugins.ops.block_linear import CHUNK_COLUMNS, FACTOR_COLUMNS, NUMBER_BITS, OFFSETS, PANEL_ROWS
from enginewright.plugins.oracles.greedy_sample import greedy_sample

Floats = NDArray[np.float32]


def block_linear(
    x: Floats,
    panels: NDArray[np.int8],
    bias: Floats | None = None,
    residual: Floats | None = None,
    norm: Floats | None = None,
    *,
    rows: int,
    columns: int,
    width: int,
    bits: int,
    block: int,
    scale_bits: int = 16,
    minima: int = 0,
    exact: int = 0,
    epsilon: float = 1e-6,
    gate: int = 0,
) -> Floats:
    """Return x W^T, with what the optional inputs and attributes add.

    x: [1, T, columns], or [T, heads, columns / heads].
    panels: [ceil(rows / 16), bytes of a panel].
    bias: [rows].
    residual: [1, T, width].
    norm: [columns].
    """
    weight = unpack_panels(panels, rows, columns, bits, block, scale_bits=scale_bits, minima=minima)
    tokens = x.reshape(-1, columns).astype(np.float64)
    if norm is not None:
        tokens = tokens / np.sqrt(np.square(tokens).mean(-1, keepdims=True) + epsilon) * norm
    round_rows = _rounded_to_bfloat16 if bits == NUMBER_BITS else _rounded
    result = (tokens if exact else round_rows(tokens)) @ weight.astype(np.float64).T
    if bias is not None:
        result = result + bias
    if gate:
        result = _activate(gate, result[:, :width]) * result[:, width:]
    if residual is not None:
        result = result + residual[0]
    return result[None].astype(np.float32)


def greedy_linear(
    x: Floats,
    panels: NDArray[np.int8],
    wanted: NDArray[np.int64],
    bias: Floats | None = None,
    norm: Floats | None = None,
    *,
    rows: int,
    **attributes: Any,
) -> tuple[Floats, NDArray[np.int64]]:
    """Return x W^T [N, rows], zeros unless `wanted`, and the index of each row's largest, -1 where it is not finite.

    attributes: the others of BlockLinear that GreedyLinear has.
    """
    logits = block_linear(x, panels, bias, norm=norm, rows=rows, width=rows, **attributes)[0]
    return logits if wanted[0] else np.zeros_like(logits), greedy_sample(logits)


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
    weight = unpack_panels(panels, rows, columns, bits, block, scale_bits=scale_bits, minima=minima)
    return np.ascontiguousarray(weight[ids])


def expert_mixture(
    x: Floats,
    ids: NDArray[np.int64],
    weights: Floats,
    up: NDArray[np.int8],
    down: NDArray[np.int8],
    up_bias: Floats | None = None,
    down_bias: Floats | None = None,
    *,
    columns: int,
    inner: int,
    gate: int,
    slope: float = 1.0,
    limit: float = 1e30,
    exact: int = 0,
    **codes: int,
) -> Floats:
    """Return the sum, for each row of x [T, columns], of what its experts `ids` [T, K] make of it, times `weights` [T, K].

    up: [E, panels, bytes] of matrices [2 * inner, columns], whose first half is the gate's.
    down: [E, panels, bytes] of matrices [columns, inner].
    up_bias: [E, 2 * inner], in the order of the rows.
    down_bias: [E, columns].
    codes: bits, block, scale_bits and minima of the matrices, as up_bits and so on.
    """
    first: dict[str, Any] = {"rows": 2 * inner, "columns": columns, "width": 2 * inner, "exact": exact}
    second: dict[str, Any] = {"rows": columns, "columns": inner, "width": columns, "exact": exact}
    for key, value in codes.items():
        matrix, _, name = key.partition("_")
        (first if matrix == "up" else second)[name] = value
    out = np.zeros((len(x), columns))
    for token, k in np.ndindex(ids.shape):
        e = ids[token, k]
        both = block_linear(x[None, token : token + 1], up[e], None if up_bias is None else up_bias[e], **first)
        gates, others = both.reshape(2, inner).astype(np.float64)
        if gate == 4:
            gates, others = np.minimum(gates, limit), np.clip(others, -limit, limit)
            made = gates / (1 + np.exp(-slope * gates)) * (others + 1)
        else:
            made = _activate(gate, gates) * others
        hidden = made.reshape(1, 1, inner).astype(np.float32)
        result = block_linear(hidden, down[e], None if down_bias is None else down_bias[e], **second)
        out[token] += weights[token, k] * result[0, 0]
    return out.astype(np.float32)


def unpack_panels(
    panels: NDArray[np.int8], rows: int, columns: int, bits: int, block: int, *, scale_bits: int, minima: int
) -> Floats:
    """Return W [rows, columns] that panels stand for."""
    if bits == NUMBER_BITS:
        pairs = panels.view(np.uint16).reshape(len(panels), -1, PANEL_ROWS, 2).astype(np.uint32) << 16
        return pairs.transpose(0, 2, 1, 3).reshape(len(panels) * PANEL_ROWS, -1)[:rows, :columns].view(np.float32)
    chunks, group = -(-columns // CHUNK_COLUMNS), max(block // CHUNK_COLUMNS, 1)
    parts = CHUNK_COLUMNS // block if block < CHUNK_COLUMNS else 1
    scale_type = {8: np.int8, 16: np.float16, 32: np.float32}[scale_bits]
    factors = _factors(panels, columns, 2 if minima else 1) if scale_bits == 8 else None
    weight = np.zeros((len(panels), PANEL_ROWS, chunks, CHUNK_COLUMNS), np.float32)
    at = 0
    for begin in range(0, chunks, group):
        here = range(begin, min(begin + group, chunks))
        codes = np.zeros((len(panels), PANEL_ROWS, len(here), CHUNK_COLUMNS), np.float32)
        for i in range(len(here)):
            codes[:, :, i] = _codes_of_chunk(panels[:, at : at + 64 * bits].view(np.uint8), bits)
            at += 64 * bits
        numbers = []
        for which in range(2 if minima else 1):
            size = parts * PANEL_ROWS * scale_bits // 8
            raw = np.ascontiguousarray(panels[:, at : at + size]).view(scale_type).astype(np.float32)
            of_rows = raw.reshape(len(panels), parts, PANEL_ROWS).transpose(0, 2, 1)[:, :, None, :, None]
            if factors is not None:
                of_rows = of_rows * factors[:, begin * CHUNK_COLUMNS // FACTOR_COLUMNS, which, :, None, None, None]
            numbers.append(of_rows)
            at += size
        split = codes.reshape(*codes.shape[:3], parts, -1)
        if minima == OFFSETS["minima"]:
            whole = split * numbers[0] + numbers[1]
        else:
            whole = (split - (numbers[1] if minima else 1 << (bits - 1))) * numbers[0]
        weight[:, :, begin : begin + len(here)] = whole.reshape(codes.shape)
    return weight.reshape(-1, chunks * CHUNK_COLUMNS)[:rows, :columns]


def _factors(panels: NDArray[np.int8], columns: int, kinds: int) -> Floats:
    """Return what scales, and minima if `kinds` is 2, of 8 bits are multiplied by: [panels, of 256 columns, kinds, 16]."""
    count = -(-columns // FACTOR_COLUMNS)
    raw = np.ascontiguousarray(panels[:, -count * kinds * PANEL_ROWS * 2 :]).view(np.float16).astype(np.float32)
    return raw.reshape(len(panels), count, kinds, PANEL_ROWS)


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
