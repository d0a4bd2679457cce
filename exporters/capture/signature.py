"""The decoder graph's inputs and outputs as torch exports them: examples, varying sizes, names.

Everything follows from the ports that `runtime/artifact/decoder_graph.py` declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from enginewright.runtime.artifact.decoder_graph import OUTPUTS, PER_STEP, POOL, Axis, Port, packed_inputs, token_ports
from enginewright.runtime.artifact.manifest import Cache, CacheLayer

PREFIX = "model."  # of the wrapped model's parameters in the exported graph
POOL_TILES = 128
EXAMPLE = {"T": 7, "B": 2, "B1": 3, "N": 3, "M": 5, "slots": 6, "exact": 4}
"""Sizes of the example inputs; none is 0 or 1, which torch would take for a constant. B1 is B + 1."""


@dataclass(frozen=True)
class Signature:
    """The inputs of a graph; `capture` creates it.

    layers: the cache of each attention layer.
    token_inputs: further inputs [T] by name, with their types.
    """

    layers: tuple[CacheLayer, ...]
    token_inputs: Mapping[str, str] = field(default_factory=dict)

    def ports(self) -> tuple[Port, ...]:
        """The ports of all inputs."""
        cache = Cache(kind="", tile_tokens=0, kv_bits=0, layers=self.layers)
        return (*packed_inputs(cache), *token_ports(self.token_inputs))


def example_inputs(signature: Signature) -> tuple[Any, ...]:
    """The arguments of `PackedDecoder.forward`; tables and pools by their names in the decoder graph."""
    sizes = {
        **EXAMPLE,
        "L": len(signature.layers),
        "H": max(layer.kv_heads for layer in signature.layers),
        **{f"tiles_{i}": POOL_TILES for i in range(len(signature.layers))},
    }
    made = {
        port.name: zeros(getattr(torch, port.dtype), *(a if isinstance(a, int) else sizes[a] for a in port.axes))
        for port in signature.ports()
    }
    return _arguments(signature, made)


def zeros(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor without values, for shapes alone."""
    return torch.zeros(shape, dtype=dtype, device="meta")


def dynamic_shapes(signature: Signature) -> tuple[Any, ...]:
    """The axes whose sizes vary, in the same form as `example_inputs`."""
    dims: dict[str, Any] = {}

    def varying(port: Port) -> dict[int, Any]:
        return {
            i: dims.setdefault(axis, torch.export.Dim(axis))
            for i, axis in enumerate(port.axes)
            if isinstance(axis, str) and axis not in ("L", "H")
        }

    return _arguments(signature, {port.name: varying(port) for port in signature.ports()})


def _arguments(signature: Signature, made: dict[str, Any]) -> tuple[Any, ...]:
    """Values by name as the arguments of `PackedDecoder.forward`: a step's one by one, then tables and pools."""
    every = signature.ports()
    tables = {
        port.name: made[port.name] for port in every if port.lives == "table" or port.name in signature.token_inputs
    }
    pools = {port.name: made[port.name] for port in every if port.lives == "pool"}
    return (*(made[name] for name in PER_STEP), tables, pools)


def _name_sizes(graph: ir.Graph, axes: dict[str, tuple[Axis, ...]]) -> None:
    """Give the sizes that torch has numbered their names in `axes`, by input, everywhere in the graph."""
    names: dict[str | None, str] = {}
    for value in graph.inputs:
        assert value.shape is not None
        for size, name in zip(value.shape, axes.get(value.name or "", ()), strict=False):
            if isinstance(size, ir.SymbolicDim) and isinstance(name, str):
                names[size.value] = name
    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            sizes = [d if isinstance(d, int) else ir.SymbolicDim(names.get(d.value, d.value)) for d in value.shape]
            value.shape = ir.Shape(sizes)


def name_signature(model: ir.Model, signature: Signature, names: list[str]) -> None:
    """Give inputs, outputs and sizes the names of the decoder graph's contract; parameters lose the wrapper's prefix.

    names: of the inputs after `sample_rows`, in the order in which torch exports them.
    """
    graph = model.graph
    axes = {port.name: port.axes for port in signature.ports()}
    for value, name in zip(graph.inputs[len(PER_STEP) :], names, strict=True):
        value.name = name
    _name_sizes(graph, axes)
    pools = [name for name in names if name.startswith(POOL)]
    for name, read, written in zip(pools, graph.inputs[-len(pools) :], graph.outputs[len(OUTPUTS) :], strict=True):
        written.name = f"{name}.out"
        for value in (read, written):
            value.shape = ir.Shape(axes[name])
    for value, port in zip(graph.outputs, OUTPUTS, strict=False):
        value.name = port.name
    for value in list(graph.initializers.values()):
        assert value.name is not None
        value.name = value.name.removeprefix(PREFIX)
