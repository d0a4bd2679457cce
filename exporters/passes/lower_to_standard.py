"""Turns the packed decoder graph into a graph of standard ops, which any ONNX backend can build without our plugins.

Attention becomes TensorScatter into a cache of fixed length and Attention over that cache, both of opset 24. Everything else
stays as it is, because only attention knows about sequences. The tokens are no longer packed: each row has T of them.
"""

from __future__ import annotations

import onnx_ir as ir

from enginewright.exporters.passes.decomposed_attention import decomposed_attention
from enginewright.exporters.passes.graph_writer import GraphWriter
from enginewright.plugins.ops.op import DOMAIN
from enginewright.runtime.artifact.decoder_graph import (
    KV_LENS,
    PAST_LENS,
    POSITION_IDS,
    QUERY_STARTS,
    TILE_TABLE,
)
from enginewright.runtime.errors import UnsupportedError

OPSET = 24
EXPRESSED = ("PagedAttention", "GreedySample")
SWAP = [0, 2, 1, 3]  # [B, T, heads, D] <-> [B, heads, T, D]


class LowerToStandardPass(ir.passes.InPlacePass):
    """Replace our ops by standard ones, and the signature by that of a dense batch; the last pass of an export.

    1. The inputs become:
           input_ids, position_ids         int64 [B, T]
           past_lens                       int64 [B], the number of tokens that each row holds
           sample_rows                     int64 [N], indices into the flattened tokens
           kv.<layer>.key, kv.<layer>.value  [B, Hkv, length, D] of the graph's type
       Any other input [T], such as a condition's index, becomes [B, T], too.
    2. PagedAttention becomes TensorScatter of keys and values, then Attention, causal and bounded by each row's length. With
       a window it gets a mask. With a softcap or sinks, which no fused kernel takes, it is written as products.
    3. GreedySample becomes ArgMax, and -1 where the largest logit is not finite.

    length: of the caches, in tokens.

    Raises:
        UnsupportedError: the graph has any other op of ours, or reads the packed tables elsewhere; raised by the call.
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            if node.domain == DOMAIN and node.op_type not in EXPRESSED:
                raise UnsupportedError(
                    f"plugins none: got {node.op_type}, which standard ops do not express; build without what adds it, or "
                    "with plugins all"
                )
        _Lowering(model.graph, self._length).run()
        model.opset_imports[""] = model.graph.opset_imports[""] = OPSET
        model.opset_imports.pop(DOMAIN, None)
        return ir.passes.PassResult(model, modified=True)


class _Lowering:
    """One run over a graph; `LowerToStandardPass` creates it. Values that several layers read are written at the start."""

    def __init__(self, graph: ir.Graph, length: int) -> None:
        self._graph = graph
        self._length = length
        self._inputs = {value.name: value for value in graph.inputs}
        self._shared = GraphWriter(graph, graph[0])
        self._masks: dict[int, ir.Value] = {}

    def run(self) -> None:
        for name in [
            name for name, value in self._inputs.items() if name != POSITION_IDS.name and _is_per_token(value)
        ]:
            self._flatten(str(name))
        positions = self._flatten(POSITION_IDS.name)
        self._positions = positions
        self._past = self._add_input(PAST_LENS.name, ir.DataType.INT64, ("B",))
        tokens = self._shared("Shape", positions, start=1, end=2)
        self._rows = self._shared("Shape", positions)
        self._held = self._shared("Add", self._past, tokens)
        for node in [node for node in self._graph if node.domain == DOMAIN]:
            if node.op_type == "PagedAttention":
                self._attend(node)
            else:
                self._sample(node)
        for port in (QUERY_STARTS, KV_LENS, TILE_TABLE):
            table = self._inputs[port.name]
            if readers := [node.op_type for node, _ in table.uses()]:
                raise UnsupportedError(
                    f"plugins none: got {port.name} as an input of {readers[0]}, expected it in attention alone, because a graph "
                    "of standard ops has none; build without what adds it, or with plugins all"
                )
            self._graph.inputs.remove(table)

    def _flatten(self, name: str) -> ir.Value:
        """Let the graph compute `name` [T] from an input [B, T]; return the new input."""
        old = self._inputs[name]
        flat = self._shared("Reshape", old, self._shared.constant([-1]))
        flat.type, flat.shape = old.type, old.shape
        reshape = flat.producer()
        assert reshape is not None
        old.replace_all_uses_with(flat)
        reshape.replace_input_with(0, old)
        old.shape = ir.Shape(("B", "T"))
        return old

    def _add_input(self, name: str, dtype: ir.DataType, shape: tuple[int | str | ir.SymbolicDim, ...]) -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._graph.inputs.append(value)
        return value

    def _attend(self, node: ir.Node) -> None:
        write = GraphWriter(self._graph, node)
        query, key, value = (self._by_row(write, operand) for operand in node.inputs[:3])
        layer, window = node.attributes["layer"].as_int(), node.attributes.get_int("window", 0)
        keys, values = self._update(write, node, "key", key), self._update(write, node, "value", value)
        scale, softcap = node.attributes["scale"].as_float(), node.attributes.get_float("softcap", 0.0)
        sinks = node.inputs[7] if len(node.inputs) > 7 else None
        if softcap or sinks is not None:
            attended = decomposed_attention(
                write, query, keys, values, self._mask(window), scale=scale, softcap=softcap, sinks=sinks
            )
        else:
            mask = self._mask(window) if window else None
            operands = (query, keys, values, mask, None, None, self._held)
            attended = write("Attention", *operands, scale=scale, is_causal=int(mask is None))
        attended.name = f"attention.{layer}"
        output = node.outputs[0]
        assert output.shape is not None
        tokens_first = write("Transpose", attended, perm=SWAP)
        flat = write("Reshape", tokens_first, write.constant([-1, *output.shape[1:]]))
        flat.type, flat.shape = output.type, output.shape
        output.replace_all_uses_with(flat)
        self._graph.remove(node, safe=True)

    def _by_row(self, write: GraphWriter, operand: ir.Value | None) -> ir.Value:
        """Turn [B * T, heads, D] into [B, heads, T, D]."""
        assert operand is not None and operand.shape is not None
        heads = write.constant(operand.shape[1:])
        rows = write("Reshape", operand, write("Concat", self._rows, heads, axis=0))
        swapped = write("Transpose", rows, perm=SWAP)
        swapped.type, swapped.shape = operand.type, ir.Shape(("B", operand.shape[1], "T", operand.shape[2]))
        return swapped

    def _update(self, write: GraphWriter, node: ir.Node, side: str, new: ir.Value) -> ir.Value:
        """Write the new keys or values into the layer's cache, which replaces the tile pool in the signature."""
        assert new.dtype is not None and new.shape is not None
        name = f"kv.{node.attributes['layer'].as_int()}.{side}"
        shape = ("B", new.shape[1], self._length, new.shape[3])
        cache = self._add_input(name, new.dtype, shape)
        updated = write("TensorScatter", cache, new, self._past, axis=-2, mode="linear")
        updated.name, updated.type, updated.shape = f"{name}.out", new.type, ir.Shape(shape)
        if side == "key":
            pool, written = node.inputs[3], node.outputs[1]
            assert pool is not None
            self._graph.inputs.remove(pool)
            self._graph.outputs[self._graph.outputs.index(written)] = updated
        else:
            keys = next(value for value in self._graph.outputs if value.name == f"{name.removesuffix(side)}key.out")
            self._graph.outputs.insert(self._graph.outputs.index(keys) + 1, updated)
        return updated

    def _mask(self, window: int) -> ir.Value:
        """The mask, bool [B, 1, T, length]: true where a new token sees a cached one."""
        if window not in self._masks:
            write = self._shared
            own = write("Unsqueeze", self._positions, write.constant([1, 3]))
            cached = write.constant(list(range(self._length)))
            visible = write("LessOrEqual", cached, own)
            if window:
                oldest = write("Sub", own, write.constant([window]))
                visible = write("And", visible, write("Greater", cached, oldest))
            self._masks[window] = visible
        return self._masks[window]

    def _sample(self, node: ir.Node) -> None:
        write = GraphWriter(self._graph, node)
        logits, tokens = node.inputs[0], node.outputs[0]
        index = write("ArgMax", logits, axis=1, keepdims=0, select_last_index=0)
        rows = write.constant([1])
        infinite = write("IsInf", write("ReduceMax", logits, rows, keepdims=0))
        is_nan = write("Cast", write("IsNaN", logits), to=ir.DataType.INT32)  # a maximum may drop NaNs
        broken = write("Or", infinite, write("Cast", write("ReduceMax", is_nan, rows, keepdims=0), to=ir.DataType.BOOL))
        sampled = write("Where", broken, write.constant([-1]), index)
        sampled.type, sampled.shape = tokens.type, tokens.shape
        self._graph.outputs[self._graph.outputs.index(tokens)] = sampled
        tokens.name, sampled.name = None, tokens.name
        self._graph.remove(node, safe=True)


def _is_per_token(value: ir.Value) -> bool:
    """Whether an input has one number for each token of the step."""
    return value.shape is not None and [str(getattr(size, "value", size)) for size in value.shape] == ["T"]
