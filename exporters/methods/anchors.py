"""Anchors: the places of a decoder graph at which methods add nodes, found in the graph of any family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from enginewright.exporters.capture.layer_values import OTHER_BASIS, LayerValues, find_layers, find_sampled_states
from enginewright.exporters.passes.quantize_weights import output_projection
from enginewright.exporters.weights.graph_weights import add_weight
from enginewright.exporters.weights.weight import Weight
from enginewright.plugins.ops.op import DOMAIN, Op
from enginewright.runtime.artifact.decoder_graph import ports_of_condition
from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.errors import ExtensionError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class ConditionInputs:
    """The graph's inputs for one condition of a request; `Anchors.condition` creates them.

    index: int32, the entry of each token [T], or of each row [B]; 0: none.
    scale: float32, its factor, in the same shape; None unless the condition is scaled.
    tensors: the values of all entries by name, [capacity + 1, *shape]; entry 0 is zeros.
    """

    index: ir.Value
    scale: ir.Value | None
    tensors: Mapping[str, ir.Value]


class Anchors:
    """The values of a decoder graph that methods build on, and the ways to add to it; an export creates it.

    The graph has float32 weights as recipes, and none is quantised yet. Values of tokens have a leading axis of 1: states are
    [1, T, d]. What a method adds is seen by the methods after it: `o_proj_output` then returns the changed value.

    graph: the decoder graph.
    family: the model's type, which errors name.
    layers: the number of attention layers.
    """

    def __init__(
        self, graph: ir.Graph, family: str, layers: int, conditions: Mapping[str, Condition] | None = None
    ) -> None:
        self.graph = graph
        self.family = family
        self.layers = layers
        self._declared = dict(conditions or {})
        self._conditions: dict[str, ConditionInputs] = {}
        self._found: dict[int, LayerValues] | None = None
        self._changed: dict[ir.Value, ir.Value] = {}

    # ---- values

    def attention_input(self, layer: int) -> ir.Value:
        """What the projections of attention read, after the layer's norm, [1, T, d]."""
        return self._current(self._layer(layer).attention_input, "attention input", layer)

    def attention_output(self, layer: int) -> ir.Value:
        """What attention gives to its output projection, [1, T, Hq * Dv]: one head after another.

        Raises:
            UnsupportedError: the graph does not show it, or a method stores it in another basis.
        """
        found = self._layer(layer)
        if basis := found.attention.meta.get(OTHER_BASIS):
            raise UnsupportedError(
                f"{self.family}: attention output of layer {layer}: got it {basis}, expected the model's own numbers; build "
                "without one of the methods"
            )
        return self._current(found.attention_output, "attention output", layer)

    def o_proj_output(self, layer: int) -> ir.Value:
        """The output of the attention's projection with its bias, [1, T, d], before any norm and before the residual sum."""
        return self._current(self._layer(layer).projected, "output of the attention's projection", layer)

    def block_output(self, layer: int) -> ir.Value:
        """The residual stream after a layer, [1, T, d]."""
        return self._current(self._layer(layer).block_output, "block output", layer)

    def final_norm(self) -> ir.Value:
        """The states after the last norm, of all tokens, [1, T, d]."""
        read = self._projection().inputs[0]
        return self._current(None if read is None else find_sampled_states(self.graph, read), "final norm")

    def sampled_states(self) -> ir.Value:
        """The states [N, d] of the sampled rows, which the output projection reads."""
        projection = self._projection()
        hidden = projection.inputs[0]
        assert hidden is not None
        if projection.op_type == "Gemm":  # of a tied embedding, which reads [N, d] already
            return hidden
        axis = ir.node("Constant", [], attributes={"value": ir.tensor([0])})
        rows = ir.node("Squeeze", [hidden, axis.outputs[0]])
        rows.outputs[0].type = hidden.type
        self.graph.extend([axis, rows])
        return rows.outputs[0]

    def logits(self) -> ir.Value:
        """The logits [N, V] of the sampled rows."""
        return self._output("logits")

    def greedy_tokens(self) -> ir.Value:
        """The index of each row's largest logit, [N]; -1 where the logits are not finite."""
        return self._output("greedy_tokens")

    def input(self, name: str) -> ir.Value:
        """The input `name` of the graph, as the decoder graph's reference page lists them; KeyError for an unknown name."""
        return {value.name: value for value in self.graph.inputs}[name]

    def condition(self, name: str) -> ConditionInputs:
        """The inputs of a condition that the method's hook `conditions` declares; the first call adds them to the graph.

        Raises:
            ExtensionError: no method of this export declares it.
        """
        declared = self.declaration(name)
        if name not in self._conditions:
            self._conditions[name] = self._add_condition(name, declared)
        return self._conditions[name]

    def declaration(self, name: str) -> Condition:
        """The condition as a method's hook `conditions` declares it.

        Raises:
            ExtensionError: no method of this export declares it.
        """
        if name not in self._declared:
            known = ", ".join(self._declared) or "none"
            raise ExtensionError(
                f"condition {name!r}: got no declaration of it, expected one of the conditions declared: {known}; do: return "
                "it from the method's hook conditions"
            )
        return self._declared[name]

    # ---- additions

    def after(self, value: ir.Value) -> TypedWriter:
        """Return a writer of nodes that come right after the one that makes `value`."""
        return TypedWriter(self.graph, [value])

    def add_after(
        self, value: ir.Value, make: Callable[[TypedWriter, ir.Value], ir.Value], *, reads: Iterable[ir.Value] = ()
    ) -> ir.Value:
        """Put new nodes between `value` and everything that reads it, and return what takes its place.

        make: takes a writer and `value`, writes nodes and returns the value that the readers of `value` are to read. It has
            the same type and shape.
        reads: other computed values that the new nodes read.
        """
        readers = list(value.uses())
        new = make(TypedWriter(self.graph, [value, *reads]), value)
        self.replace_uses(value, new, of=[(node, index) for node, index in readers])
        return new

    def replace_uses(self, value: ir.Value, new: ir.Value, *, of: Iterable[tuple[ir.Node, int]] | None = None) -> None:
        """Let the readers of `value` read `new` instead; the anchor that gave `value` gives `new` from now on.

        of: the readers, each with the index of its input; None: all but the nodes that make `new`.
        """
        makers = _makers(new)
        for node, index in list(value.uses()) if of is None else of:
            if node not in makers:
                node.replace_input_with(index, new)
        new.type = new.type or value.type
        new.shape = new.shape or value.shape
        if value in self.graph.outputs:
            self.graph.outputs[self.graph.outputs.index(value)] = new
            value.name, new.name = None, value.name
        self._changed[value] = new

    def add_weight(self, name: str, weight: Weight) -> ir.Value:
        """Add a weight of the method's own; `name` begins with the method's name."""
        return add_weight(self.graph, name, weight)

    def add_op(
        self, op: Op, inputs: Mapping[str, ir.Value], attributes: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[ir.Value, ...]:
        """Append a node of one of our ops, and return its outputs, without type or shape.

        inputs: by the names of the op's ports; optional ones may be missing.
        names: of the outputs, in order.
        """
        last = max(index for index, port in enumerate(op.inputs) if port.name in inputs)
        values = [inputs.get(port.name) for port in op.inputs[: last + 1]]
        node = ir.node(op.name, values, domain=DOMAIN, attributes=dict(attributes), num_outputs=len(op.outputs))
        for value, name in zip(node.outputs, names, strict=True):
            value.name = name
        self.graph.append(node)
        return tuple(node.outputs)

    def add_output(self, name: str, value: ir.Value, dtype: ir.DataType, axes: tuple[Any, ...]) -> None:
        """Make `value` an output of the graph, which the runtime hands to the decoding kind by this name.

        axes: the size of each axis; that of the sampled rows comes first.
        """
        value.name, value.shape, value.type = name, ir.Shape(axes), ir.TensorType(dtype)
        self.graph.outputs.append(value)

    def finish(self) -> None:
        """Check what the methods did, and put the nodes in an order in which they can run.

        Raises:
            ExtensionError: a declared condition is read by no node.
        """
        for name in self._declared:
            inputs = self._conditions.get(name)
            if inputs is None or not inputs.index.uses():
                raise ExtensionError(
                    f"condition {name!r}: got no node that reads it, expected one; do: ask for it by anchors.condition in "
                    "the method's hook extend_graph, or do not declare it"
                )
        if not _is_sorted(self.graph):
            self.graph.sort()

    # ---- how values are found

    def _layer(self, layer: int) -> LayerValues:
        if self._found is None:
            if not _is_sorted(self.graph):
                self.graph.sort()
            read = self._projection().inputs[0]
            states = None if read is None else find_sampled_states(self.graph, read)
            self._found = find_layers(self.graph, self.logits(), states)
        if layer not in self._found:
            raise UnsupportedError(
                f"{self.family}: got no attention of layer {layer}, expected layers 0 to {self.layers - 1}"
            )
        return self._found[layer]

    def _current(self, value: ir.Value | None, what: str, layer: int | None = None) -> ir.Value:
        """The value that takes the place of `value` by now; UnsupportedError where there is none."""
        if value is None:
            where = "" if layer is None else f" of layer {layer}"
            raise UnsupportedError(
                f"{self.family}: {what}{where}: got a graph that does not show it, expected it next to a product with the "
                "model's weight; build without the method that adds to it"
            )
        while value in self._changed:
            value = self._changed[value]
        return value

    def _projection(self) -> ir.Node:
        projection = output_projection(self.graph)
        if projection is None or projection.inputs[0] is None:
            raise UnsupportedError(
                f"{self.family}: sampled states: got no product that makes the logits, expected one; build without the method "
                "that reads them"
            )
        return projection

    def _output(self, name: str) -> ir.Value:
        return next(value for value in self.graph.outputs if value.name == name)

    def _add_condition(self, name: str, condition: Condition) -> ConditionInputs:
        values = []
        for port in ports_of_condition(name, condition):
            dtype = ir.DataType.from_numpy(np.dtype(port.dtype))
            values.append(ir.Value(name=port.name, type=ir.TensorType(dtype), shape=ir.Shape(port.axes)))
        self.graph.inputs.extend(values)
        index, *others = values
        scale = others.pop(0) if condition.scaled else None
        return ConditionInputs(index=index, scale=scale, tensors=dict(zip(condition.tensors, others, strict=True)))


class TypedWriter:
    """Writes standard nodes, one a call, right after the last of some values; `Anchors` creates it.

    `write("Add", a, b)` returns the node's only output, with the type and shape that the ONNX standard infers; keywords are
    attributes.
    """

    def __init__(self, graph: ir.Graph, after: list[ir.Value]) -> None:
        self._graph = graph
        makers = {node for value in after if (node := value.producer()) is not None}
        self._last = makers.pop() if len(makers) == 1 else next((n for n in reversed(graph) if n in makers), None)

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Insert a node and return its output."""
        node = ir.node(op, inputs, attributes=attributes)
        if self._last is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(self._last, node)
        self._last = node
        _infer(node, self._graph.opset_imports.get("", onnx.defs.onnx_opset_version()))
        return node.outputs[0]

    def constant(self, values: Any, dtype: Any = np.int64) -> ir.Value:
        """Insert a constant of the shape of `values`."""
        return self("Constant", value=ir.tensor(np.array(values, dtype)))


def _infer(node: ir.Node, opset: int) -> None:
    """Give the outputs of a standard node their types and shapes."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    types = {
        value.name: ir.serde.serialize_value(value).type
        for value in node.inputs
        if value is not None and value.name is not None
    }
    imports = [onnx.helper.make_opsetid("", opset)]
    found = onnx.shape_inference.infer_node_outputs(schema, ir.to_proto(node), types, opset_imports=imports)
    for output in node.outputs:
        if output.name in found:
            output.type = ir.serde.deserialize_type_proto_for_type(found[output.name])
            output.shape = ir.serde.deserialize_type_proto_for_shape(found[output.name])


def _makers(value: ir.Value) -> set[ir.Node]:
    """The nodes that `value` is computed from, its own included."""
    todo, found = [value.producer()], set[ir.Node]()
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [each.producer() for each in node.inputs if each is not None]
    return found


def _is_sorted(graph: ir.Graph) -> bool:
    """Whether each node comes after those that it reads."""
    seen = set[ir.Node]()
    for node in graph:
        if any(
            value is not None and (made := value.producer()) is not None and made not in seen for value in node.inputs
        ):
            return False
        seen.add(node)
    return True
