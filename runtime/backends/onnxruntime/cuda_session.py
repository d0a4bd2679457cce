"""The packed decoder graph in ONNX Runtime on a GPU; cache and buffers are allocated and bound once, on the device."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from enginewright.plugins.libraries.cuda import ORT_BACKEND, ORT_COMPUTE, CudaLibrary, open_cuda_library
from enginewright.plugins.libraries.locate import LibraryError
from enginewright.runtime.artifact.decoder_graph import added_inputs
from enginewright.runtime.artifact.manifest import Graph, Manifest
from enginewright.runtime.backends.device.memory import DeviceBuffer, DeviceMemory
from enginewright.runtime.backends.device.packed_buffers import PackedBuffers
from enginewright.runtime.backends.graph_check import check_ops, check_signature
from enginewright.runtime.backends.onnxruntime.open_graph import open_graph
from enginewright.runtime.backends.onnxruntime.run_errors import RUN_ERRORS, run_error
from enginewright.runtime.backends.port_shapes import input_shapes, output_shapes
from enginewright.runtime.backends.session import Outputs, PackedStep, TilesAlone, policy_offers
from enginewright.runtime.backends.step_arrays import StepArrays
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import UnsupportedError

PROVIDER = "CUDAExecutionProvider"


class CudaSession(TilesAlone):
    """A Session whose graph, cache and tables are on a GPU; created by CudaBackend.

    A step's arrays go to the GPU through pinned memory. A step is in order on one stream: the copies in, the graph, and the
    copies out of the results that are wanted.

    library: our CUDA library.
    provider, device: ONNX Runtime's provider and device. Tests pass others than the GPU's, with a `library` that runs there.
    run_seconds: seconds spent inside the backend so far.
    offers: what a cache policy may ask of it.
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
        self._device = device
        self._place = root, graph.files[0].path
        memory = DeviceMemory(library)
        self.offers = policy_offers(manifest)
        self._session = _open(root, graph, library, memory, provider)
        check_signature(root, manifest, (each.name for each in self._session.get_inputs()))
        self._binding = self._session.io_binding()
        self._memory = memory  # after the session, so that it outlives the session, which works on its stream
        inputs, results = input_shapes(manifest, tables, capacity), output_shapes(manifest, capacity)
        self._buffers = PackedBuffers(memory, manifest, tables, inputs, results)
        self._arrays = StepArrays(added_inputs(manifest))
        self._bound: dict[str, int] = {}  # name of an array -> its length as it is bound
        self._bound_rows = 0  # of the outputs
        self._bind_all(graph)

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; logits are new only if the step reads them.

        Raises:
            ArtifactError: ONNX Runtime or CUDA could not run the graph.
        """
        start = time.perf_counter()
        try:
            self._buffers.write(step)
            rows = len(step.sample_rows)
            self._expect(step, rows)
            self._session.run_with_iobinding(self._binding)
            outputs = self._buffers.read(rows, reads_logits=step.reads_logits)
        except RUN_ERRORS as e:
            raise run_error(*self._place, e) from e
        self.run_seconds += time.perf_counter() - start
        return outputs

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor."""
        self._buffers.fill(port, entry, values)

    def _expect(self, step: PackedStep, rows: int) -> None:
        """Bind the step's inputs at their lengths, and `rows` rows of the outputs, which the next run writes."""
        for name, array in self._arrays.of(step).items():
            if self._bound.get(name) != len(array):
                self._bound[name] = len(array)
                self._bind(name, self._buffers.inputs[name], array.shape, is_input=True)
        if self._bound_rows == rows:
            return
        self._bound_rows = rows
        for name, buffer in self._buffers.results.items():
            self._bind(name, buffer, (rows, *buffer.shape[1:]), is_input=False)

    def _bind_all(self, graph: Graph) -> None:
        """Bind the buffers that never move."""
        buffers = self._buffers.inputs
        for spec in graph.inputs:
            if spec.name not in self._arrays.names:
                self._bind(spec.name, buffers[spec.name], is_input=True)
        for spec in graph.outputs:
            if spec.alias is not None:
                self._bind(spec.name, buffers[spec.alias], is_input=False)

    def _bind(self, name: str, buffer: DeviceBuffer, shape: tuple[int, ...] | None = None, *, is_input: bool) -> None:
        bind = self._binding.bind_input if is_input else self._binding.bind_output
        bind(name, self._device, 0, buffer.dtype, shape or buffer.shape, buffer.address)


def open_library() -> CudaLibrary:
    """Return our CUDA library, after checking that it runs on the current device.

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
    """Open the engine built for GPUs; the provider works on the stream of `memory`.

    Raises:
        UnsupportedError: the installed onnxruntime does not have the provider.
        ArtifactError: ONNX Runtime cannot load the engine.
    """
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
