"""Writes attention as products and a softmax, for cases that no fused kernel takes: a softcap on the logits, or sinks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from enginewright.exporters.passes.graph_writer import GraphWriter


def decomposed_attention(
    write: GraphWriter,
    query: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    mask: ir.Value,
    *,
    scale: float,
    softcap: float,
    sinks: ir.Value | None,
) -> ir.Value:
    """Write attention into a graph, and return its output [B, Hq, T, Dv].

    write: inserts the nodes.
    query: [B, Hq, T, D].
    keys: [B, Hkv, S, D].
    values: [B, Hkv, S, Dv].
    mask: bool [B, 1, T, S], true where a key is seen.
    scale: the factor on q . k.
    softcap: the bound on logits; 0: none.
    sinks: float32 [Hq], or None.

    Products are computed in the operands' type, logits and softmax in float32.
    """
    assert query.dtype is not None
    heads, kv_heads = _size(query, 1), _size(keys, 1)
    group = heads // kv_heads
    grouped = _reshape(write, query, [0, kv_heads, group, -1, _size(query, 3)])  # [B, Hkv, G, T, D]
    transposed = write("Unsqueeze", write("Transpose", keys, perm=[0, 1, 3, 2]), write.constant([2]))
    logits = write("Mul", _cast(write, write("MatMul", grouped, transposed), ir.DataType.FLOAT), _float(write, scale))
    if softcap:
        bounded = write("Tanh", write("Div", logits, _float(write, softcap)))
        logits = write("Mul", bounded, _float(write, softcap))
    visible = write("Unsqueeze", mask, write.constant([2]))  # [B, 1, 1, T, S]
    logits = write("Where", visible, logits, _float(write, -np.inf))
    if sinks is None:
        weights = write("Softmax", logits, axis=-1)
    else:
        weights = _softmax_with_sinks(write, logits, _reshape(write, sinks, [1, kv_heads, group, 1, 1]))
    weights = _cast(write, weights, query.dtype)
    mixed = write("MatMul", weights, write("Unsqueeze", values, write.constant([2])))
    return _reshape(write, mixed, [0, heads, -1, _size(values, 3)])


def _softmax_with_sinks(write: GraphWriter, logits: ir.Value, sinks: ir.Value) -> ir.Value:
    """Each key's share in a softmax with one more logit per head, which takes a share but has no value."""
    largest = write("Max", write("ReduceMax", logits, write.constant([-1])), sinks)
    shares = write("Exp", write("Sub", logits, largest))
    total = write("Add", write("ReduceSum", shares, write.constant([-1])), write("Exp", write("Sub", sinks, largest)))
    return write("Div", shares, total)


def _size(value: ir.Value, axis: int) -> int:
    assert value.shape is not None
    size = value.shape[axis]
    assert isinstance(size, int)
    return size


def _reshape(write: GraphWriter, value: ir.Value, shape: list[int]) -> ir.Value:
    return write("Reshape", value, write.constant(shape))


def _cast(write: GraphWriter, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    return write("Cast", value, to=dtype)


def _float(write: GraphWriter, number: float) -> ir.Value:
    return write.tensor(np.array(number, np.float32))
