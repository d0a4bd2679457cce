"""Checks that the GPU kernels support the ops of a graph, the same for every host that runs them."""

from __future__ import annotations

import onnx_ir as ir

from enginewright.plugins.libraries.cuda import KVARN_BITS, KVARN_DIMS, PAGED_ATTENTION_DIMS
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import OPS
from enginewright.runtime.errors import BuildError


def check_graph(graph: ir.Graph, backend: str) -> None:
    """Raise BuildError where `graph` has an enginewright op that no GPU kernel supports.

    csrc/launchers/configurations.h lists the supported sizes.
    """
    for node in graph:
        if node.domain == DOMAIN:
            _check_node(node, backend)


def _check_node(node: ir.Node, backend: str) -> None:
    if node.op_type not in OPS:
        raise BuildError(
            f"--backend {backend}: got an op {node.op_type!r}, expected one of {', '.join(OPS)}; upgrade enginewright"
        )
    if node.op_type not in ("PagedAttention", "KVarNAttention"):
        return
    dims = [value.shape[2] for value in node.inputs[:3] if value is not None and value.shape is not None]
    found = (dims[0], dims[2])
    if node.op_type == "PagedAttention" and found not in PAGED_ATTENTION_DIMS:
        known = ", ".join(f"{k} and {v}" for k, v in PAGED_ATTENTION_DIMS)
        raise BuildError(
            f"--backend {backend}: got heads of {found[0]} and {found[1]}, expected one of {known}; build with "
            "--plugins none --backend tensorrt"
        )
    if node.op_type == "KVarNAttention":
        _check_kvarn(node, found[0], backend)


def _check_kvarn(node: ir.Node, head_dim: object, backend: str) -> None:
    if head_dim not in KVARN_DIMS:
        known = ", ".join(map(str, KVARN_DIMS))
        raise BuildError(
            f"--backend {backend}: kvarn: got heads of {head_dim}, expected one of {known}; export the model without kvarn"
        )
    bits = (node.attributes.get_int("k_bits", 4), node.attributes.get_int("v_bits", 2))
    if bits not in KVARN_BITS:
        known = ", ".join(f"k_bits={k},v_bits={v}" for k, v in KVARN_BITS)
        raise BuildError(
            f"--backend {backend}: kvarn: got k_bits={bits[0]},v_bits={bits[1]}, expected one of {known}; export the model with "
            "one of these"
        )
