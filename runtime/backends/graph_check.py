"""The packed decoder graph's inputs and outputs, and what of a graph this runtime can serve; whatever runs it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from enginewright.plugins.ops.registry import OPS
from enginewright.runtime.artifact.manifest import Graph, Manifest, TensorSpec
from enginewright.runtime.cache.capacity import EXACT_TILES, Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import ArtifactError

PER_STEP = ("input_ids", "position_ids", "query_starts", "sample_rows")
TABLES = ("kv_lens", "tile_table", "encoded_lens")
OUTPUTS = {"logits": "float32", "greedy_tokens": "int64"}
DRAFTS = {"clp_tokens": "int64", "clp_counts": "int64"}


def input_shapes(
    manifest: Manifest, tables: TileTables, capacity: Capacity
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Every input at its full size."""
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "input_ids": ((capacity.step_tokens,), np.int64),
        "position_ids": ((capacity.step_tokens,), np.int64),
        "query_starts": ((capacity.rows + 1,), np.int32),
        "sample_rows": ((capacity.logit_rows,), np.int64),
        "slots": ((capacity.rows,), np.int32),
    }
    shapes |= {name: (getattr(tables, name).shape, np.int32) for name in TABLES}
    for index, (layer, tiles) in enumerate(zip(manifest.cache.layers, capacity.tiles, strict=True)):
        shapes[f"kv.{index}.tiles"] = (tiles, layer.tile_bytes), np.int8
        if layer.exact_bytes:
            shape = (capacity.rows, layer.kv_heads, EXACT_TILES, layer.exact_bytes // 2)
            shapes[f"kv.{index}.exact"] = shape, np.float16
    return {name: (shape, np.dtype(dtype)) for name, (shape, dtype) in shapes.items()}


def output_shapes(manifest: Manifest, capacity: Capacity) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Every output that is no cache at its full size; those of drafts where a step may decide several tokens."""
    rows = capacity.logit_rows
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "logits": ((rows, manifest.model.vocab_size), np.dtype(np.float32)),
        "greedy_tokens": ((rows,), np.dtype(np.int64)),
    }
    if capacity.width > 1:
        shapes["clp_tokens"] = (rows, capacity.width), np.dtype(np.int64)
        shapes["clp_counts"] = (rows,), np.dtype(np.int64)
    return shapes


def check_signature(root: Path, graph: Graph, taken: Iterable[str], inputs: dict[str, str], *, drafts: bool) -> None:
    """Raise ArtifactError where the graph asks for what this runtime does not have, or lacks what it reads.

    taken: inputs that the opened graph itself has. inputs: dtype by name. drafts: whether a step may decide several tokens.
    """
    for spec in graph.inputs:
        _check_spec(root, "input", spec, inputs)
    differing = set(taken) ^ {spec.name for spec in graph.inputs}
    if differing:
        names = ", ".join(sorted(differing))
        raise ArtifactError(f"{root}: manifest and decoder graph differ in inputs {names}; build the engine again")
    for name in sorted(_of_cache(inputs) - {spec.name for spec in graph.inputs}):
        raise ArtifactError(f"{root}: the decoder graph takes no {name!r}, which the cache has; build the engine again")
    for spec in graph.outputs:
        own = {f"{spec.alias}.out": inputs.get(spec.alias, "")} if spec.alias is not None else {**OUTPUTS, **DRAFTS}
        _check_spec(root, "output", spec, own)
    needed = {**OUTPUTS, **DRAFTS} if drafts else OUTPUTS
    for name in sorted(needed.keys() - {spec.name for spec in graph.outputs}):
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
