"""The decoder graph under ONNX Runtime's CUDA provider: cache and buffers on the device, allocated and bound once."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from enginewright.plugins.cuda import ORT_BACKEND, ORT_COMPUTE, CudaLibrary, open_cuda_library
from enginewright.plugins.library import LibraryError
from enginewright.runtime.artifact import Graph, Manifest
from enginewright.runtime.device_memory import DeviceBuffer, DeviceMemory
from enginewright.runtime.errors import RequestError, UnsupportedError
from enginewright.runtime.ort_graph import (
    PER_STEP,
    TABLES,
    check_ops,
    check_signature,
    input_shapes,
    open_graph,
    output_shapes,
)
from enginewright.runtime.session import Outputs, PackedStep
from enginewright.runtime.tiles import Capacity, TileTables

PROVIDER = "CUDAExecutionProvider"


class CudaSession:
    """A Session whose graph, cache and tables are on a GPU; a step's arrays go there through pinned memory.

    Everything of a step is in order on one stream: copies in, the graph, copies of what was asked for out.
    provider, device: of ONNX Runtime; others than the GPU's are for tests, with a `library` that runs there.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        tables: TileTables,
        capacity: Capacity,
        *,
        library: CudaLibrary,
        provider: str = PROVIDER,
        device: str = "cuda",
    ) -> None:
        graph = manifest.graphs["decoder"]
        check_ops(root, graph)
        self.run_seconds = 0.0
        self._library = library
        self._device = device
        memory = DeviceMemory(library)
        self._session = _open(root, graph, library, memory, provider)
        self._binding = self._session.io_binding()
        self._memory = memory  # behind the session, which goes first when all of this goes: it works on the stream
        self._tables = tables
        self._uploaded_changes = -1  # of the tile table
        shapes, results = input_shapes(manifest, tables, capacity), output_shapes(manifest, capacity)
        try:
            self._buffers = {name: self._memory.buffer(*spec) for name, spec in shapes.items()}
            self._results = {name: self._memory.buffer(*spec) for name, spec in results.items()}
        except MemoryError as e:
            needed = sum(math.prod(shape) * dtype.itemsize for shape, dtype in [*shapes.values(), *results.values()])
            raise RequestError(f"load: {e}; cache and buffers take {needed / 2**20:.0f} MiB in all") from e
        self._staged = {name: self._memory.pinned(*shapes[name]) for name in (*PER_STEP, *TABLES, "slots")}
        self._read = {name: self._memory.pinned(*spec) for name, spec in results.items()}
        self._exact = [buffer for name, buffer in self._buffers.items() if name.endswith(".exact")]
        self._bound: dict[str, int] = {}  # lengths
        self._bind_all(root, graph)

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; the logits are old ones unless the step reads them."""
        start = time.perf_counter()
        for source, target in step.sink_copies:
            for exact in self._exact:
                self._copy_sink(exact, source, target)
        for name in PER_STEP:
            self._write(name, getattr(step, name))
        self._upload_tables()
        rows = len(step.sample_rows)
        self._expect(rows)
        self._session.run_with_iobinding(self._binding)
        outputs = {name: array[:rows] for name, array in self._read.items()}
        for name, array in outputs.items():
            if name != "logits" or step.reads_logits:
                self._memory.download(array, self._results[name])
        self._memory.synchronize()
        self.run_seconds += time.perf_counter() - start
        return Outputs(*outputs.values())

    def _copy_sink(self, exact: DeviceBuffer, source: int, target: int) -> None:
        """Copy the first exact tile of each KV head from one row to another."""
        _, heads, tiles, size = exact.shape
        tile = size * exact.dtype.itemsize
        head, row = tiles * tile, heads * tiles * tile
        at = exact.address
        self._library.copy_pieces(at + target * row, head, at + source * row, head, tile, heads, self._memory.stream)

    def _write(self, name: str, array: NDArray[Any]) -> None:
        self._upload(name, array)
        if self._bound.get(name) != len(array):
            self._bound[name] = len(array)
            self._bind(name, self._buffers[name], (len(array),), is_input=True)

    def _upload_tables(self) -> None:
        self._upload("kv_lens", self._tables.kv_lens)
        self._upload("encoded_lens", self._tables.encoded_lens)
        if self._uploaded_changes != self._tables.tile_changes:  # large, and seldom changes
            self._uploaded_changes = self._tables.tile_changes
            self._upload("tile_table", self._tables.tile_table)

    def _upload(self, name: str, array: NDArray[Any]) -> None:
        staged = self._staged[name][: len(array)]
        staged[...] = array
        self._memory.upload(self._buffers[name], staged)

    def _expect(self, rows: int) -> None:
        """Bind the outputs that the next run writes, `rows` rows of each."""
        if self._bound.get("logits") == rows:
            return
        self._bound["logits"] = rows
        for name, buffer in self._results.items():
            self._bind(name, buffer, (rows, *buffer.shape[1:]), is_input=False)

    def _bind_all(self, root: Path, graph: Graph) -> None:
        """Bind what never moves, after checking that the graph asks for nothing this runtime does not know."""
        types = {name: buffer.dtype.name for name, buffer in self._buffers.items()}
        check_signature(root, graph, self._session, types, drafts="clp_tokens" in self._results)
        for spec in graph.inputs:
            if spec.name not in PER_STEP:
                self._bind(spec.name, self._buffers[spec.name], is_input=True)
        for spec in graph.outputs:
            if spec.alias is not None:
                self._bind(spec.name, self._buffers[spec.alias], is_input=False)
        self._upload("slots", np.arange(len(self._staged["slots"]), dtype=np.int32))

    def _bind(self, name: str, buffer: DeviceBuffer, shape: tuple[int, ...] | None = None, *, is_input: bool) -> None:
        bind = self._binding.bind_input if is_input else self._binding.bind_output
        bind(name, self._device, 0, buffer.dtype, shape or buffer.shape, buffer.address)


def open_library() -> CudaLibrary:
    """The library, on a device that it runs on.

    Raises:
        UnsupportedError: it was not built, or the driver or the device is too old.
    """
    try:
        library = open_cuda_library()
        library.check_device()
    except LibraryError as e:
        raise UnsupportedError(str(e)) from e
    return library


def _open(root: Path, graph: Graph, library: CudaLibrary, memory: DeviceMemory, provider: str) -> ort.InferenceSession:
    """Open the engine built for GPUs; the provider works on the stream of `memory`."""
    if provider not in ort.get_available_providers():
        raise UnsupportedError(
            f"{root}: the engine is for onnxruntime's {provider}, and the installed onnxruntime {ort.__version__} has "
            f"{', '.join(ort.get_available_providers())}; pip install onnxruntime-gpu in its place"
        )
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library.path))
    options.log_severity_level = 3
    settings = {"user_compute_stream": str(memory.stream)} if provider == PROVIDER else {}
    return open_graph(
        root, graph, options, [(provider, settings)], backend=ORT_BACKEND, compute=ORT_COMPUTE, optimized=False
    )
