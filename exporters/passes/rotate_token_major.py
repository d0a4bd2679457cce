"""Rotates queries and keys in the layout that projections write and our attention op reads.

Hugging Face models rotate [1, heads, T, D], but projections write tokens first, and our op reads tokens first.
RotaryEmbedding also reads [1, T, heads * D], so the transposes before and after it are needless copies.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

SWAP = [0, 2, 1, 3]


class RotateTokenMajorPass(ir.passes.InPlacePass):
    """Remove both transposes around each RotaryEmbedding.

    1. x [1, T, H, D] -> Transpose -> RotaryEmbedding -> Transpose becomes Reshape -> RotaryEmbedding -> Reshape.
    2. A rotation whose output has a reader other than such a transpose keeps its layout.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_rotate(node) for node in list(model.graph) if node.op_type == "RotaryEmbedding"]
        return ir.passes.PassResult(model, modified=any(changed))


def _rotate(node: ir.Node) -> bool:
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    readers = [user for user, _ in node.outputs[0].uses()]
    if before is None or not _swaps_heads(before) or not readers or not all(map(_swaps_heads, readers)):
        return False
    source, graph = before.inputs[0], node.graph
    if source is None or source.shape is None or graph is None:
        return False
    heads, size = source.shape[2], source.shape[3]
    if not isinstance(heads, int) or not isinstance(size, int):
        return False
    flat = _flat_source(source, heads * size) or _reshape(graph, node, source, [1, -1, heads * size])
    attributes = {**node.attributes, "num_heads": ir.AttrInt64("num_heads", heads)}
    rotated = ir.Node("", "RotaryEmbedding", [flat, *node.inputs[1:]], attributes.values())
    rotated.outputs[0].type, rotated.outputs[0].shape = source.type, flat.shape
    graph.insert_before(node, rotated)
    restored = _reshape(graph, node, rotated.outputs[0], [1, -1, heads, size])
    for reader in readers:
        reader.outputs[0].replace_all_uses_with(restored)
    graph.remove([*readers, node], safe=True)
    return True


def _flat_source(value: ir.Value, width: int) -> ir.Value | None:
    """The value [1, T, H * D] that `value` [1, T, H, D] was reshaped from; None where there is none."""
    reshape = value.producer()
    source = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
    if source is None or source.shape is None or len(source.shape) != 3 or source.shape[2] != width:
        return None
    return source


def _swaps_heads(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == SWAP


def _reshape(graph: ir.Graph, before: ir.Node, value: ir.Value, shape: list[int]) -> ir.Value:
    constant = ir.node("Constant", [], attributes={"value": ir.tensor(np.array(shape, np.int64))})
    node = ir.node("Reshape", [value, constant.outputs[0]])
    dims = [value.shape[1] if d == -1 and value.shape is not None else d for d in shape]
    node.outputs[0].type, node.outputs[0].shape = value.type, ir.Shape(dims)
    graph.insert_before(before, [constant, node])
    return node.outputs[0]
