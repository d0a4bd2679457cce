"""Builds engines for TensorRT on this machine's GPU, or for TensorRT-RTX ahead of time for any GPU that it supports.

A dense graph (`--plugins none`) has standard ops alone and goes to either. A packed graph has enginewright's own ops, which
become plugins, and goes to TensorRT alone. The rewritten graph lies next to the exported weights, which are not copied:
TensorRT maps their file.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import onnx_ir as ir
from onnx_ir.passes import common

from enginewright.builders.options import BackendOptions
from enginewright.builders.passes.fuse_split_qkv import SplitQkvPass
from enginewright.builders.supported_kernels import check_graph
from enginewright.builders.tensorrt.block_weights import BlockWeightsPass
from enginewright.builders.tensorrt.graph_file import data_path, move_rewritten, save_rewritten
from enginewright.builders.tensorrt.network import PlanBuilder, plugins_loaded
from enginewright.builders.tensorrt.plugin_nodes import PluginNodesPass
from enginewright.builders.tensorrt.profiles import ProfileShapes, plan_profiles
from enginewright.builders.tensorrt.python_module import PORTABLE, device_compute, open_module
from enginewright.plugins.libraries.locate import LibraryError
from enginewright.plugins.libraries.tensorrt import open_tensorrt_library
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import op_versions
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import BuiltGraph, File, Manifest
from enginewright.runtime.errors import BuildError

RTX = "tensorrt-rtx"


def build(root: Path, manifest: Manifest, backend: str, options: BackendOptions) -> Manifest:
    """Write engines/<name>.<backend>.plan of every graph, and the manifest that names them, atomically.

    An engine has two profiles, "decode" and "prefill". If the weights are left out of the plan, the engine's second file is
    the graph from which they are loaded.

    Raises:
        TargetError: TensorRT or its GPU is missing; the graphs themselves are fit for it.
        BuildError: a graph is not for this backend, or TensorRT does not take it.
    """
    models = {name: _read(root / graph.files[0].path, backend) for name, graph in manifest.graphs.items()}
    plans = {name: plan_profiles(manifest, graph, options.chunk) for name, graph in manifest.graphs.items()}
    trt = open_module(backend)
    compute = "+".join(options.compute) or PORTABLE if backend == RTX else device_compute()
    graphs = {}
    for name, graph in manifest.graphs.items():
        files, plugins = _build_graph(root, name, models.pop(name), plans[name], trt, backend, options)
        engine = BuiltGraph(backend=backend, version=trt.__version__, compute=compute, files=files, plugins=plugins)
        others = tuple(e for e in graph.engines if e.backend != backend)
        graphs[name] = dataclasses.replace(graph, engines=(*others, engine))
    built = dataclasses.replace(manifest, graphs=graphs)
    directory.save(built, root)
    return built


def rewrite(model: ir.Model) -> None:
    """Rewrite an exported graph for TensorRT's parser, in place."""
    passes = (
        SplitQkvPass(), BlockWeightsPass(), PluginNodesPass(),
        common.RemoveUnusedNodesPass(), common.TopologicalSortPass(),
    )  # fmt: skip
    ir.passes.Sequential(*passes)(model)


def _read(path: Path, backend: str) -> ir.Model:
    """Load the exported graph and make the checks that need no TensorRT."""
    model = ir.load(path)
    check_graph(model.graph, backend)
    return model


def _build_graph(
    root: Path,
    name: str,
    model: ir.Model,
    profiles: tuple[ProfileShapes, ...],
    trt: Any,
    backend: str,
    options: BackendOptions,
) -> tuple[tuple[File, ...], dict[str, int]]:
    """Build one graph; return the engine's files and the versions of its plugins."""
    engines, graphs = root / "engines", root / "graphs"
    engines.mkdir(exist_ok=True)
    target = engines / f"{name}.{backend}.plan"
    timing = None if backend == RTX else options.timing_cache or engines / f"{backend}.timing"
    rewrite(model)
    used = op_versions(node.op_type for node in model.graph if node.domain == DOMAIN)
    library = _open_library(used) if used else None
    with _scratch(graphs) as scratch:
        save_rewritten(model, scratch)
        with nullcontext() if library is None else plugins_loaded(trt, backend, library):
            builder = PlanBuilder(trt, backend, name)
            network = builder.parse(scratch)
            config = builder.configure(options, profiles, aliases=library is not None, timing_cache=timing)
            with _replacing(target) as file:
                builder.build(network, config, file)
            if timing is not None:
                with _replacing(timing) as file:
                    file.write(memoryview(config.get_timing_cache().serialize()))
        kept = move_rewritten(model, scratch, graphs / f"{name}.{backend}.onnx") if options.strip_weights else []
    return tuple(directory.describe_file(root, path) for path in (target, *kept)), used


def _open_library(used: dict[str, int]) -> Path:
    """The path of the plugin library, after a check that it has the ops `used` in these versions."""
    try:
        library = open_tensorrt_library()
        library.check_versions(used)
    except LibraryError as e:
        raise BuildError(str(e)) from e
    return library.path


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a path for a graph in `folder`, where its weights lie; the files written there are removed at the end."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".tensorrt-", suffix=".onnx")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        for path in (Path(name), data_path(Path(name))):
            path.unlink(missing_ok=True)


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `target` when the block ends without an error."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
