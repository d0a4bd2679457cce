"""Engine directory -> an engine for ONNX Runtime's CUDA provider: the decoder graph with this library's fused ops.

No GPU is needed: what depends on the device ONNX Runtime does when it loads the engine there.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]
from onnx_ir.passes import common

from enginewright.builders.passes.simplified_norms import SimplifiedNormsPass
from enginewright.builders.passes.split_qkv import SplitQkvPass
from enginewright.plugins.cuda import KVARN_BITS, KVARN_DIMS, ORT_BACKEND, ORT_COMPUTE, PAGED_ATTENTION_DIMS
from enginewright.plugins.ops import DOMAIN, op_versions
from enginewright.runtime import artifact
from enginewright.runtime.artifact import Engine, Graph, Manifest
from enginewright.runtime.errors import BuildError


def build(root: Path, manifest: Manifest) -> Manifest:
    """Write engines/<name>.onnxruntime-cuda.onnx and the manifest that names them, atomically.

    Raises:
        BuildError: the graph computes in float32, or an op of it has no kernel for its sizes.
    """
    graphs = {name: _build_graph(root, name, graph) for name, graph in manifest.graphs.items()}
    built = dataclasses.replace(manifest, graphs=graphs)
    artifact.save(built, root)
    return built


def _build_graph(root: Path, name: str, graph: Graph) -> Graph:
    source, target = root / graph.files[0].path, root / "engines" / f"{name}.{ORT_BACKEND}.onnx"
    model = ir.load(source)
    for node in model.graph:
        if node.domain == DOMAIN:
            _check_node(node)
    passes = (SimplifiedNormsPass(), SplitQkvPass(), common.RemoveUnusedNodesPass(), common.TopologicalSortPass())
    ir.passes.Sequential(*passes)(model)
    target.parent.mkdir(exist_ok=True)
    ir.save(model, target)  # its initializers go on pointing into the exported weights
    engine = Engine(
        backend=ORT_BACKEND,
        version=ort.__version__,
        compute=ORT_COMPUTE,
        files=(artifact.describe_file(root, target),),
        plugins=op_versions(node.op_type for node in model.graph if node.domain == DOMAIN),
    )
    others = tuple(e for e in graph.engines if e.backend != ORT_BACKEND)
    return dataclasses.replace(graph, engines=(*others, engine))


def _check_node(node: ir.Node) -> None:
    """Raise BuildError where the kernels for devices do not take `node`; csrc/cuda/configurations.h lists what they do."""
    first = node.inputs[0]
    if node.op_type != "GreedySample" and (first is None or first.dtype is ir.DataType.FLOAT):
        raise BuildError(
            f"--backend {ORT_BACKEND}: got a graph that computes in float32, expected float16 or bfloat16; build with "
            "--dtype float16 or --dtype bfloat16"
        )
    if node.op_type not in ("PagedAttention", "KVarNAttention"):
        return
    dims = [value.shape[2] for value in node.inputs[:3] if value is not None and value.shape is not None]
    found = (dims[0], dims[2])
    if node.op_type == "PagedAttention" and found not in PAGED_ATTENTION_DIMS:
        known = ", ".join(f"{k} and {v}" for k, v in PAGED_ATTENTION_DIMS)
        raise BuildError(f"--backend {ORT_BACKEND}: got heads of {found[0]} and {found[1]}, expected one of {known}")
    if node.op_type != "KVarNAttention":
        return
    if found[0] not in KVARN_DIMS:
        known = ", ".join(map(str, KVARN_DIMS))
        raise BuildError(f"--backend {ORT_BACKEND}: kvarn: got heads of {found[0]}, expected one of {known}")
    bits = (node.attributes.get_int("k_bits", 4), node.attributes.get_int("v_bits", 2))
    if bits not in KVARN_BITS:
        known = ", ".join(f"k_bits={k},v_bits={v}" for k, v in KVARN_BITS)
        raise BuildError(
            f"--backend {ORT_BACKEND}: kvarn: got k_bits={bits[0]},v_bits={bits[1]}, expected one of {known}"
        )
