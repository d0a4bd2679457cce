"""The decoder graph under ONNX Runtime's CUDA provider: cache and buffers on the device, allocated and bound once."""

from __future__ import annotations

import time
from pathlib import Path

import onnxruntime as ort  # type: ignore[import-untyped]

from enginewright.plugins.libraries.cuda import ORT_BACKEND, ORT_COMPUTE, CudaLibrary, open_cuda_library
from enginewright.plugins.libraries.locate import LibraryError
from enginewright.runtime.artifact.decoder_graph import PER_STEP
from enginewright.runtime.artifact.manifest import Graph, Manifest
from enginewright.runtime.backends.device.memory import DeviceBuffer, DeviceMemory
from enginewright.runtime.backends.device.packed_buffers import PackedBuffers
from enginewright.runtime.backends.graph_check import check_ops, check_signature, input_shapes, output_shapes
from enginewright.runtime.backends.onnxruntime.open_graph import open_graph
from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import UnsupportedError

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
        self._device = device
        memory = DeviceMemory(library)
        self._session = _open(root, graph, library, memory, provider)
        self._binding = self._session.io_binding()
        self._memory = memory  # behind the session, which goes first when all of this goes: it works on the stream
        inputs, results = input_shapes(manifest, tables, capacity), output_shapes(manifest, capacity)
        self._buffers = PackedBuffers(memory, tables, inputs, results)
        self._bound: dict[str, int] = {}  # lengths
        self._bind_all(root, graph)

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; the logits are old ones unless the step reads them."""
        start = time.perf_counter()
        self._buffers.write(step)
        rows = len(step.sample_rows)
        self._expect(step, rows)
        self._session.run_with_iobinding(self._binding)
        outputs = self._buffers.read(rows, reads_logits=step.reads_logits)
        self.run_seconds += time.perf_counter() - start
        return outputs

    def _expect(self, step: PackedStep, rows: int) -> None:
        """Bind as much of the step's inputs as it has, and of the outputs the `rows` rows that the next run writes."""
        for name in PER_STEP:
            length = len(getattr(step, name))
            if self._bound.get(name) != length:
                self._bound[name] = length
                self._bind(name, self._buffers.inputs[name], (length,), is_input=True)
        if self._bound.get("logits") == rows:
            return
        self._bound["logits"] = rows
        for name, buffer in self._buffers.results.items():
            self._bind(name, buffer, (rows, *buffer.shape[1:]), is_input=False)

    def _bind_all(self, root: Path, graph: Graph) -> None:
        """Bind what never moves, after checking that the graph asks for nothing this runtime does not know."""
        buffers = self._buffers.inputs
        types = {name: buffer.dtype.name for name, buffer in buffers.items()}
        taken = [each.name for each in self._session.get_inputs()]
        check_signature(root, graph, taken, types, drafts="clp_tokens" in self._buffers.results)
        for spec in graph.inputs:
            if spec.name not in PER_STEP:
                self._bind(spec.name, buffers[spec.name], is_input=True)
        for spec in graph.outputs:
            if spec.alias is not None:
                self._bind(spec.name, buffers[spec.alias], is_input=False)

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
