"""Builds engines for ONNX Runtime on the CPU: decoder graphs that are optimised once, offline.

The engine is a graph only. Its initializers point into the weight file of the exported graph, so weights lie on disk once
and are never read here; ONNX Runtime's own optimiser sees them as inputs.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx_ir.passes import common

from enginewright.builders.onnxruntime.simplified_norms import SimplifiedNormsPass
from enginewright.builders.options import BackendOptions
from enginewright.builders.passes.fuse_block_linear import FuseBlockLinearPass
from enginewright.builders.passes.fuse_greedy_linear import FuseGreedyLinearPass
from enginewright.builders.passes.fuse_split_qkv import SplitQkvPass
from enginewright.plugins.libraries.locate import LibraryError, ort_library
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import op_versions
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import BuiltGraph, Graph, Manifest
from enginewright.runtime.backends.onnxruntime.load_errors import LOAD_ERRORS
from enginewright.runtime.errors import BuildError
from enginewright.runtime.machine import compute_name

BACKEND = "onnxruntime"
_CLEANING = (common.RemoveUnusedNodesPass(), common.TopologicalSortPass())


def build(root: Path, manifest: Manifest, backend: str, options: BackendOptions) -> Manifest:
    """Optimise every graph for ONNX Runtime on this machine's CPU; return the manifest that names the engines.

    Writes engines/<name>.onnxruntime.onnx and the new manifest, atomically. An older engine of this backend is replaced.
    A graph in half precision gets no engine: the CPU runs it as it was exported.

    Raises:
        BuildError: enginewright's op library is missing, or ONNX Runtime does not take the graph.
        OSError: the disk is full.
    """
    graphs = {name: _build_graph(root, name, graph) for name, graph in manifest.graphs.items()}
    built = dataclasses.replace(manifest, graphs=graphs)
    directory.save(built, root)
    return built


def _build_graph(root: Path, name: str, graph: Graph) -> Graph:
    source = root / graph.files[0].path
    target = root / "engines" / f"{name}.{BACKEND}.onnx"
    model = ir.load(source)
    others = tuple(e for e in graph.engines if e.backend != BACKEND)
    if any(value.dtype is ir.DataType.FLOAT16 for value in model.graph.initializers.values()):
        return dataclasses.replace(graph, engines=others)  # weights become float32 when the graph itself is loaded
    target.parent.mkdir(exist_ok=True)
    ir.passes.Sequential(FuseBlockLinearPass(), *_CLEANING, SimplifiedNormsPass())(model)
    weights = _take_weights(model)
    optimized = _optimize(model, root)
    if graph.ops:  # otherwise the graph was exported with --plugins none
        # now, because the optimiser makes the Splits that the first pass looks for
        ir.passes.Sequential(SplitQkvPass(), FuseGreedyLinearPass(), *_CLEANING)(optimized)
    _return_weights(optimized, weights)
    ir.save(optimized, target)
    engine = BuiltGraph(
        backend=BACKEND,
        version=ort.__version__,
        compute=compute_name(),
        files=(directory.describe_file(root, target),),
        plugins=op_versions(node.op_type for node in optimized.graph if node.domain == DOMAIN),
    )
    return dataclasses.replace(graph, engines=(*others, engine))


def _take_weights(model: ir.Model) -> dict[str, ir.ExternalTensor]:
    """Turn the initializers whose values lie in a file into inputs, and return their places in the file, by name."""
    taken: dict[str, ir.ExternalTensor] = {}
    for name, value in list(model.graph.initializers.items()):
        if isinstance(value.const_value, ir.ExternalTensor):
            taken[name] = value.const_value
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    return taken


def _return_weights(model: ir.Model, weights: dict[str, ir.ExternalTensor]) -> None:
    for value in [v for v in model.graph.inputs if v.name in weights]:
        assert value.name is not None
        model.graph.inputs.remove(value)
        if value.uses():
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)


def _optimize(model: ir.Model, root: Path) -> ir.Model:
    """Return `model` as ONNX Runtime's optimiser leaves it; scratch files lie in the engine directory."""
    options = ort.SessionOptions()
    try:
        options.register_custom_ops_library(str(ort_library()))
    except LibraryError as e:
        raise BuildError(str(e)) from e
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        before, after = Path(scratch) / "before.onnx", Path(scratch) / "after.onnx"
        ir.save(model, before)
        options.optimized_model_filepath = str(after)
        try:
            ort.InferenceSession(str(before), options, providers=["CPUExecutionProvider"])
        except LOAD_ERRORS as e:
            _check_room(after, before.stat().st_size)
            raise BuildError(f"onnxruntime {ort.__version__} does not take the graph ({e})") from e
        optimized = ir.load(after)
    return optimized


def _check_room(path: Path, size: int) -> None:
    """Raise the disk's own OSError where it has no room for `size` bytes: ONNX Runtime only says that it could not write."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
