"""Writes standard nodes into a graph, one node a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir


class GraphWriter:
    """Inserts nodes before one node, in the order of the calls.

    The pass that needs one creates it. `write("Add", a, b)` returns the node's only output; keywords are attributes. It
    writes only standard ops.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self._graph = graph
        self._before = before

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Insert a node and return its output, without type or shape."""
        node = ir.node(op, inputs, attributes=attributes)
        self._graph.insert_before(self._before, node)
        return node.outputs[0]

    def constant(self, values: Sequence[Any], dtype: Any = np.int64) -> ir.Value:
        """Insert a constant of one dimension."""
        return self.tensor(np.array(values, dtype))

    def tensor(self, values: np.ndarray) -> ir.Value:
        """Insert a constant."""
        return self("Constant", value=ir.tensor(values))
