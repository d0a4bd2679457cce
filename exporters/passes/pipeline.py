"""The graph passes of an export, in order."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from enginewright.exporters.capture.capture import Captured
from enginewright.exporters.passes.fold_weights import FoldWeightsPass
from enginewright.exporters.passes.fuse_standard import FuseStandardOpsPass
from enginewright.exporters.passes.gather_sample_rows import GatherSampleRowsPass
from enginewright.exporters.passes.norm_token_major import NormTokenMajorPass
from enginewright.exporters.passes.pack_projections import PackProjectionsPass
from enginewright.exporters.passes.rotate_token_major import RotateTokenMajorPass
from enginewright.exporters.passes.simplify import SimplifyPass
from enginewright.exporters.passes.tie_embedding import TieEmbeddingPass
from enginewright.exporters.weights.graph_weights import KEY
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import EnginewrightError, UnsupportedError


def attach_weights(captured: Captured, weights: dict[str, Weight]) -> None:
    """Give every initializer of the captured graph its recipe, or the value of its buffer.

    Weights become inputs until the end of the rewriting, for the reason that `add_weight` gives; buffers stay constants.

    Raises:
        UnsupportedError: an initializer is neither a parameter nor a buffer.
    """
    graph, buffers = captured.model.graph, captured.skeleton.buffers
    for key, value in list(graph.initializers.items()):
        name = value.name or key
        del graph.initializers[key]
        if name in weights:
            value.const_value = None
            value.meta[KEY] = weights[name]
            graph.inputs.append(value)
        elif name in buffers:
            value.const_value = ir.Tensor(buffers[name].numpy(), name=name)
            graph.register_initializer(value)
        else:
            family = captured.skeleton.model.config.model_type
            raise UnsupportedError(f"{family}: the graph reads a constant {name!r} that is no parameter or buffer")


def rewrite(model: ir.Model, own: Sequence[ir.passes.PassBase] = ()) -> None:
    """Optimise `model` in place without reading a weight.

    own: passes of the methods; they see each projection as a product of its own, with its weight after the norm's scale.

    Raises:
        EnginewrightError: what a pass raises.
    """
    passes: list[ir.passes.PassBase] = [
        SimplifyPass(),
        FuseStandardOpsPass(),
        SimplifyPass(),
        GatherSampleRowsPass(),
        NormTokenMajorPass(),
        RotateTokenMajorPass(),
        TieEmbeddingPass(),
        FoldWeightsPass(),
        *own,
        PackProjectionsPass(),
        SimplifyPass(),  # merges the reshapes that RotateTokenMajorPass leaves
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
        common.ClearMetadataAndDocStringPass(),  # stack traces and file names of the machine that exported
    ]
    try:
        ir.passes.Sequential(*passes)(model)
    except ir.passes.PassError as e:
        if isinstance(e.__cause__, EnginewrightError):  # of a pass of ours, which says what is wrong
            raise e.__cause__ from None
        raise
