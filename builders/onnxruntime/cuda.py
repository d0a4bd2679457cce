"""Builds engines for ONNX Runtime's CUDA provider: decoder graphs with enginewright's fused ops.

Building needs no GPU: ONNX Runtime does what depends on the device when it loads the engine there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx_ir.passes import common

from enginewright.builders.onnxruntime.simplified_norms import SimplifiedNormsPass
from enginewright.builders.options import BackendOptions
from enginewright.builders.passes.fuse_split_qkv import SplitQkvPass
from enginewright.builders.supported_kernels import check_graph
from enginewright.plugins.libraries.cuda import ORT_BACKEND, ORT_COMPUTE
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import op_versions
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import BuiltGraph, Graph, Manifest


def build(root: Path, manifest: Manifest, backend: str, options: BackendOptions) -> Manifest:
    """Write engines/<name>.onnxruntime-cuda.onnx of every graph, and the manifest that names them, atomically.

    Raises:
        BuildError: an op of a graph has no kernel for its sizes.
    """
    graphs = {name: _build_graph(root, name, graph) for name, graph in manifest.graphs.items()}
    built = dataclasses.replace(manifest, graphs=graphs)
    directory.save(built, root)
    return built


def _build_graph(root: Path, name: str, graph: Graph) -> Graph:
    source, target = root / graph.files[0].path, root / "engines" / f"{name}.{ORT_BACKEND}.onnx"
    model = ir.load(source)
    check_graph(model.graph, ORT_BACKEND)
    passes = (SimplifiedNormsPass(), SplitQkvPass(), common.RemoveUnusedNodesPass(), common.TopologicalSortPass())
    ir.passes.Sequential(*passes)(model)
    target.parent.mkdir(exist_ok=True)
    ir.save(model, target)  # its initializers go on pointing into the exported weights
    engine = BuiltGraph(
        backend=ORT_BACKEND,
        version=ort.__version__,
        compute=ORT_COMPUTE,
        files=(directory.describe_file(root, target),),
        plugins=op_versions(node.op_type for node in model.graph if node.domain == DOMAIN),
    )
    others = tuple(e for e in graph.engines if e.backend != ORT_BACKEND)
    return dataclasses.replace(graph, engines=(*others, engine))
