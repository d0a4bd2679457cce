"""The graphs that serve a cache policy: one scores the stored tokens of rows, one copies tokens between tiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.exporters.weights.graph_weights import add_weight, weight_of
from enginewright.plugins.ops.compact_tiles import COMPACT_TILES
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.op import DOMAIN, Op
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS, tile_bytes
from enginewright.plugins.ops.token_scores import TOKEN_SCORES
from enginewright.runtime.artifact.decoder_graph import (
    ENCODED_LENS,
    EXACT,
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

_ATTENTION = {op.name: op for op in (PAGED_ATTENTION, KVARN_ATTENTION)}
_BITS = {PAGED_ATTENTION.name: ("kv_bits",), KVARN_ATTENTION.name: ("k_bits", "v_bits")}


def scores_graph(decoder: ir.Graph, score: TokenScore, *, window: int) -> ir.Model:
    """Return the graph "scores": a TokenScores node for each layer without a window, which has the attention's own settings."""
    graph = _Graph("scores", decoder)
    tables = [graph.input(port) for port in (SLOTS, KV_LENS, TILE_TABLE, LAST_POSITIONS)]
    encodes = any(attention.op_type == KVARN_ATTENTION.name for attention in governed(decoder))
    encoded = graph.input(ENCODED_LENS) if encodes else None
    for attention in governed(decoder):
        layer, heads = attention.attributes["layer"].as_int(), kv_heads(attention)
        ring = graph.input(QUERIES, layer, _shape(decoder, QUERIES, layer))
        tiles = graph.input(TILES, layer, _shape(decoder, TILES, layer))
        columns, of_records = f"{TILE_TOKENS} M", attention.op_type == KVARN_ATTENTION.name
        exact = graph.input(EXACT, layer, _shape(decoder, EXACT, layer)) if of_records else None
        graph.node(
            TOKEN_SCORES,
            {
                "ring": ring,
                "tiles": tiles,
                **dict(zip(("slots", "kv_lens", "tile_table", "last_positions"), tables, strict=True)),
                "sinks": graph.copy_of(_input(attention, "sinks")),
                "exact": exact,
                "encoded_lens": encoded if of_records else None,
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
                **{name: attention.attributes[name].as_int() for name in _BITS[attention.op_type]},
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


def exact_compact_graph(decoder: ir.Graph) -> ir.Model:
    """Return the graph "compact" for the exact tiles of a cache that encodes the others: a CompactTiles node for each layer."""
    graph = _Graph("compact", decoder)
    for attention in governed(decoder):
        layer, dim = attention.attributes["layer"].as_int(), _sizes(attention, "key")[2]
        shape = (f"exact_{layer}", tile_bytes(dim, dim, 16))
        given = graph.input(dataclasses.replace(EXACT, dtype="int8"), layer, shape)
        moves = graph.input(MOVES, layer, (f"moves_{layer}", 4))
        graph.node(
            COMPACT_TILES,
            {"tiles": given, "moves": moves},
            {"head_dim": dim, "value_dim": dim, "kv_bits": 16},
            {f"{pool_name(EXACT, layer)}.out": (ir.DataType.INT8, shape)},
        )
    return graph.model


def encode_graph(decoder: ir.Graph) -> ir.Model:
    """Return the graph "encode": the attention of each layer without a window, for one row that brings an empty token.

    It encodes what the lengths name. The token's place is that of the row's next one, which takes it; its output is not used.
    """
    graph = _Graph("encode", decoder)
    tables = [graph.input(port) for port in (KV_LENS, TILE_TABLE, SLOTS, ENCODED_LENS)]
    starts = graph.constant("query_starts", np.array([0, 1], np.int32))
    for attention in governed(decoder):
        layer = attention.attributes["layer"].as_int()
        heads, dim = _sizes(attention, "key")[1:]
        query_heads = _sizes(attention, "query")[1]
        shapes = {port: _shape(decoder, port, layer) for port in (TILES, EXACT)}
        empty = {
            name: graph.constant(f"{name}_{layer}", np.zeros((1, count, dim), np.float32))
            for name, count in (("query", query_heads), ("key", heads), ("value", heads))
        }
        graph.node(
            KVARN_ATTENTION,
            {
                **empty,
                **{port.name.rpartition(".")[2]: graph.input(port, layer, shape) for port, shape in shapes.items()},
                "query_starts": starts,
                **dict(zip(("kv_lens", "tile_table", "slots", "encoded_lens"), tables, strict=True)),
            },
            {name: each.value for name, each in attention.attributes.items()},
            {
                f"{pool_name(port, layer)}.out": (ir.DataType.from_numpy(np.dtype(port.dtype)), shape)
                for port, shape in shapes.items()
            },
            unused={f"output_{layer}": (ir.DataType.FLOAT, (1, query_heads, dim))},
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

    def constant(self, name: str, values: NDArray[Any]) -> ir.Value:
        """Add a constant."""
        value = _value(name, ir.DataType.from_numpy(values.dtype), values.shape)
        self._graph.append(ir.node("Constant", [], attributes={"value": ir.tensor(values)}, outputs=[value]))
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
        unused: Mapping[str, tuple[ir.DataType, Sequence[Axis]]] | None = None,
    ) -> None:
        """Add a node of the op, whose outputs are the graph's, after those that are not used."""
        made = [_value(name, dtype, shape) for name, (dtype, shape) in outputs.items()]
        before = [_value(name, dtype, shape) for name, (dtype, shape) in (unused or {}).items()]
        given = [inputs.get(each.name) for each in op.inputs]
        while given and given[-1] is None:
            given.pop()
        self._graph.append(
            ir.node(op.name, given, attributes=dict(attributes), domain=DOMAIN, outputs=[*before, *made])
        )
        self._graph.outputs.extend(made)


def governed(graph: ir.Graph) -> Iterator[ir.Node]:
    """The attention nodes of the layers without a window."""
    for node in graph:
        if node.domain == DOMAIN and node.op_type in _ATTENTION and not node.attributes["window"].as_int():
            yield node


def kv_heads(attention: ir.Node) -> int:
    """The number of an attention node's KV heads."""
    return _sizes(attention, "key")[1]


def _input(node: ir.Node, name: str) -> ir.Value | None:
    index = [each.name for each in _ATTENTION[node.op_type].inputs].index(name)
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
