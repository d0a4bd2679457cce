"""Finds the residual stream in a decoder graph: the value after each layer."""

from __future__ import annotations

import onnx_ir as ir

from enginewright.runtime.artifact.decoder_graph import INPUT_IDS
from enginewright.runtime.errors import BuildError

LOOKUPS = ("Gather", "GatherBlockQuantized")


def find_residual_stream(graph: ir.Graph, layers: int) -> list[ir.Value]:
    """Return the embeddings, then the residual stream after each of `layers` decoder layers.

    The stream begins at the lookup of token ids. Each layer adds to it twice: first the output of attention, then the output
    of the feed-forward part (a gated product or experts).

    Raises:
        BuildError: the graph has another structure.
    """
    value = next((n.outputs[0] for n in graph if n.op_type in LOOKUPS and _reads(n.inputs[1], INPUT_IDS.name)), None)
    if value is None:
        raise BuildError(
            "decoder: got no lookup of input_ids, expected an embedding; compare it with its model instead"
        )
    stream = [value]
    while True:
        readers = [node for node, _ in stream[-1].uses()]
        sums = [node for node in readers if node.op_type == "Add"]
        if len(stream) == 1 and not sums and len(readers) == 1:  # embeddings may be scaled
            stream = [readers[0].outputs[0]]
        elif len(sums) == 1:
            stream.append(sums[0].outputs[0])
        else:
            break
    if len(stream) != 2 * layers + 1:
        raise BuildError(
            f"decoder: got a residual stream of {len(stream) - 1} sums, expected 2 in each of {layers} layers; compare it "
            "with its model instead"
        )
    return stream[::2]


def _reads(value: ir.Value | None, name: str) -> bool:
    """Whether `value` is the input `name`, possibly reshaped or cast."""
    while value is not None and value.name != name:
        node = value.producer()
        if node is None or node.op_type not in ("Reshape", "Unsqueeze", "Squeeze", "Cast"):
            return False
        value = node.inputs[0]
    return value is not None
