"""The decoder graph's declared ports against the ops they feed and the graphs that exports make of them."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.decoder_graph import (
    DENSE_INPUTS,
    INPUTS,
    OUTPUTS,
    PER_STEP,
    Port,
    added_inputs,
    dense_inputs,
    exact_pools,
    inputs,
    outputs,
    packed_inputs,
)
from enginewright.runtime.artifact.manifest import (
    Cache,
    CacheLayer,
    Condition,
    ConditionTensor,
    Graph,
    Limits,
    Manifest,
    Model,
    TensorSpec,
)
from enginewright.runtime.errors import ArtifactError
from tests.support.paths import ROOT

# Where the names of ports may be written as strings, and why. Everywhere else they come from the declaration.
NAMED_IN = {
    "runtime/artifact/decoder_graph.py": "the declaration",
    "exporters/capture": "the model's forward pass takes and returns them",
    "exporters/methods": "methods add nodes that read them",
    "runtime/triton": "Triton's inputs have names of their own",
    "plugins": "ops have ports of their own",
}


def cache(kind: str, **layer: int) -> Cache:
    layers = (CacheLayer(kv_heads=2, key_dim=64, value_dim=64, tile_bytes=7, **layer),) * 2
    return Cache(kind=kind, tile_tokens=128, kv_bits=16, layers=layers)


@pytest.mark.native
def test_a_packed_engine_has_the_declared_inputs(tiny_engine: Path) -> None:
    manifest = directory.load(tiny_engine)
    declared = {port.name: port for port in packed_inputs(manifest.cache)}
    for spec in manifest.graphs["decoder"].inputs:
        port = declared[spec.name]
        assert spec.dtype == port.dtype and len(spec.shape) == len(port.axes), spec.name
        for size, axis in zip(spec.shape, port.axes, strict=True):
            assert not (isinstance(size, int) and isinstance(axis, int)) or size == axis, spec.name


def test_ops_read_tables_of_the_declared_types() -> None:
    declared = {port.name: port for port in INPUTS}
    for op in (PAGED_ATTENTION, KVARN_ATTENTION):
        for tensor in op.inputs:
            if tensor.name in declared:
                assert declared[tensor.name].dtype in tensor.types and len(tensor.shape) == len(
                    declared[tensor.name].axes
                )


def test_names_are_declared_once() -> None:
    for ports in (packed_inputs(cache("kvarn", exact_bytes=8)), OUTPUTS, dense_inputs(cache("dense"), "float32")):
        names = [port.name for port in ports]
        assert len(names) == len(set(names))
    assert PER_STEP == ("input_ids", "position_ids", "query_starts", "sample_rows")


def test_every_layer_has_its_pools() -> None:
    names = [port.name for port in packed_inputs(cache("kvarn", exact_bytes=8))]
    assert names[len(INPUTS) :] == ["kv.0.tiles", "kv.1.tiles", "kv.0.exact", "kv.1.exact"]
    assert [port.axes for port in dense_inputs(cache("dense"), "float32")][-1] == ("B", 2, 128, 64)


def strings(path: Path) -> set[str]:
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def names(ports: tuple[Port, ...]) -> set[str]:
    return {port.name for port in ports}


def test_ports_are_named_where_they_are_declared_or_filled() -> None:
    """No other module writes a port's name: a new port needs no edit elsewhere."""
    known = names((*INPUTS, *DENSE_INPUTS, *OUTPUTS)) - {"logits", "slots"}  # a word, and a size's name
    places: dict[str, set[str]] = {}
    for package in ("exporters", "builders", "plugins", "runtime"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if (found := strings(path) & known) and not any(name.startswith(place) for place in NAMED_IN):
                places[name] = found
    assert not places


def manifest_of(**changes: Any) -> Manifest:
    """A manifest whose decoder graph has an output of its own."""
    specs = (
        TensorSpec(name="logits", dtype="float32", shape=("N", 9)),
        TensorSpec(name="greedy_tokens", dtype="int64", shape=("N",)),
        TensorSpec(name="guesses", dtype="int64", shape=("N", 3)),
        TensorSpec(name="kv.0.tiles.out", dtype="int8", shape=("tiles_0", 7), alias="kv.0.tiles"),
    )
    model = Model(family="toy", vocab_size=9, hidden_size=1, max_positions=9, parameters=0)
    fields: dict[str, Any] = {
        "name": "toy",
        "created_by": "tests",
        "model": model,
        "limits": Limits(max_batch=1, max_context=9),
        "cache": cache("paged"),
        "graphs": {"decoder": Graph(files=(), inputs=(), outputs=specs)},
    }
    return Manifest(**(fields | changes))


def test_a_graphs_other_outputs_come_from_the_manifest() -> None:
    manifest = manifest_of()
    assert [(port.name, port.axes) for port in outputs(manifest)] == [
        ("logits", ("N", "vocab")),
        ("greedy_tokens", ("N",)),
        ("guesses", ("N", 3)),
    ]


@pytest.mark.parametrize("shape", [(), (3,), ("N", "k"), (3, "N")])
def test_an_output_without_a_row_for_each_sample_is_refused(shape: tuple[int | str, ...]) -> None:
    spec = TensorSpec(name="scores", dtype="float32", shape=shape)
    manifest = manifest_of(graphs={"decoder": Graph(files=(), inputs=(), outputs=(spec,))})
    with pytest.raises(
        ArtifactError, match=r"outputs: 'scores': got the shape \[.*\], expected N, .*build the engine again"
    ):
        outputs(manifest)


def test_conditions_bring_inputs() -> None:
    tensors = {
        "down": ConditionTensor(dtype="float16", shape=(8, 2)),
        "gain": ConditionTensor(dtype="float32", shape=()),
    }
    conditions = {
        "vector": Condition(capacity=3, scaled=True, tensors={"v": ConditionTensor(dtype="float32", shape=(4,))}),
        "adapter": Condition(capacity=1, per="row", tensors=tensors),
    }
    manifest = manifest_of(conditions=conditions)
    assert [(port.name, port.dtype, port.axes, port.lives) for port in added_inputs(manifest)] == [
        ("cond.vector.index", "int32", ("T",), "step"),
        ("cond.vector.scale", "float32", ("T",), "step"),
        ("cond.vector.v", "float32", (4, 4), "condition"),
        ("cond.adapter.index", "int32", ("B",), "step"),
        ("cond.adapter.down", "float16", (2, 8, 2), "condition"),
        ("cond.adapter.gain", "float32", (2,), "condition"),
    ]
    assert inputs(manifest) == (*packed_inputs(manifest.cache), *added_inputs(manifest))
    dense = replace(manifest, cache=cache("dense"))
    assert [port.axes for port in added_inputs(dense) if port.lives == "step"] == [("B", "T"), ("B", "T"), ("B",)]


def test_only_encoded_caches_have_their_tables() -> None:
    plain, encoded = (names(packed_inputs(cache("", exact_bytes=size))) for size in (0, 8))
    assert encoded - plain == {"slots", "encoded_lens", "kv.0.exact", "kv.1.exact"}
    assert exact_pools(cache("kvarn", exact_bytes=8)) == ("kv.0.exact", "kv.1.exact")


def test_shapes_of_ports() -> None:
    port = packed_inputs(cache("paged"))[-1]
    assert port.shape({"tiles_1": 5}) == (5, 7)
