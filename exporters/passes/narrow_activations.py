"""Turns a float32 decoder graph into one that computes in half or bfloat16, for devices."""

from __future__ import annotations

import onnx_ir as ir

from enginewright.exporters.passes.quantize_weights import output_projection
from enginewright.exporters.weights.graph_weights import KEY, weight_of
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import OPS

DTYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
WIDE_OPS = frozenset({"Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Exp", "Log", "Softmax"})
"""Ops that stay float32 everywhere: squares and sums in a norm that no op fuses leave the range of a half."""


class NarrowActivationsPass(ir.passes.InPlacePass):
    """Store float32 weights as `dtype`, and compute in it; runs after all passes that change float32 weights.

    1. Values that no weight takes part in (rotary angles, their cos and sin) stay float32 until the rest of the graph reads
       them.
    2. WIDE_OPS stay float32, and so do the nodes after the output projection (the logits with their softcap). All outputs
       are float32.
    3. Inputs of our ops that are declared as float32 only stay float32.
    4. A norm keeps its scale in `dtype`; its op computes in float32 by itself.
    """

    def __init__(self, dtype: str) -> None:
        self._narrow = DTYPES[dtype]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self._narrow is ir.DataType.FLOAT:
            return ir.passes.PassResult(model, modified=False)
        _Narrowing(model.graph, self._narrow).run()
        return ir.passes.PassResult(model, modified=True)


class _Narrowing:
    """One run over a graph; `NarrowActivationsPass` creates it.

    It visits the nodes in order, and casts the inputs of each to the type that it computes in.
    """

    def __init__(self, graph: ir.Graph, narrow: ir.DataType) -> None:
        self._graph = graph
        self._narrow = narrow
        self._projection = output_projection(graph)
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._narrowed: set[ir.Value] = set()
        self._logits: set[ir.Value] = set()

    def run(self) -> None:
        for node in list(self._graph):
            if node.op_type != "Constant":
                self._visit(node)
        for index, value in enumerate(self._graph.outputs):
            if value in self._narrowed:
                self._graph.outputs[index] = self._widen(value)

    def _widen(self, output: ir.Value) -> ir.Value:
        """Cast an output of the graph to float32; the result takes over its name."""
        name, last = output.name, output.producer()
        assert name is not None and last is not None
        cast = ir.node("Cast", [output], attributes={"to": ir.DataType.FLOAT})
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), output.shape
        self._graph.insert_after(last, cast)
        output.name, cast.outputs[0].name = f"{name}.narrow", name
        return cast.outputs[0]

    def _visit(self, node: ir.Node) -> None:
        follows_projection = any(value in self._logits for value in node.inputs if value is not None)
        wide = follows_projection or self._stays_wide(node)
        if follows_projection or node is self._projection:
            self._logits.update(value for value in node.outputs if value.dtype is ir.DataType.FLOAT)
        for i, value in enumerate(node.inputs):
            if value is None or not _is_float(value, self._narrow):
                continue
            wanted = ir.DataType.FLOAT if wide or _must_be_wide(node, i) else self._narrow
            self._feed(node, i, value, wanted)
        if not wide:
            for output in node.outputs:
                if output.dtype is ir.DataType.FLOAT:
                    output.type = ir.TensorType(self._narrow)
                    self._narrowed.add(output)
            _retarget(node, self._narrow)

    def _stays_wide(self, node: ir.Node) -> bool:
        if node.op_type in WIDE_OPS:
            return True
        if node.domain == DOMAIN:
            return all(len(tensor.types) == 1 for tensor in OPS[node.op_type].inputs)
        floats = [value for value in node.inputs if value is not None and _is_float(value, self._narrow)]
        return not any(value in self._narrowed or weight_of(value) is not None for value in floats)

    def _feed(self, node: ir.Node, index: int, value: ir.Value, wanted: ir.DataType) -> None:
        """Let `node` read `value` as `wanted`: a weight is stored in that type, any other value goes through a Cast."""
        weight = weight_of(value)
        if weight is not None and value.dtype is ir.DataType.FLOAT and wanted is self._narrow:
            narrow = wanted.numpy()
            value.meta[KEY] = weight.derive(weight.shape, lambda x: x.astype(narrow), wanted)
            value.type = ir.TensorType(wanted)
            self._narrowed.add(value)
        elif value.dtype is not wanted:
            node.replace_input_with(index, self._cast(value, wanted, before=node))

    def _cast(self, value: ir.Value, wanted: ir.DataType, *, before: ir.Node) -> ir.Value:
        if (value, wanted) not in self._casts:
            cast = ir.node("Cast", [value], attributes={"to": wanted})
            cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(wanted), value.shape
            self._graph.insert_before(before, cast)
            self._casts[value, wanted] = cast.outputs[0]
            if wanted is self._narrow:
                self._narrowed.add(cast.outputs[0])
        return self._casts[value, wanted]


def _is_float(value: ir.Value, narrow: ir.DataType) -> bool:
    return value.dtype is ir.DataType.FLOAT or value.dtype is narrow


def _must_be_wide(node: ir.Node, index: int) -> bool:
    """Whether `node` is an op of ours that takes this input only as float32."""
    if node.domain != DOMAIN:
        return False
    inputs = OPS[node.op_type].inputs
    return inputs[min(index, len(inputs) - 1)].types == ("float32",)


def _retarget(node: ir.Node, narrow: ir.DataType) -> None:
    """Let a Cast to float32 in the narrow part of the graph cast to `narrow`."""
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT:
        node.attributes.add(ir.AttrInt64("to", narrow))
