"""Checks that the GPU kernels support the ops of a graph, the same for every host that runs them."""

from __future__ import annotations

import onnx_ir as ir

from enginewright.plugins.ops.op import DOMAIN, Op
from enginewright.plugins.ops.registry import GPU_OPS, OPS
from enginewright.runtime.errors import BuildError


def check_graph(graph: ir.Graph, backend: str) -> None:
    """Raise BuildError where `graph` has an enginewright op that no GPU kernel supports, as the op's declaration says."""
    for node in graph:
        if node.domain != DOMAIN:
            continue
        if node.op_type not in OPS:
            raise BuildError(
                f"--backend {backend}: got an op {node.op_type!r}, expected one of {', '.join(GPU_OPS)}; upgrade enginewright"
            )
        message = _unsupported(node, OPS[node.op_type])
        if message is not None:
            raise BuildError(f"--backend {backend}: {message}")


def _unsupported(node: ir.Node, op: Op) -> str | None:
    if op.unsupported is None:
        return None
    given = zip(op.inputs, node.inputs, strict=False)
    shapes = {port.name: list(value.shape) for port, value in given if value is not None and value.shape is not None}
    defaults = {attribute.name: attribute.default for attribute in op.attributes}
    return op.unsupported(shapes, defaults | {name: a.value for name, a in node.attributes.items()})
