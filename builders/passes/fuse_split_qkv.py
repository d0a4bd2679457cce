"""Fuses the nodes between a packed projection and attention: split, head norms, rotations and reshapes become SplitQkv.

Every node costs ONNX Runtime a few microseconds, even if it does little; a decode step of a small model pays that eight times
a layer here. In a prefill each of these nodes copies all queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import OPS
from enginewright.plugins.ops.split_qkv import SPLIT_QKV

OPERANDS = ("query", "key", "value")
NORMS = ("RMSNormalization", "SimplifiedLayerNormalization")  # the second is ONNX Runtime's name for it
ATTENTION = {name for name, op in OPS.items() if tuple(t.name for t in op.inputs[:3]) == OPERANDS}


@dataclass
class _Path:
    """The nodes from an output of a Split down to an operand of attention; created by `_trace`.

    index: the place of that output among the Split's outputs.
    """

    split: ir.Node
    index: int
    norm: ir.Node | None = None
    rotation: ir.Node | None = None


class SplitQkvPass(ir.passes.InPlacePass):
    """Split -> [RMS norm] -> [RotaryEmbedding] -> attention or DepthMix, with any reshapes between, becomes SplitQkv.

    1. Query, key and value are the three outputs of one Split along the last axis, in this order.
    2. Query and key are rotated by the same angles, halves against halves, or both are not.
    3. Both are normalised over one head with the same epsilon, or both are not; always before they are rotated. A norm over
       the whole projection, as olmo2 has it, is another form.
    4. The value is neither rotated nor normalised.
    5. Query, key and value themselves may have more readers, such as the DepthMix nodes of later layers.
    6. Any other form stays as it is, and so does one in which another node reads a value between the Split and attention.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_fuse(node) for node in list(model.graph) if node.domain == DOMAIN and node.op_type in ATTENTION]
        return ir.passes.PassResult(model, modified=any(changed))


def _fuse(attention: ir.Node) -> bool:
    operands = attention.inputs[:3]
    paths = [_trace(operand) for operand in operands]
    sizes = [_heads(operand) for operand in operands]
    if None in paths or None in sizes or attention.graph is None:
        return False
    query, key, value = (path for path in paths if path is not None)
    if not _belong_together(query, key, value):
        return False
    (query_heads, head_dim), (kv_heads, _), (_, value_dim) = (size for size in sizes if size is not None)
    if not all(_is_over_one_head(path, head_dim) for path in (query, key)):
        return False
    attributes: dict[str, int | float] = {
        "query_heads": query_heads, "kv_heads": kv_heads, "head_dim": head_dim, "value_dim": value_dim
    }  # fmt: skip
    if (epsilon := _epsilon(query)) is not None:
        attributes["epsilon"] = epsilon
    inputs = [query.split.inputs[0], *_angles(query), _scale(query), _scale(key)]
    fused = ir.node(SPLIT_QKV.name, inputs, attributes, domain=DOMAIN, num_outputs=3)
    attention.graph.insert_before(attention, fused)
    for operand, output in zip(operands, fused.outputs, strict=True):
        assert operand is not None
        output.type, output.shape = operand.type, operand.shape
        operand.replace_all_uses_with(output)
    return True


def _trace(operand: ir.Value | None) -> _Path | None:
    """Follow `operand` up to a Split through nodes whose results nothing else reads."""
    norm = rotation = None
    value = operand
    while value is not None and (value is operand or len(value.uses()) == 1) and not value.is_graph_output():
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "Split" and node.attributes.get_int("axis", 0) in (-1, 2):
            return _Path(node, value.index() or 0, norm, rotation)
        if node.op_type == "RotaryEmbedding" and rotation is None and norm is None and _turns_halves(node):
            rotation = node
        elif node.op_type in NORMS and norm is None and _is_over_heads(node):
            norm = node
        elif node.op_type != "Reshape":
            return None
        value = node.inputs[0]
    return None


def _turns_halves(node: ir.Node) -> bool:
    """Whether `node` rotates half against half, with the tokens on the first axis and angles given token by token."""
    source = node.inputs[0]
    tokens_first = source is not None and source.shape is not None and len(source.shape) == 3
    by_token = len([value for value in node.inputs if value is not None]) == 3
    return tokens_first and by_token and node.attributes.get_int("interleaved", 0) == 0


def _is_over_heads(node: ir.Node) -> bool:
    source, scale = node.inputs[:2]
    if source is None or scale is None or source.shape is None or scale.shape is None:
        return False
    return node.attributes.get_int("axis", -1) in (-1, len(source.shape) - 1) and len(scale.shape) == 1


def _is_over_one_head(path: _Path, head_dim: int) -> bool:
    """Whether the path's norm, if it has one, is over one head; some models normalise the whole projection."""
    scale = _scale(path)
    return scale is None or (scale.shape is not None and scale.shape[0] == head_dim)


def _belong_together(query: _Path, key: _Path, value: _Path) -> bool:
    of_one_split = query.split is key.split is value.split and len(query.split.outputs) == 3
    in_order = (query.index, key.index, value.index) == (0, 1, 2)
    same_steps = _angles(query) == _angles(key) and _epsilon(query) == _epsilon(key)
    return of_one_split and in_order and same_steps and value.norm is None and value.rotation is None


def _angles(path: _Path) -> tuple[ir.Value | None, ir.Value | None]:
    """The cosines and sines of the path's rotation; None for both without one."""
    return (None, None) if path.rotation is None else (path.rotation.inputs[1], path.rotation.inputs[2])


def _scale(path: _Path) -> ir.Value | None:
    return None if path.norm is None else path.norm.inputs[1]


def _epsilon(path: _Path) -> float | None:
    return None if path.norm is None else path.norm.attributes.get_float("epsilon", 1e-5)


def _heads(operand: ir.Value | None) -> tuple[int, int] | None:
    """The number of heads and the head size of an operand [T, heads, size]; None where the graph does not state them."""
    if operand is None or operand.shape is None or len(operand.shape) != 3:
        return None
    heads, size = operand.shape[1], operand.shape[2]
    return (heads, size) if isinstance(heads, int) and isinstance(size, int) else None
