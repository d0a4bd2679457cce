"""The packed decoder graph in TensorRT; cache and buffers are on the device, and decoding launches CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import SPARE, Axis, Port, inputs
from enginewright.runtime.artifact.manifest import Graph, Manifest
from enginewright.runtime.backends.device.cuda_runtime import CudaRuntime
from enginewright.runtime.backends.device.memory import DeviceMemory
from enginewright.runtime.backends.device.packed_buffers import PackedBuffers
from enginewright.runtime.backends.device.padded_buffers import PaddedBuffers
from enginewright.runtime.backends.graph_check import check_ops, check_signature
from enginewright.runtime.backends.port_shapes import Shapes, input_shapes, output_shapes
from enginewright.runtime.backends.session import Outputs, PackedStep, TilesAlone, policy_offers
from enginewright.runtime.backends.tensorrt.contexts import Contexts, padded_sizes
from enginewright.runtime.backends.tensorrt.plan import Shape, TensorRTPlan
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import RequestError


class TensorRTSession(TilesAlone):
    """A Session whose graph is a TensorRT plan; created by TensorRTBackend.

    A step of few tokens is filled up to one of a few sizes; each size is captured once as a CUDA graph. Where the plan's
    profiles leave no room for the spare tiles that this needs, steps are not filled up, and every size has its own graph.

    captures: False runs everything without CUDA graphs; for tests.
    run_seconds: seconds spent inside the backend so far.
    offers: what a cache policy may ask of it.

    Raises:
        RequestError: no profile admits the largest step, or there is too little memory.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        tables: TileTables,
        capacity: Capacity,
        *,
        plan: TensorRTPlan,
        cuda: CudaRuntime,
        captures: bool = True,
    ) -> None:
        graph = manifest.graphs["decoder"]
        check_ops(root, graph)
        check_signature(root, manifest, (spec.name for spec in graph.inputs))
        self.run_seconds = 0.0
        self.offers = policy_offers(manifest)
        self._plan = plan
        self._cuda = cuda
        self._per_step = [port for port in inputs(manifest) if port.lives == "step" and port.name in plan.inputs]
        taken, results = input_shapes(manifest, tables, capacity), output_shapes(manifest, capacity)
        spared = input_shapes(manifest, tables, capacity, spare=SPARE)
        self._check_capacity(taken, capacity)
        pads = plan.find(self._largest_shapes(spared, capacity)) is not None
        memory = DeviceMemory(cuda)
        self._buffers: PackedBuffers = (
            PaddedBuffers(memory, manifest, tables, spared, results, capacity)
            if pads
            else PackedBuffers(memory, manifest, tables, taken, results)
        )
        most = capacity.rows * capacity.width
        self._sizes = padded_sizes(most) if pads else list(range(1, most + 1))
        self.contexts = Contexts(plan, cuda, memory, _addresses(graph, plan, self._buffers), captures=captures)
        self._fixed = {name: self._buffers.inputs[name].shape for name in plan.inputs}

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; logits are new only if the step reads them."""
        start = time.perf_counter()
        self._cuda.enter_thread()
        size = next((each for each in self._sizes if each >= len(step.input_ids)), None)
        if size is not None and self._write_padded(step, size):
            self.contexts.replay(size, self._shapes(size, size, len(step.query_starts)))
        else:
            self._buffers.write(step)
            self.contexts.run(self._shapes(len(step.input_ids), len(step.sample_rows), len(step.query_starts)))
        outputs = self._buffers.read(len(step.sample_rows), reads_logits=step.reads_logits)
        self.run_seconds += time.perf_counter() - start
        return outputs

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor."""
        self._cuda.enter_thread()
        self._buffers.fill(port, entry, values)

    def _write_padded(self, step: PackedStep, size: int) -> bool:
        """Start the copies of the step, filled up to `size` tokens and samples.

        Return False, and do nothing, where that is not possible.
        """
        if isinstance(self._buffers, PaddedBuffers):
            return self._buffers.write_padded(step, size)
        if len(step.sample_rows) != size:
            return False
        self._buffers.write(step)
        return True

    def _shapes(self, tokens: int, samples: int, starts: int) -> dict[str, Shape]:
        return self._fixed | _step_shapes(self._per_step, tokens, samples, starts)

    def _largest_shapes(self, taken: Shapes, capacity: Capacity) -> dict[str, Shape]:
        """Return the shapes of the largest step."""
        fixed = {name: taken[name][0] for name in self._plan.inputs}
        tokens = capacity.step_tokens
        samples = min(tokens, capacity.logit_rows)
        return fixed | _step_shapes(self._per_step, tokens, samples, capacity.rows + 1)

    def _check_capacity(self, taken: Shapes, capacity: Capacity) -> None:
        """Raise RequestError where no profile admits the largest step."""
        shapes = self._largest_shapes(taken, capacity)
        if self._plan.find(shapes) is None:
            raise RequestError(
                f"load: {self._plan.describe_refusal(shapes)}; pass a smaller prefill_chunk, max_batch or cache_tokens, or "
                "build an engine with larger limits"
            )


def _step_shapes(ports: Iterable[Port], tokens: int, samples: int, starts: int) -> dict[str, Shape]:
    """Return the shape of every input that a step of so many tokens and samples writes; starts: the rows and 1."""
    sizes: dict[Axis, int] = {"T": tokens, "N": samples, "B1": starts, "B": starts - 1}
    return {port.name: port.shape(sizes) for port in ports}


def _addresses(graph: Graph, plan: TensorRTPlan, buffers: PackedBuffers) -> dict[str, int]:
    """Return the address of every tensor of the plan; an output that updates an input has the input's address."""
    addresses = {name: buffers.inputs[name].address for name in plan.inputs}
    for spec in graph.outputs:
        buffer = buffers.results[spec.name] if spec.alias is None else buffers.inputs[spec.alias]
        addresses[spec.name] = buffer.address
    return addresses
