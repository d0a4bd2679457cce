"""The decoder graph under ONNX Runtime, with every buffer allocated and bound once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from enginewright.plugins.library import LibraryError, ort_library
from enginewright.plugins.ops import OPS
from enginewright.runtime.artifact import Engine, Graph, Manifest, TensorSpec
from enginewright.runtime.errors import ArtifactError, UnsupportedError
from enginewright.runtime.host import compute_name
from enginewright.runtime.ort_errors import LOAD_ERRORS
from enginewright.runtime.session import Outputs, PackedStep
from enginewright.runtime.tiles import EXACT_TILES, Capacity, TileTables

BACKEND = "onnxruntime"
_PER_STEP = {"input_ids": "int64", "position_ids": "int64", "query_starts": "int32", "sample_rows": "int64"}
_OUTPUTS = {"logits": "float32", "greedy_tokens": "int64"}
_DRAFTS = {"clp_tokens": "int64", "clp_counts": "int64"}
_ALIGNMENT = 4096


class OrtSession:
    """A Session under ONNX Runtime's CPU provider.

    The tables and pools are bound by address once and for all; a step's arrays are copied into persistent buffers. Where
    their length changes, a value of the new length is bound, which is made once and kept.
    """

    def __init__(self, root: Path, manifest: Manifest, tables: TileTables, capacity: Capacity, *, threads: int) -> None:
        graph = manifest.graphs["decoder"]
        _check_ops(root, graph)
        self.run_seconds = 0.0
        self._session = _open(root, graph, threads)
        self._binding = self._session.io_binding()
        self._buffers = _allocate(manifest, tables, capacity)
        self._exact = [buffer for name, buffer in self._buffers.items() if name.endswith(".exact")]
        self._outputs = _allocate_outputs(manifest, graph, capacity)
        self._bound: dict[str, int] = {}  # lengths
        self._inputs: dict[tuple[str, int], ort.OrtValue] = {}
        self._results: dict[int, tuple[Outputs, dict[str, ort.OrtValue]]] = {}  # by number of rows
        self._written: dict[str, NDArray[np.generic]] = {}
        self._bind_all(root, graph)

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run."""
        for source, target in step.sink_copies:
            for exact in self._exact:
                exact[target, :, 0] = exact[source, :, 0]
        self._write("input_ids", step.input_ids)
        self._write("position_ids", step.position_ids)
        self._write("query_starts", step.query_starts)
        self._write("sample_rows", step.sample_rows)
        outputs = self._expect(len(step.sample_rows))
        start = time.perf_counter()
        self._session.run_with_iobinding(self._binding)
        self.run_seconds += time.perf_counter() - start
        return outputs

    def _write(self, name: str, array: NDArray[np.int64] | NDArray[np.int32]) -> None:
        if self._written.get(name) is array:  # a step that repeats the last one brings the same arrays
            return
        self._written[name] = array
        self._buffers[name][: len(array)] = array
        if self._bound.get(name) == len(array):
            return
        self._bound[name] = len(array)
        value = self._inputs.get((name, len(array)))
        if value is None:
            value = ort.OrtValue.ortvalue_from_numpy(self._buffers[name][: len(array)])
            self._inputs[name, len(array)] = value
        self._binding.bind_ortvalue_input(name, value)

    def _expect(self, rows: int) -> Outputs:
        """Return the outputs that the next run writes, `rows` rows of each."""
        if rows not in self._results:
            part = self._outputs[:rows]
            arrays = {"logits": part.logits, "greedy_tokens": part.greedy}
            if part.drafts is not None and part.draft_counts is not None:
                arrays |= {"clp_tokens": part.drafts, "clp_counts": part.draft_counts}
            self._results[rows] = part, {n: ort.OrtValue.ortvalue_from_numpy(array) for n, array in arrays.items()}
        outputs, values = self._results[rows]
        if self._bound.get("logits") != rows:
            self._bound["logits"] = rows
            for name, value in values.items():
                self._binding.bind_ortvalue_output(name, value)
        return outputs

    def _bind_all(self, root: Path, graph: Graph) -> None:
        """Bind what never moves, after checking that the graph asks for nothing this runtime does not know."""
        expected = {name: array.dtype.name for name, array in self._buffers.items()}
        for spec in graph.inputs:
            _check_spec(root, "input", spec, expected)
            if spec.name not in _PER_STEP:
                self._bind_input(spec.name, self._buffers[spec.name])
        missing = {i.name for i in self._session.get_inputs()} ^ {spec.name for spec in graph.inputs}
        if missing:
            names = ", ".join(sorted(missing))
            raise ArtifactError(f"{root}: manifest and decoder graph differ in inputs {names}; build the engine again")
        for name in sorted(_of_cache(self._buffers) - {spec.name for spec in graph.inputs}):
            raise ArtifactError(
                f"{root}: the decoder graph takes no {name!r}, which the cache has; build the engine again"
            )
        for spec in graph.outputs:
            known = (
                {**_OUTPUTS, **_DRAFTS} if spec.alias is None else {f"{spec.alias}.out": expected.get(spec.alias, "")}
            )
            _check_spec(root, "output", spec, known)
            if spec.alias is not None:
                self._bind_output(spec.name, self._buffers[spec.alias])
        needed = {**_OUTPUTS, **_DRAFTS} if self._outputs.drafts is not None else _OUTPUTS
        for name in sorted(needed.keys() - {spec.name for spec in graph.outputs}):
            raise ArtifactError(f"{root}: the decoder graph has no output {name!r}; build the engine again")

    def _bind_input(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _bind_output(self, name: str, array: NDArray[np.generic]) -> None:
        self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _allocate(manifest: Manifest, tables: TileTables, capacity: Capacity) -> dict[str, NDArray[np.generic]]:
    """Return every input's buffer at its full size; pages that nobody writes cost no memory."""
    buffers: dict[str, NDArray[np.generic]] = {
        "input_ids": np.zeros(capacity.step_tokens, np.int64),
        "position_ids": np.zeros(capacity.step_tokens, np.int64),
        "query_starts": np.zeros(capacity.rows + 1, np.int32),
        "sample_rows": np.zeros(capacity.logit_rows, np.int64),
        "slots": np.arange(capacity.rows, dtype=np.int32),
        "kv_lens": tables.kv_lens,
        "tile_table": tables.tile_table,
        "encoded_lens": tables.encoded_lens,
    }
    for index, (layer, tiles) in enumerate(zip(manifest.cache.layers, capacity.tiles, strict=True)):
        buffers[f"kv.{index}.tiles"] = _aligned_zeros(tiles, layer.tile_bytes)
        if layer.exact_bytes:
            exact = _aligned_zeros(capacity.rows * layer.kv_heads * EXACT_TILES, layer.exact_bytes)
            shape = (capacity.rows, layer.kv_heads, EXACT_TILES, layer.exact_bytes // 2)
            buffers[f"kv.{index}.exact"] = exact.view(np.float16).reshape(shape)
    return buffers


def _allocate_outputs(manifest: Manifest, graph: Graph, capacity: Capacity) -> Outputs:
    """Return the outputs at their full size; those of drafts where a step may decide several tokens."""
    rows = capacity.logit_rows
    outputs = Outputs(np.zeros((rows, manifest.model.vocab_size), np.float32), np.zeros(rows, np.int64))
    if capacity.width == 1:
        return outputs
    return replace(outputs, drafts=np.zeros((rows, capacity.width), np.int64), draft_counts=np.ones(rows, np.int64))


def _aligned_zeros(count: int, size: int) -> NDArray[np.int8]:
    """Zeros int8 [count, size] that begin at a page."""
    raw = np.zeros(count * size + _ALIGNMENT, np.int8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + count * size].reshape(count, size)


def _of_cache(names: Iterable[str]) -> set[str]:
    """Those that belong to one layer's cache."""
    return {name for name in names if name.startswith("kv.")}


def _check_spec(root: Path, kind: str, spec: TensorSpec, expected: dict[str, str]) -> None:
    where = f"{root}: decoder {kind} {spec.name!r}"
    if spec.name not in expected:
        if _of_cache([spec.name]):
            known = ", ".join(sorted(_of_cache(expected)))
            raise ArtifactError(f"{where}: not in the manifest's cache, which has {known}; build the engine again")
        known = ", ".join(sorted(expected))
        raise ArtifactError(f"{where}: unknown to this runtime, expected one of {known}; upgrade enginewright")
    if spec.dtype != expected[spec.name]:
        raise ArtifactError(f"{where}: got {spec.dtype}, expected {expected[spec.name]}; build the engine again")


def _check_ops(root: Path, graph: Graph) -> None:
    for name, version in graph.ops.items():
        if name not in OPS:
            known = ", ".join(OPS)
            raise ArtifactError(f"{root}: op {name!r} is unknown, expected one of {known}; upgrade enginewright")
        if OPS[name].version != version:
            raise ArtifactError(
                f"{root}: the graph uses {name} version {version}, this installation has version {OPS[name].version}; "
                f"build the engine again with this enginewright, or install the one that built it"
            )


def _open(root: Path, graph: Graph, threads: int) -> ort.InferenceSession:
    """Open the engine built for this machine, else the graph itself."""
    options = ort.SessionOptions()
    try:
        options.register_custom_ops_library(str(ort_library()))
    except LibraryError as e:
        raise UnsupportedError(str(e)) from e
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # one plan per shape, and a ragged batch has a new shape in every other step
    options.log_severity_level = 3
    path = weights = root / graph.files[0].path
    for engine in graph.engines:
        if engine.backend != BACKEND:
            continue
        if differs := _difference(engine):
            warnings.warn(
                f"{root / engine.files[0].path}: {differs}; running {graph.files[0].path} instead; "
                f"build the engine again on this machine for a faster start",
                stacklevel=2,
            )
            continue
        path = root / engine.files[0].path
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # done offline
        break
    # The graph comes as bytes, because an engine's weights lie beside the exported graph, in another folder.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.parent))
    try:
        return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS as e:
        raise ArtifactError(
            f"{path}: onnxruntime {ort.__version__} cannot load it ({e}); build the engine again"
        ) from e


def _difference(engine: Engine) -> str | None:
    """Return how the machine at hand differs from what `engine` was built for, or None."""
    if engine.version != ort.__version__:
        return f"built for onnxruntime {engine.version}, installed is {ort.__version__}"
    if engine.compute != compute_name():
        return f"built for {engine.compute}, this machine is {compute_name()}"
    for name, version in engine.plugins.items():
        if name not in OPS or OPS[name].version != version:
            return f"built with {name} version {version}, installed is {OPS[name].version if name in OPS else 'none'}"
    return None
