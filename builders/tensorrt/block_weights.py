"""Rewrites weights in blocks of 2, 4 or 8 bits for TensorRT: DequantizeLinear before a product, a plain table for Gather."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from enginewright.builders.tensorrt.graph_file import RowsTensor

MICROSOFT = "com.microsoft"
STORED = {2: ir.DataType.INT4, 4: ir.DataType.INT4, 8: ir.DataType.INT8}
SIGN = {4: 0x88, 8: 0x80}  # an exclusive or with it turns a byte of codes with an offset into two's complement


class BlockWeightsPass(ir.passes.InPlacePass):
    """Replace ONNX Runtime's ops on blocks of codes by standard ones.

    1. MatMulNBits(x, codes [n, blocks, bytes], scales) -> MatMul(x, Transpose(DequantizeLinear(codes [n, k], scales))),
       followed by an Add of the bias, if there is one. TensorRT keeps such a weight in its few bits.
    2. If k does not fill its last block, x is padded with zeros to match the padding codes.
    3. 8 bits: the parser rejects negative scales in a file but accepts them from a node, so scales are stored negated and
       pass through a Neg.
    4. GatherBlockQuantized(codes, ids, scales) -> Gather(table, ids), the table in the type of its scales. A tied weight is
       stored twice: as codes for case 1 and as a table.
    5. Codes of 2 bits become codes of 4 bits.
    6. Zero points, which a DequantizeLinear of 4 bits does not take: the product is that of codes around 0, and the sums of
       x over blocks, times -scale * zero point, are added to it. A table has them in its numbers.
    7. A MatMulNBits with an order of groups stays, and so does a GatherBlockQuantized along other axes.
    8. What corrects a product or a lookup for minima, or reorders an input, is of standard nodes and stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = False
        for node in list(model.graph):
            if node.domain == MICROSOFT and node.op_type == "MatMulNBits":
                changed |= _replace_product(model.graph, node)
            elif node.domain == MICROSOFT and node.op_type == "GatherBlockQuantized":
                changed |= _replace_gather(model.graph, node)
        if not any(node.domain == MICROSOFT for node in model.graph):
            model.opset_imports.pop(MICROSOFT, None)
        return ir.passes.PassResult(model, modified=changed)


def _replace_product(graph: ir.Graph, node: ir.Node) -> bool:
    source, codes, scales, zeros, order, bias = (*node.inputs, *[None] * 3)[:6]
    bits, block, k = (node.attributes.get_int(name, 0) for name in ("bits", "block_size", "K"))
    stored, steps, centers = _constant(codes), _constant(scales), _constant(zeros)
    if source is None or order is not None or bits not in STORED or (zeros is not None and centers is None):
        return False
    if stored is None or steps is None or codes is None or scales is None:
        return False
    n, blocks = stored.shape.numpy()[:2]
    width, dtype, made = blocks * block, steps.dtype, list[ir.Node]()
    weight = _add(graph, f"{codes.name}.signed", STORED[bits], (n, width), lambda a, b: _signed(stored, bits, a, b))
    if bits != 8:
        scale = _add(graph, f"{scales.name}.blocks", dtype, (n, blocks), lambda a, b: _rows(steps, n)[a:b])
    else:
        opposite = _add(graph, f"{scales.name}.negated", dtype, (n, blocks), lambda a, b: -_rows(steps, n)[a:b])
        made.append(_node("Neg", [opposite], dtype, (n, blocks)))
        scale = made[-1].outputs[0]
    made.append(_node("DequantizeLinear", [weight, scale], dtype, (n, width), axis=1, block_size=block))
    made.append(_node("Transpose", [made[-1].outputs[0]], dtype, (width, n), perm=[1, 0]))
    matrix = made[-1].outputs[0]
    if width != k:
        rank = len(node.outputs[0].shape or source.shape or ())
        ends = _add_small(graph, f"{codes.name}.pads", np.array([0] * (2 * rank - 1) + [width - k], np.int64))
        made.append(_node("Pad", [source, ends], dtype, None))
        source = made[-1].outputs[0]
    made.append(_node("MatMul", [source, matrix], dtype, None))
    if zeros is not None and centers is not None:
        offsets = _add(
            graph, f"{zeros.name}.offsets", dtype, (n, blocks), lambda a, b: _offsets(steps, centers, bits, a, b)
        )
        made[-1].outputs[0].shape = node.outputs[0].shape
        made += _add_offsets(graph, source, offsets, made[-1].outputs[0], block)
    if bias is not None:
        made[-1].outputs[0].shape = node.outputs[0].shape
        made.append(_node("Add", [made[-1].outputs[0], bias], dtype, None))
    _replace_node(graph, node, made)
    return True


def _add_offsets(graph: ir.Graph, source: ir.Value, offsets: ir.Value, product: ir.Value, block: int) -> list[ir.Node]:
    """The nodes that add to `product` [..., n] the sums of `source` [..., blocks * block] over blocks, times `offsets`."""
    rank, dtype = len(product.shape or source.shape or ()), product.dtype
    assert dtype is not None and offsets.shape is not None
    n, blocks = offsets.shape.numpy()
    shape = _add_small(graph, f"blocks_of_{block}.rank_{rank}", np.array([*[0] * (rank - 1), -1, block], np.int64))
    split = _node("Reshape", [source, shape], dtype, None)
    last = _add_small(graph, "last_axis", np.array([-1], np.int64))
    sums = _node("ReduceSum", [split.outputs[0], last], dtype, None, keepdims=0)
    turned = _node("Transpose", [offsets], dtype, (blocks, n), perm=[1, 0])
    share = _node("MatMul", [sums.outputs[0], turned.outputs[0]], dtype, None)
    return [split, sums, turned, share, _node("Add", [product, share.outputs[0]], dtype, None)]


def _replace_gather(graph: ir.Graph, node: ir.Node) -> bool:
    data, ids, scales, zeros = (*node.inputs, None)[:4]
    bits, block = node.attributes.get_int("bits", 4), node.attributes.get_int("block_size", 128)
    axes = node.attributes.get_int("gather_axis", 0), node.attributes.get_int("quantize_axis", 1)
    reshape = data.producer() if data is not None else None
    codes = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else data
    stored, steps = _constant(codes), _constant(scales)
    centers = _constant(zeros)
    if stored is None or steps is None or codes is None or axes != (0, 1) or bits not in STORED:
        return False
    if zeros is not None and centers is None:
        return False
    n = stored.shape.numpy()[0]
    k = stored.size * 8 // bits // n
    table = _add(
        graph,
        f"{codes.name}.table",
        steps.dtype,
        (n, k),
        lambda a, b: _dequantized(stored, steps, centers, bits, block, a, b),
    )
    _replace_node(graph, node, [_node("Gather", [table, ids], steps.dtype, None, axis=0)])
    return True


def _rows(tensor: ir.TensorProtocol, n: int) -> np.ndarray:
    """The values as [n, ...]. For a tensor in a file this is a view of the file, so only the rows in use are read."""
    values: np.ndarray = tensor.numpy()
    return values.reshape(n, -1)


def _signed(codes: ir.TensorProtocol, bits: int, begin: int, end: int) -> np.ndarray:
    """The codes of rows begin .. end - 1 in two's complement; codes of 2 bits widened to 4."""
    stored = _rows(codes, codes.shape.numpy()[0])[begin:end]
    if bits == 2:
        signed = _unpacked(stored, bits) - np.uint8(2) & 15
        return signed[:, 0::2] | signed[:, 1::2] << 4
    return stored ^ np.uint8(SIGN[bits])


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes of some rows, one code a byte; packed[n, bytes] has the earlier code in the lower bits."""
    codes: np.ndarray = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & ((1 << bits) - 1)
    return codes.reshape(len(packed), -1)


def _centers(zero_points: ir.TensorProtocol, n: int, blocks: int, bits: int, begin: int, end: int) -> np.ndarray:
    """The zero points of rows begin .. end - 1, float32 [rows, blocks], around the middle of the codes' range."""
    stored = _rows(zero_points, n)[begin:end]
    return _unpacked(stored, bits)[:, :blocks].astype(np.float32) - (1 << (bits - 1))


def _offsets(scales: ir.TensorProtocol, zero_points: ir.TensorProtocol, bits: int, begin: int, end: int) -> np.ndarray:
    """What every element of a block is more than code * scale, with codes around 0: [rows, blocks] in the type of `scales`."""
    n = scales.shape.numpy()[0]
    steps = _rows(scales, n)[begin:end]
    centers = _centers(zero_points, n, steps.shape[1], bits, begin, end)
    offsets: np.ndarray = (-steps.astype(np.float32) * centers).astype(steps.dtype)
    return offsets


def _dequantized(
    codes: ir.TensorProtocol,
    scales: ir.TensorProtocol,
    zero_points: ir.TensorProtocol | None,
    bits: int,
    block: int,
    begin: int,
    end: int,
) -> np.ndarray:
    """Rows begin .. end - 1 of the weight itself, in the type of `scales`."""
    n = codes.shape.numpy()[0]
    packed, steps = _rows(codes, n)[begin:end], _rows(scales, n)[begin:end]
    q = _unpacked(packed, bits)
    blocks = (q.astype(np.float32) - (1 << (bits - 1))).reshape(len(q), -1, block)
    if zero_points is not None:
        blocks -= _centers(zero_points, n, blocks.shape[1], bits, begin, end)[..., None]
    rows: np.ndarray = (blocks * steps.astype(np.float32)[..., None]).reshape(len(q), -1).astype(steps.dtype)
    return rows


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else value.const_value


def _add(graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, int], rows: object) -> ir.Value:
    """Return the initializer `name`, made at the first call; two products of one weight share it."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = RowsTensor(name, dtype, shape, rows)  # type: ignore[arg-type]
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _add_small(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.INT64), const_value=ir.tensor(array)
    )
    graph.initializers.setdefault(name, value)
    return graph.initializers[name]


def _node(
    op_type: str, inputs: list[ir.Value | None], dtype: ir.DataType, shape: tuple[int, ...] | None, **attributes: object
) -> ir.Node:
    node = ir.node(op_type, inputs, attributes=attributes)  # type: ignore[arg-type]
    node.outputs[0].type = ir.TensorType(dtype)
    node.outputs[0].shape = None if shape is None else ir.Shape(shape)
    return node


def _replace_node(graph: ir.Graph, old: ir.Node, made: list[ir.Node]) -> None:
    """Replace `old` by the nodes `made`, the last of which computes the same value."""
    result, value = old.outputs[0], made[-1].outputs[0]
    value.type, value.shape, name = result.type or value.type, result.shape, result.name
    graph.insert_before(old, made)
    result.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    value.name = name
