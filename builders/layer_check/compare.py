"""Compares the exported graph with a backend's version of it, layer by layer, to show where a difference begins.

Polygraphy runs both sides and collects their values. The exported graph runs under ONNX Runtime. The other side is a TensorRT
engine of the same graph with the residual stream marked as outputs; where there is no GPU, it is the rewritten graph that
TensorRT's parser would get, run under ONNX Runtime, too.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort  # type: ignore[import-untyped]

from enginewright.builders.layer_check.residual_stream import find_residual_stream
from enginewright.builders.tensorrt.build import rewrite
from enginewright.builders.tensorrt.graph_file import data_path, save_rewritten
from enginewright.builders.tensorrt.network import PlanBuilder
from enginewright.builders.tensorrt.python_module import device_compute, open_module
from enginewright.runtime.artifact.decoder_graph import INPUT_IDS, POSITION_IDS, SAMPLE_ROWS, inputs
from enginewright.runtime.artifact.manifest import Graph, Manifest
from enginewright.runtime.backends.onnxruntime.load_errors import LOAD_ERRORS
from enginewright.runtime.errors import BuildError, TargetError, UnsupportedError

TOKENS = 24
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The error of the residual stream after one layer; created by `compare_layers`.

    layer: the layer's index; -1 for the embeddings.
    max_error: largest absolute difference.
    relative: mean absolute difference divided by the mean magnitude.
    """

    layer: int
    max_error: float
    relative: float


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """The errors of all layers; created by `compare_layers`.

    compared: what the exported graph was compared with, in words.
    layers: the embeddings, then each layer in order.
    """

    compared: str
    layers: tuple[LayerError, ...]

    def first_beyond(self, tolerance: float) -> LayerError | None:
        """Return the first layer whose relative error exceeds `tolerance` or is not a number; None if there is none."""
        return next((each for each in self.layers if not each.relative <= tolerance), None)

    def table(self, tolerance: float) -> str:
        """Return the report as lines of text for a person."""
        first = self.first_beyond(tolerance)
        lines = [f"exported graph against {self.compared}", "after       max |error|  mean error / mean magnitude"]
        for each in self.layers:
            lines.append(
                f"{_name(each.layer):10}  {each.max_error:11.2e}  {each.relative:.2e}{'  <- first' if each is first else ''}"
            )
        if first is None:
            return "\n".join([*lines, f"all within {tolerance:.0e}"])
        return "\n".join([*lines, f"FAILED: beyond {tolerance:.0e} from here on: {_name(first.layer)}"])


def compare_layers(root: Path, manifest: Manifest) -> LayerReport:
    """Run one prompt of random tokens through the exported graph and through TensorRT's version, and compare the layers.

    Raises:
        UnsupportedError: the graph contains enginewright's own ops or a type that ONNX Runtime does not run on a CPU, or
            Polygraphy is not installed.
        BuildError: a graph does not run, or its residual stream is not found.
    """
    graph = manifest.graphs["decoder"]
    if not manifest.cache.is_dense:
        raise UnsupportedError(
            f"check --layers: got a {manifest.cache.kind} cache, expected a graph of standard ops, whose cache is dense; build with "
            "--plugins none"
        )
    if importlib.util.find_spec("polygraphy") is None:
        raise UnsupportedError(
            "check --layers: got no Python package polygraphy, which runs both sides; pip install 'enginewright[tensorrt]'"
        )
    feeds = _make_feeds(manifest, graph)
    with _graphs_with_stream(root / graph.files[0].path, len(manifest.cache.layers)) as (exported, rewritten, names):
        try:
            trt, compute = open_module("tensorrt"), device_compute()
        except TargetError:
            compared, other = "the graph that TensorRT gets, under ONNX Runtime", _onnxruntime_runner(rewritten)
        else:
            compared, other = f"TensorRT {trt.__version__} on {compute}", _tensorrt_runner(trt, rewritten, feeds)
        expected, got = _run([_onnxruntime_runner(exported), other], feeds)
    layers = [_measure(i - 1, expected[name], got[name]) for i, name in enumerate(names)]
    return LayerReport(compared=compared, layers=tuple(layers))


def _make_feeds(manifest: Manifest, graph: Graph) -> dict[str, np.ndarray]:
    """Inputs for one prompt of random tokens, with empty caches."""
    tokens = min(TOKENS, manifest.limits.max_context)
    rng = np.random.default_rng(0)
    sizes = {"B": 1, "T": tokens, "N": tokens}
    axes = {port.name: port.axes for port in inputs(manifest)}
    feeds = {}
    for spec in graph.inputs:
        if spec.dtype == "bfloat16":
            raise UnsupportedError(
                f"check --layers: got {spec.dtype}, expected float16 or float32, which ONNX Runtime runs on a CPU"
            )
        shape = [
            size if isinstance(size, int) else sizes[str(axis)]
            for size, axis in zip(spec.shape, axes[spec.name], strict=True)
        ]
        feeds[spec.name] = np.zeros(shape, spec.dtype)
    feeds[INPUT_IDS.name][:] = rng.integers(0, manifest.model.vocab_size, (1, tokens))
    feeds[POSITION_IDS.name][:] = feeds[SAMPLE_ROWS.name][:] = np.arange(tokens)
    return feeds


@contextmanager
def _graphs_with_stream(source: Path, layers: int) -> Iterator[tuple[Path, Path, list[str]]]:
    """Yield the exported graph, the rewritten graph and the names of the residual stream, which both have as outputs.

    The files are removed when the block ends.
    """
    with tempfile.NamedTemporaryFile(dir=source.parent, prefix=".layers-", suffix=".onnx") as file:
        exported, rewritten = Path(file.name), Path(f"{file.name}.rewritten.onnx")
        try:
            _save_with_stream(source, exported, layers, change=_compute_exactly)
            yield exported, rewritten, _save_with_stream(source, rewritten, layers, change=rewrite)
        finally:
            for path in (rewritten, data_path(rewritten)):
                path.unlink(missing_ok=True)


def _save_with_stream(source: Path, target: Path, layers: int, *, change: Callable[[ir.Model], None]) -> list[str]:
    model = ir.load(source)
    stream = find_residual_stream(model.graph, layers)
    model.graph.outputs.extend(stream)
    names = [str(value.name) for value in stream]
    change(model)
    save_rewritten(model, target)
    return names


def _compute_exactly(model: ir.Model) -> None:
    """Make products with quantised weights read their inputs unrounded; ONNX Runtime may otherwise round them to 8 bits."""
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes.add(ir.AttrInt64("accuracy_level", 1))


def _onnxruntime_runner(path: Path) -> Any:
    from polygraphy.backend.onnxrt import OnnxrtRunner

    def load() -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    return OnnxrtRunner(load, name=path.name)


def _tensorrt_runner(trt: Any, path: Path, feeds: Arrays) -> Any:
    """A runner of an engine of the graph at `path` for the shapes of `feeds`, built on this machine's GPU."""
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, Profile, TrtRunner

    def load() -> tuple[Any, Any]:
        builder = PlanBuilder(trt, "tensorrt", "decoder")
        return builder.builder, builder.parse(path)

    profile = Profile()
    for name, array in feeds.items():
        profile.add(name, array.shape, array.shape, array.shape)
    return TrtRunner(EngineFromNetwork(load, config=CreateConfig(profiles=[profile])), name="tensorrt")


def _run(runners: list[Any], feeds: Arrays) -> list[Arrays]:
    """The outputs of each runner for `feeds`."""
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            results = Comparator.run(runners, data_loader=[dict(feeds)])
        except (PolygraphyException, *LOAD_ERRORS) as e:
            raise BuildError(f"check --layers: got a graph that does not run ({e}); build the engine again") from e
    return [results[runner.name][0] for runner in runners]


def _name(layer: int) -> str:
    return "embeddings" if layer < 0 else f"layer {layer}"


def _measure(layer: int, expected: np.ndarray, got: np.ndarray) -> LayerError:
    wanted, found = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    difference, magnitude = np.abs(found - wanted), float(np.abs(wanted).mean())
    mean = float(difference.mean())
    relative = mean / magnitude if magnitude else (0.0 if mean == 0 else math.inf)
    return LayerError(layer=layer, max_error=float(difference.max()), relative=relative)
