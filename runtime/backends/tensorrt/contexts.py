"""Runs a plan through TensorRT's Python API: one context for each profile, and CUDA graphs for shapes that come often."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

from enginewright.runtime.backends.device.cuda_runtime import CudaRuntime
from enginewright.runtime.backends.device.memory import DeviceMemory
from enginewright.runtime.backends.tensorrt.plan import Profile, Shape, TensorRTPlan
from enginewright.runtime.errors import UnsupportedError

ALIGNMENT = 256
"""Bytes of which every address that TensorRT takes must be a multiple."""


class Context:
    """An execution context of one profile; created by Contexts.

    Addresses and shapes stay as they are until others are set.

    plan: the plan that it runs.
    stream: the stream of `memory`, on which it runs.
    context: TensorRT's own context.
    workspace: address of memory for TensorRT's intermediate results; contexts on one stream share it.
    is_settled: whether its shapes are set only once.

    Raises:
        UnsupportedError: TensorRT refuses to make the context.
    """

    def __init__(
        self, plan: TensorRTPlan, profile: Profile, memory: DeviceMemory, workspace: int, *, is_settled: bool = False
    ) -> None:
        self.plan = plan
        self.stream = memory.stream
        self.context = _create(plan, is_settled)
        if self.context is None:
            raise plan.failure("made no execution context")
        if size := plan.engine.device_memory_size_v2:
            self.context.set_device_memory(workspace, size)
        if not self.context.set_optimization_profile_async(profile.index, self.stream):
            raise plan.failure(f"does not take profile {profile.index}")
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, Shape] = {}

    def bind(self, addresses: Mapping[str, int]) -> None:
        """From now on, read and write the tensors at these addresses."""
        for name, address in addresses.items():
            if self._addresses.get(name) == address:
                continue
            assert address % ALIGNMENT == 0, name
            if not self.context.set_tensor_address(name, address):
                raise self.plan.failure(f"does not take an address for {name}")
            self._addresses[name] = address

    def reshape(self, shapes: Mapping[str, Shape]) -> None:
        """From now on, take inputs of these shapes."""
        for name, shape in shapes.items():
            if self._shapes.get(name) == shape:
                continue
            if not self.context.set_input_shape(name, shape):
                raise self.plan.failure(f"does not take {name} of shape {list(shape)}")
            self._shapes[name] = shape

    def run(self) -> None:
        """Start a run on the stream."""
        if not self.context.execute_async_v3(self.stream):
            raise self.plan.failure("could not run the engine")


def _create(plan: TensorRTPlan, is_settled: bool) -> Any:
    """Return a context of TensorRT's own, which is given its memory by us."""
    strategy = plan.trt.ExecutionContextAllocationStrategy.USER_MANAGED
    kernels = getattr(plan.trt, "DynamicShapesKernelSpecializationStrategy", None)  # only TensorRT-RTX has it
    if kernels is None or not is_settled:
        return plan.engine.create_execution_context(strategy)
    # by default it compiles kernels for new shapes in the background; a graph would keep the slower ones used until then
    config = plan.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
    return plan.engine.create_execution_context(config)


class Replay:
    """Repeats runs of a context whose shapes and addresses stay the same; created by Contexts.

    The first run is also captured as a CUDA graph, and later runs launch the graph. A context belongs to one graph, because
    a change of the context would change the graph.

    launches: number of launches of the graph so far.
    """

    def __init__(self, context: Context, cuda: CudaRuntime) -> None:
        self._context = context
        self._cuda = cuda
        self._graph: int | None = None
        self.launches = 0

    def run(self, *, captures: bool) -> str | None:
        """Start a run; capture it as well, if `captures` is set and there is no graph yet.

        Return the reason where the run cannot be captured, otherwise None.
        """
        if self._graph is not None:
            self._cuda.launch_graph(self._graph, self._context.stream)
            self.launches += 1
            return None
        self._context.run()  # TensorRT prepares for new shapes in a run that is not captured
        return self._capture() if captures else None

    def _capture(self) -> str | None:
        capturable = getattr(self._context.context, "is_stream_capturable", None)  # only TensorRT-RTX has it
        if capturable is not None and not capturable(self._context.stream):
            return "TensorRT-RTX says so"
        try:
            self._graph = self._record()
        except UnsupportedError as e:
            return str(e)
        weakref.finalize(self, self._cuda.destroy_graph, self._graph)
        return None

    def _record(self) -> int:
        failure = None
        self._cuda.begin_capture(self._context.stream)
        try:
            self._context.run()
        except UnsupportedError as e:
            failure = e
        try:
            graph = self._cuda.end_capture(self._context.stream)
        except UnsupportedError as e:
            raise failure or e from None
        if failure is not None:
            self._cuda.destroy_graph(graph)
            raise failure
        return graph


class Contexts:
    """The contexts of a plan on the stream of `memory`; created by a session or graph.

    There is one for each profile, and one for each set of shapes that is replayed.

    addresses: addresses of the tensors that never move.
    replays: the replayed runs, by the key that is passed to `replay`.
    captures: whether replayed runs are captured as CUDA graphs.
    """

    def __init__(
        self,
        plan: TensorRTPlan,
        cuda: CudaRuntime,
        memory: DeviceMemory,
        addresses: Mapping[str, int],
        *,
        captures: bool = True,
    ) -> None:
        self.plan = plan
        self.replays: dict[int, Replay] = {}
        self._cuda = cuda
        self._memory = memory
        self._addresses = addresses
        self._captures = captures
        self._workspace = memory.buffer((plan.engine.device_memory_size_v2,), "int8").address
        self._contexts: dict[int, Context] = {}

    def run(self, shapes: Mapping[str, Shape], moving: Mapping[str, int] | None = None) -> None:
        """Start a run on inputs of these shapes.

        moving: addresses of the tensors that move from run to run.

        Raises:
            UnsupportedError: no profile admits the shapes.
        """
        profile = self._profile(shapes)
        if profile.index not in self._contexts:
            self._contexts[profile.index] = self._open(profile)
        context = self._contexts[profile.index]
        context.bind(moving or {})
        context.reshape(shapes)
        context.run()

    def replay(self, key: int, shapes: Mapping[str, Shape], moving: Mapping[str, int] | None = None) -> None:
        """Start a run as `run` does, for shapes and addresses that are always the same for the same `key`."""
        if key not in self.replays:
            context = self._open(self._profile(shapes), is_settled=True)
            context.bind(moving or {})
            context.reshape(shapes)
            self.replays[key] = Replay(context, self._cuda)
        reason = self.replays[key].run(captures=self._captures)
        if reason is not None:
            self._stop_capturing(reason)

    def _profile(self, shapes: Mapping[str, Shape]) -> Profile:
        profile = self.plan.find(shapes)
        if profile is None:
            refusal = self.plan.describe_refusal(shapes)
            raise UnsupportedError(f"{refusal}; build an engine with larger limits, or ask for less at once")
        return profile

    def _open(self, profile: Profile, *, is_settled: bool = False) -> Context:
        context = Context(self.plan, profile, self._memory, self._workspace, is_settled=is_settled)
        context.bind(self._addresses)
        return context

    def _stop_capturing(self, reason: str) -> None:
        self._captures = False
        warnings.warn(
            f"{self.plan.path}: its runs cannot be captured as CUDA graphs ({reason}), so each is started kernel by kernel; "
            "this is said once",
            stacklevel=2,
        )


def padded_sizes(most: int) -> list[int]:
    """Return the sizes that steps are padded to: the powers of two below `most`, and `most` itself."""
    return [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]
