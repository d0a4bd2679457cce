"""Checks that this runtime can serve a decoder graph: its inputs, outputs, types and ops; and the full size of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from enginewright.plugins.ops.registry import OPS
from enginewright.runtime.artifact.decoder_graph import OUTPUTS, Axis, packed_inputs
from enginewright.runtime.artifact.manifest import Graph, Manifest, TensorSpec
from enginewright.runtime.cache.capacity import EXACT_TILES, Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import ArtifactError

TABLES = ("kv_lens", "tile_table", "encoded_lens")
"""The inputs that TileTables holds, by the names of its attributes."""
Shapes = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


def input_shapes(manifest: Manifest, tables: TileTables, capacity: Capacity) -> Shapes:
    """Return the full size and the type of every input that a packed graph may have."""
    layers, rows, heads, longest = tables.tile_table.shape
    sizes: dict[Axis, int] = {
        "T": capacity.step_tokens,
        "B": rows,
        "B1": rows + 1,
        "N": capacity.logit_rows,
        "L": layers,
        "H": heads,
        "M": longest,
        "slots": rows,
        "exact": EXACT_TILES,
        **{f"tiles_{layer}": tiles for layer, tiles in enumerate(capacity.tiles)},
    }
    return {port.name: (_sized(port.axes, sizes), np.dtype(port.dtype)) for port in packed_inputs(manifest.cache)}


def output_shapes(manifest: Manifest, capacity: Capacity) -> Shapes:
    """Return the full size and the type of every output that is no cache; drafts only where a step may decide several."""
    sizes: dict[Axis, int] = {"N": capacity.logit_rows, "vocab": manifest.model.vocab_size, "k": capacity.width}
    return {
        port.name: (_sized(port.axes, sizes), np.dtype(port.dtype))
        for port in OUTPUTS
        if capacity.width > 1 or not port.only
    }


def _sized(axes: tuple[Axis, ...], sizes: Mapping[Axis, int]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in axes)


def check_signature(root: Path, graph: Graph, taken: Iterable[str], inputs: dict[str, str], *, drafts: bool) -> None:
    """Raise ArtifactError where the graph asks for something that this runtime does not have, or lacks what it reads.

    taken: names of the inputs that the opened graph itself has.
    inputs: type of every input that the runtime can feed, by name.
    drafts: whether a step may decide several tokens.
    """
    for spec in graph.inputs:
        _check_spec(root, "input", spec, inputs)
    differing = set(taken) ^ {spec.name for spec in graph.inputs}
    if differing:
        names = ", ".join(sorted(differing))
        raise ArtifactError(f"{root}: manifest and decoder graph differ in inputs {names}; build the engine again")
    for name in sorted(_of_cache(inputs) - {spec.name for spec in graph.inputs}):
        raise ArtifactError(f"{root}: the decoder graph takes no {name!r}, which the cache has; build the engine again")
    every = {port.name: port.dtype for port in OUTPUTS}
    for spec in graph.outputs:
        own = {f"{spec.alias}.out": inputs.get(spec.alias, "")} if spec.alias is not None else every
        _check_spec(root, "output", spec, own)
    needed = {port.name for port in OUTPUTS if drafts or not port.only}
    for name in sorted(needed - {spec.name for spec in graph.outputs}):
        raise ArtifactError(f"{root}: the decoder graph has no output {name!r}; build the engine again")


def _of_cache(names: Iterable[str]) -> set[str]:
    """Those that belong to one layer's cache."""
    return {name for name in names if name.startswith("kv.")}


def _check_spec(root: Path, kind: str, spec: TensorSpec, expected: dict[str, str]) -> None:
    where = f"{root}: decoder {kind} {spec.name!r}"
    if spec.name not in expected:
        if _of_cache([spec.name]):
            known = ", ".join(sorted(_of_cache(expected)))
            raise ArtifactError(f"{where}: not in the manifest's cache, which has {known}; build the engine again")
        known = ", ".join(sorted(expected))
        raise ArtifactError(f"{where}: unknown to this runtime, expected one of {known}; upgrade enginewright")
    if spec.dtype != expected[spec.name]:
        raise ArtifactError(f"{where}: got {spec.dtype}, expected {expected[spec.name]}; build the engine again")


def check_ops(root: Path, graph: Graph) -> None:
    """Raise ArtifactError where the graph uses an op, or a version of it, that this installation does not have."""
    for name, version in graph.ops.items():
        if name not in OPS:
            known = ", ".join(OPS)
            raise ArtifactError(f"{root}: op {name!r} is unknown, expected one of {known}; upgrade enginewright")
        if OPS[name].version != version:
            raise ArtifactError(
                f"{root}: the graph uses {name} version {version}, this installation has version {OPS[name].version}; "
                f"build the engine again with this enginewright, or install the one that built it"
            )
