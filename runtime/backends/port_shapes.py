"""The full size and the type of every input and output of a decoder graph, for the buffers that a session allocates."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from enginewright.runtime.artifact.decoder_graph import Axis, Port, inputs, outputs
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.cache.capacity import EXACT_TILES, Capacity, spare_slots
from enginewright.runtime.cache.tile_tables import TileTables

Spec: TypeAlias = tuple[tuple[int, ...], np.dtype[Any]]
Shapes: TypeAlias = dict[str, Spec]


def numpy_type(dtype: str) -> np.dtype[Any]:
    """Return numpy's type for one of a port; bfloat16, which numpy does not have, as uint16."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)


def input_shapes(manifest: Manifest, tables: TileTables, capacity: Capacity, *, spare: int = 0) -> Shapes:
    """Return the full size and the type of every input of a packed graph.

    spare: tiles in each pool, and rows of exact tiles, in addition to those that the tables lead to.
    """
    layers, rows, heads, longest = tables.tile_table.shape
    sizes: dict[Axis, int] = {
        "T": capacity.step_tokens,
        "B": rows,
        "B1": rows + 1,
        "N": capacity.logit_rows,
        "L": layers,
        "H": heads,
        "M": longest,
        "slots": rows + spare + spare_slots(manifest.cache),
        "exact": EXACT_TILES,
        **{f"tiles_{layer}": tiles + spare for layer, tiles in enumerate(capacity.tiles)},
    }
    return {port.name: _spec(port, sizes) for port in inputs(manifest)}


def dense_shapes(manifest: Manifest, rows: int) -> Shapes:
    """Return the shape and type of every cache and condition's tensor of a graph of standard ops, for `rows` rows."""
    return {port.name: _spec(port, {"B": rows}) for port in inputs(manifest) if port.lives in ("pool", "condition")}


def output_shapes(manifest: Manifest, capacity: Capacity, *, spare: int = 0) -> Shapes:
    """Return the full size and the type of every output that is no cache.

    spare: rows in addition to those of the largest step.
    """
    sizes: dict[Axis, int] = {"N": capacity.logit_rows + spare, "vocab": manifest.model.vocab_size}
    return {port.name: _spec(port, sizes) for port in outputs(manifest)}


def _spec(port: Port, sizes: dict[Axis, int]) -> Spec:
    return port.shape(sizes), numpy_type(port.dtype)
