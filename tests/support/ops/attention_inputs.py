"""Builds inputs for PagedAttention and runs them through ONNX Runtime or the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS, tile_bytes

Arrays = dict[str, np.ndarray]


class Tables(Protocol):
    """The sizes of a case's tables."""

    @property
    def layers(self) -> int: ...
    @property
    def layer(self) -> int: ...
    @property
    def other_heads(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call.

    rows: (tokens held, new tokens) of each row.
    held_skew: KV head h holds h * held_skew tokens less.
    other_heads: heads that the tables have for other layers, after those of this one.
    """

    name: str
    rows: tuple[tuple[int, int], ...]
    query_heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    value_dim: int = 64
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    kv_bits: int = 16
    held_skew: int = 0
    other_heads: int = 0
    layers: int = 2
    layer: int = 1
    magnitude: float = 1.0
    tolerance: float = 2e-6  # float32 sums of up to a few thousand products, against float64; outputs are near 1

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes; defaults are left out so that they are tested."""
        optional = {
            "window": (self.window, 0),
            "softcap": (self.softcap, 0.0),
            "kv_bits": (self.kv_bits, 16),
        }
        given = {name: value for name, (value, default) in optional.items() if value != default}
        return {"layer": self.layer, "scale": self.dim**-0.5, **given}


def make_inputs(case: Case, seed: int = 0) -> Arrays:
    """Random inputs; tile ids scattered, unused table entries -1, unused slots and tiles random bytes (NaN too)."""
    rng = np.random.default_rng(seed)
    tokens, batch = sum(new for _, new in case.rows), len(case.rows)
    held = np.array([[[max(0, old - case.held_skew * h) for h in range(case.kv_heads)] for old, _ in case.rows]])
    held = held.reshape(1, batch, case.kv_heads)
    new = np.array([n for _, n in case.rows], int).reshape(batch, 1)
    used = -(-(held[0] + new) // TILE_TOKENS)
    width = max(1, int(used.max(initial=0))) + 1
    count = int(used.sum()) + 3
    ids = rng.permutation(count)
    table = np.full((batch, case.kv_heads, width), -1, np.int32)
    at = 0
    for row in range(batch):
        for head in range(case.kv_heads):
            n = int(used[row, head])
            table[row, head, :n] = ids[at : at + n]
            at += n
            if case.window:  # the tiles that nobody sees any more
                table[row, head, : max(0, int(held[0, row, head]) + 1 - case.window) // TILE_TOKENS] = -1

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * case.magnitude).astype(np.float32)

    arrays = {
        "query": normal(tokens, case.query_heads, case.dim),
        "key": normal(tokens, case.kv_heads, case.dim),
        "value": normal(tokens, case.kv_heads, case.value_dim),
        "tiles": make_pool(case, rng, count, table, held[0]),
        "query_starts": np.cumsum([0, *(n for _, n in case.rows)]).astype(np.int32),
        "kv_lens": at_layer(case, held[0].astype(np.int32), 7),
        "tile_table": at_layer(case, table, -1),
    }
    if case.sinks:
        arrays["sinks"] = normal(case.query_heads)
    return arrays


def at_layer(case: Tables, array: np.ndarray, other: int) -> np.ndarray:
    """Stacks layers around one [rows, heads, ...], and heads after its own, filled with `other`: reading them is an error."""
    rows, heads, *inner = array.shape
    stacked = np.full((case.layers, rows, heads + case.other_heads, *inner), other, array.dtype)
    stacked[case.layer, :, :heads] = array
    return stacked


def make_pool(case: Case, rng: np.random.Generator, count: int, table: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Random numbers in the slots held, random bytes elsewhere."""
    pool = rng.integers(-128, 128, (count, tile_bytes(case.dim, case.value_dim, case.kv_bits)), np.int8)
    elements = pool.view(np.float16 if case.kv_bits == 16 else np.float32)
    keys = elements[:, : TILE_TOKENS * case.dim].reshape(count, -1, case.dim, 16)
    values = elements[:, TILE_TOKENS * case.dim :].reshape(count, TILE_TOKENS, case.value_dim)

    def normal(*shape: int) -> np.ndarray:
        return np.clip(rng.standard_normal(shape) * case.magnitude, -65504, 65504)

    for row in range(held.shape[0]):
        for head in range(case.kv_heads):
            for tile in range(-(-int(held[row, head]) // TILE_TOKENS)):
                id, slots = table[row, head, tile], min(TILE_TOKENS, int(held[row, head]) - tile * TILE_TOKENS)
                if id < 0:
                    continue
                fresh = normal(TILE_TOKENS, case.dim)
                blocked = fresh.reshape(-1, 16, case.dim).transpose(0, 2, 1)
                mask = (np.arange(TILE_TOKENS) < slots).reshape(-1, 1, 16)
                keys[id] = np.where(mask, blocked, keys[id])
                values[id, :slots] = normal(slots, case.value_dim)
    return pool


def run(case: Case, arrays: Arrays, threads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The op through ONNX Runtime; the pool is copied."""
    from tests.support.ops.op_session import run_op  # kernels on other hosts have the same cases, and no ONNX Runtime

    output, tiles = run_op(PAGED_ATTENTION.name, arrays, threads, **case.attributes)
    return output, tiles


def run_in_place(case: Case, arrays: Arrays, threads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The op through ONNX Runtime, with one pool bound as input and output."""
    from tests.support.ops.op_session import run_op_in_place

    output, tiles = run_op_in_place(PAGED_ATTENTION.name, arrays, threads, **case.attributes)
    return output, tiles


def expected(case: Case, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The oracle's answer."""
    return PAGED_ATTENTION.load_oracle()(**arrays, **case.attributes)
