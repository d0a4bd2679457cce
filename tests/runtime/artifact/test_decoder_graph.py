"""The decoder graph's declared ports against the ops they feed and the graphs that exports make of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.decoder_graph import INPUTS, OUTPUTS, PER_STEP, Port, dense_inputs, packed_inputs
from enginewright.runtime.artifact.manifest import Cache, CacheLayer
from tests.support.paths import ROOT

# Where the names of ports may be written as strings, and why. Everywhere else they come from the declaration.
NAMED_IN = {
    "runtime/artifact/decoder_graph.py": "the declaration",
    "runtime/backends": "sessions fill the ports",
    "runtime/decoding": "decoding kinds read their outputs",
    "exporters/capture": "the model's forward pass takes and returns them",
    "exporters/passes/lower_to_standard.py": "it replaces them",
    "exporters/passes/gather_sample_rows.py": "it reads one",
    "exporters/methods": "methods add outputs",
    "exporters/source": "arguments of transformers' forward have the same names",
    "exporters/calibration": "arguments of transformers' forward have the same names",
    "exporters/parity.py": "arguments of transformers' forward have the same names",
    "builders/layer_check": "it feeds the graph",
    "builders/tensorrt/profiles.py": "the size `slots` is called as the input",
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
    known = names((*INPUTS, *OUTPUTS)) - {"logits"}
    places: dict[str, set[str]] = {}
    for package in ("exporters", "builders", "plugins", "runtime"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            if (found := strings(path) & known) and not any(name.startswith(place) for place in NAMED_IN):
                places[name] = found
    assert not places
