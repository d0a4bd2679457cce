"""The graphs that serve a cache policy: one scores the stored tokens of rows, one copies tokens between tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.graph_weights import add_weight, weight_of
from enginewright.plugins.ops.compact_tiles import COMPACT_TILES
from enginewright.plugins.ops.op import DOMAIN, Op
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.ops.token_scores import TOKEN_SCORES
from enginewright.runtime.artifact.decoder_graph import (
    IMPORTANCE,
    KV_LENS,
    LAST_POSITIONS,
    MARKS,
    MOVES,
    QUERIES,
    REDUNDANCY,
    SLOTS,
    TILE_TABLE,
    TILES,
    Axis,
    Port,
    pool_name,
)
from enginewright.runtime.cache.policies.token_scores import TokenScore

SCOPES, GROUPS = ("before", "causal"), ("max_logit", "mean", "max")
"""Names of TokenScore's fields, in the order of TokenScores' numbers for them."""


def scores_graph(decoder: ir.Graph, score: TokenScore, *, window: int) -> ir.Model:
    """Return the graph "scores": a TokenScores node for each layer without a window, which has the attention's own settings."""
    graph = _Graph("scores", decoder)
    tables = [graph.input(port) for port in (SLOTS, KV_LENS, TILE_TABLE, LAST_POSITIONS)]
    for attention in governed(decoder):
        layer, heads = attention.attributes["layer"].as_int(), kv_heads(attention)
        ring = graph.input(QUERIES, layer, _shape(decoder, QUERIES, layer))
        tiles = graph.input(TILES, layer, _shape(decoder, TILES, layer))
        columns = f"{TILE_TOKENS} M"
        graph.node(
            TOKEN_SCORES,
            {
                "ring": ring,
                "tiles": tiles,
                **dict(zip(("slots", "kv_lens", "tile_table", "last_positions"), tables, strict=True)),
                "sinks": graph.copy_of(_input(attention, "sinks")),
            },
            {
                "layer": layer,
                "kv_heads": heads,
                "scale": attention.attributes["scale"].as_float(),
                "window": window,
                "softcap": attention.attributes["softcap"].as_float(),
                "scope": SCOPES.index(score.scope),
                "group": GROUPS.index(score.group),
                "redundancy": int(score.redundancy),
                "kv_bits": attention.attributes["kv_bits"].as_int(),
            },
            {
                pool_name(IMPORTANCE, layer): (ir.DataType.FLOAT, ("B", heads, columns)),
                pool_name(REDUNDANCY, layer): (ir.DataType.FLOAT, ("B", heads, columns if score.redundancy else 0)),
            },
        )
    return graph.model


def compact_graph(decoder: ir.Graph, *, has_marks: bool) -> ir.Model:
    """Return the graph "compact": a CompactTiles node for each layer without a window."""
    graph = _Graph("compact", decoder)
    for attention in governed(decoder):
        layer = attention.attributes["layer"].as_int()
        pools = [TILES, MARKS] if has_marks else [TILES]
        shapes = {port: _shape(decoder, port, layer) for port in pools}
        given = {port: graph.input(port, layer, shape) for port, shape in shapes.items()}
        moves = graph.input(MOVES, layer, (f"moves_{layer}", 4))
        graph.node(
            COMPACT_TILES,
            {"tiles": given[TILES], "moves": moves, "marks": given.get(MARKS)},
            {
                "head_dim": _sizes(attention, "key")[2],
                "value_dim": _sizes(attention, "value")[2],
                "kv_bits": attention.attributes["kv_bits"].as_int(),
            },
            {
                f"{pool_name(port, layer)}.out": (ir.DataType.from_numpy(np.dtype(port.dtype)), shape)
                for port, shape in shapes.items()
            },
        )
    return graph.model


class _Graph:
    """A graph in the making."""

    def __init__(self, name: str, decoder: ir.Graph) -> None:
        imports = {"": decoder.opset_imports.get("", 23), DOMAIN: 1}
        self._graph = ir.Graph([], [], nodes=[], opset_imports=imports, name=name)
        self.model = ir.Model(self._graph, ir_version=10)

    def input(self, port: Port, layer: int = 0, shape: Sequence[Axis] | None = None) -> ir.Value:
        """Add the port of a layer as an input."""
        value = _value(
            pool_name(port, layer), ir.DataType.from_numpy(np.dtype(port.dtype)), port.axes if shape is None else shape
        )
        self._graph.inputs.append(value)
        return value

    def copy_of(self, weight: ir.Value | None) -> ir.Value | None:
        """Add a weight of the decoder graph to this one as well."""
        found = weight_of(weight)
        if weight is None or found is None:
            return None
        return add_weight(self._graph, weight.name or "", found)

    def node(
        self,
        op: Op,
        inputs: Mapping[str, ir.Value | None],
        attributes: Mapping[str, int | float],
        outputs: Mapping[str, tuple[ir.DataType, Sequence[Axis]]],
    ) -> None:
        """Add a node of the op, whose outputs are the graph's."""
        made = [_value(name, dtype, shape) for name, (dtype, shape) in outputs.items()]
        given = [inputs.get(each.name) for each in op.inputs]
        while given and given[-1] is None:
            given.pop()
        self._graph.append(ir.node(op.name, given, attributes=dict(attributes), domain=DOMAIN, outputs=made))
        self._graph.outputs.extend(made)


def governed(graph: ir.Graph) -> Iterator[ir.Node]:
    """The attention nodes of the layers without a window."""
    for node in graph:
        if (node.domain, node.op_type) == (DOMAIN, PAGED_ATTENTION.name) and not node.attributes["window"].as_int():
            yield node


def kv_heads(attention: ir.Node) -> int:
    """The number of an attention node's KV heads."""
    return _sizes(attention, "key")[1]


def _input(node: ir.Node, name: str) -> ir.Value | None:
    index = [each.name for each in PAGED_ATTENTION.inputs].index(name)
    return node.inputs[index] if index < len(node.inputs) else None


def _sizes(attention: ir.Node, name: str) -> tuple[int, ...]:
    """The sizes of an input [T, heads, dim] of attention; the first is of no use."""
    value = _input(attention, name)
    assert value is not None and value.shape is not None
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)


def _shape(decoder: ir.Graph, port: Port, layer: int) -> tuple[Axis, ...]:
    """The shape of a layer's pool in the decoder graph."""
    value = next(each for each in decoder.inputs if each.name == pool_name(port, layer))
    assert value.shape is not None
    return tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)


def _value(name: str, dtype: ir.DataType, shape: Sequence[Axis]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
