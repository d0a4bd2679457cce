"""Stores matrix weights as blocks of codes, for ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from enginewright.exporters.weights.block_codes import quantize_blocks, store_codes, stored_form
from enginewright.exporters.weights.graph_weights import KEY, add_weight, find_bias, weight_of
from enginewright.exporters.weights.precision import Precision
from enginewright.exporters.weights.weight import Weight

MICROSOFT = "com.microsoft"
INT8_ACTIVATIONS, FLOAT32_ACTIVATIONS = 4, 1  # MatMulNBits' accuracy_level


@dataclass(frozen=True)
class _Blocks:
    """The quantised form of a matrix in a graph; `QuantizeWeightsPass` creates it.

    codes: the graph value of the packed codes.
    scales: the graph value of the scales.
    n: rows of the matrix.
    k: columns of the matrix.
    bits: of a stored code.
    block_size: columns that share a scale.
    """

    codes: ir.Value
    scales: ir.Value
    n: int
    k: int
    bits: int
    block_size: int


class QuantizeWeightsPass(ir.passes.InPlacePass):
    """Quantise the weights of matrix products and of the embedding; weights that a method has quantised keep their codes.

    1. MatMul(x, W [k, n]), with the Add of a bias after it, becomes MatMulNBits.
    2. Gemm(x, W [n, k], transB=1), the tied output projection, becomes MatMulNBits, if `precision.lm_head`.
    3. Gather(W, ids) becomes GatherBlockQuantized, if `precision.embedding`; a tied W is stored once for 2 and 3.
    4. The output projection, whose rows are sampled, stays as it is unless `precision.lm_head`.
    5. A router of experts, which is a product that a TopK reads after at most a few steps, stays float32: it is small, and an
       error in it picks another expert.
    6. With `precision` float32 only weights that a method has quantised are stored in blocks. One that no case above covers
       is restored.
    7. Codes of 2 bits are stored in 2 bits for a CPU with int8 activations, and in 4 bits anywhere else.
    """

    def __init__(self, precision: Precision, *, for_cpu: bool = False) -> None:
        self._precision = precision
        self._takes_two = for_cpu and precision.compute == "int8"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, blocks = model.graph, dict[str, _Blocks]()
        head = output_projection(graph)
        for node in list(graph):
            if node.op_type in ("MatMul", "Gemm"):
                weight = weight_of(node.inputs[1])
                chosen = weight is not None and weight.quantized is not None
                if (chosen or self._takes_product(node, head)) and not _routes(node):
                    self._quantize_product(graph, node, blocks)
            elif node.op_type == "Gather" and self._precision.embedding and self._precision.kind != "float32":
                self._quantize_embedding(graph, node, blocks)
        for value in graph.inputs:
            if (left := weight_of(value)) is not None and left.quantized is not None:
                value.meta[KEY] = dataclasses.replace(left, quantized=None)
        if blocks:
            model.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified=bool(blocks))

    def _takes_product(self, node: ir.Node, head: ir.Node | None) -> bool:
        return self._precision.kind != "float32" and (node is not head or self._precision.lm_head)

    def _quantize_product(self, graph: ir.Graph, node: ir.Node, blocks: dict[str, _Blocks]) -> None:
        weight = weight_of(node.inputs[1])
        if weight is None or len(weight.shape) != 2:
            return
        is_rows = node.op_type == "Gemm"
        if is_rows and (node.attributes.get_int("transB", 0) != 1 or len(node.inputs) > 2):
            return
        stored = self._blocks(graph, node.inputs[1], weight if is_rows else weight.transposed(), blocks)
        last, bias = find_bias(node, stored.n) or (node, None)
        compute = INT8_ACTIVATIONS if self._precision.compute == "int8" else FLOAT32_ACTIVATIONS
        inputs = [node.inputs[0], stored.codes, stored.scales]
        product = ir.node(
            "MatMulNBits",
            inputs if bias is None else [*inputs, None, None, bias],
            domain=MICROSOFT,
            attributes={
                "K": stored.k,
                "N": stored.n,
                "bits": stored.bits,
                "block_size": stored.block_size,
                "accuracy_level": compute,
            },
        )
        _take_place(graph, last, product)
        if last is not node:
            graph.remove(node, safe=True)

    def _quantize_embedding(self, graph: ir.Graph, node: ir.Node, blocks: dict[str, _Blocks]) -> None:
        weight = weight_of(node.inputs[0])
        if weight is None or len(weight.shape) != 2 or node.attributes.get_int("axis", 0) != 0:
            return
        if weight.shape[1] % self._precision.block_size:
            return  # GatherBlockQuantized has no padded last block
        stored = self._blocks(graph, node.inputs[0], weight, blocks)
        shape = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([stored.n, -1], np.int64))})
        rows = ir.node("Reshape", [stored.codes, shape.outputs[0]])
        gather = ir.node(
            "GatherBlockQuantized",
            [rows.outputs[0], node.inputs[1], stored.scales],
            domain=MICROSOFT,
            attributes={
                "gather_axis": 0,
                "quantize_axis": 1,
                "bits": stored.bits,
                "block_size": stored.block_size,
            },
        )
        graph.insert_before(node, [shape, rows])
        _take_place(graph, node, gather)

    def _blocks(self, graph: ir.Graph, source: ir.Value | None, rows: Weight, blocks: dict[str, _Blocks]) -> _Blocks:
        """The quantised values of `rows`, which are added to the graph at the first use of `source`."""
        assert source is not None and source.name is not None
        if source.name not in blocks:
            n, k = rows.shape
            bits, size, make = self._storage(rows)
            count = -(-k // size)
            quantize = _shared(make)
            codes = Weight(shape=(n, count, size * bits // 8), dtype=ir.DataType.UINT8, load=lambda: quantize(0))
            scales = Weight(shape=(n, count), dtype=ir.DataType.FLOAT, load=lambda: quantize(1))
            codes_value = add_weight(graph, f"{source.name}.codes", codes)
            scales_value = add_weight(graph, f"{source.name}.scales", scales)
            blocks[source.name] = _Blocks(codes_value, scales_value, n, k, bits, size)
        return blocks[source.name]

    def _storage(self, rows: Weight) -> tuple[int, int, Callable[[], tuple[np.ndarray, np.ndarray]]]:
        """Bits, block size, and a function that computes codes and scales of `rows` [n, k]."""
        chosen = rows.quantized
        if chosen is None:
            bits, size = self._precision.bits, self._precision.block_size
            return bits, size, lambda: quantize_blocks(rows.load(), bits, size)
        bits, size = stored_form(chosen.bits, chosen.group_size, rows.shape[1], takes_two=self._takes_two)
        return bits, size, lambda: store_codes(*chosen.load(), chosen.group_size, bits, size)


def _shared(make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> Callable[[int], np.ndarray]:
    """Return a function of 0 or 1 that gives that part of the result of `make`.

    `make` runs once for both parts: the other part is kept until it is asked for.
    """
    kept: dict[int, np.ndarray] = {}

    def part(index: int) -> np.ndarray:
        if index not in kept:
            kept[0], kept[1] = make()
        return kept.pop(index)

    return part


def output_projection(graph: ir.Graph) -> ir.Node | None:
    """The last matrix product before the logits; None where there is none."""
    value = next((v for v in graph.outputs if v.name == "logits"), None)
    node = value.producer() if value is not None else None
    while node is not None and node.op_type not in ("MatMul", "Gemm", "MatMulNBits"):
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    return node


def _routes(node: ir.Node, steps: int = 4) -> bool:
    """Whether a TopK reads what `node` makes, through at most `steps` nodes."""
    readers = [user for output in node.outputs for user, _ in output.uses()]
    if any(user.op_type == "TopK" for user in readers):
        return True
    return steps > 0 and any(_routes(user, steps - 1) for user in readers if user.op_type not in ("MatMul", "Gemm"))


def _take_place(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    new.outputs[0].type, new.outputs[0].shape = old.outputs[0].type, old.outputs[0].shape
    graph.insert_before(old, new)
    old.outputs[0].replace_all_uses_with(new.outputs[0])
    graph.remove(old, safe=True)
