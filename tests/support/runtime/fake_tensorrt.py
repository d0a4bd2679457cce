"""TensorRT on the CPU: a module whose plans are ONNX graphs that ONNX Runtime runs on the addresses that were set.

It has the part of TensorRT's Python API that a session uses, over a FakeCuda, and refuses or fails where TensorRT would
refuse, crash or compute nonsense: shapes outside the profile, addresses that are missing, unaligned, freed or on the host,
caches that are not updated in place, another stream, a context that was changed after it had been captured.
"""

from __future__ import annotations

import enum
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tests.support.runtime.fake_cuda import ALIGNMENT, POISON, FakeCuda, Misuse

MAGIC = b"plan of a fake TensorRT\n"
DOMAIN = "enginewright"

DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT8 INT32 INT64")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
TensorLocation = enum.Enum("TensorLocation", "DEVICE HOST")
ExecutionContextAllocationStrategy = enum.Enum(
    "ExecutionContextAllocationStrategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
)
DynamicShapesKernelSpecializationStrategy = enum.Enum("DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE")
TYPES = {
    onnx.TensorProto.FLOAT: (DataType.FLOAT, np.float32),
    onnx.TensorProto.FLOAT16: (DataType.HALF, np.float16),
    onnx.TensorProto.BFLOAT16: (DataType.BF16, np.uint16),
    onnx.TensorProto.INT8: (DataType.INT8, np.int8),
    onnx.TensorProto.INT32: (DataType.INT32, np.int32),
    onnx.TensorProto.INT64: (DataType.INT64, np.int64),
}


def write_plan(path: Path, graph: Path, profiles: Sequence[dict[str, Any]], **options: Any) -> None:
    """Write a plan of the ONNX file `graph`.

    profiles: input -> [least, likeliest, largest]. options: aliases, output -> input that it updates; capturable: what
    contexts say of CUDA graphs; syncs: whether a run waits for the stream, which no graph can hold; workspace: bytes;
    host: tensors in host memory; stripped: whether it has no weights of its own.
    """
    about = {"graph": str(graph), "profiles": list(profiles), **options}
    path.write_bytes(MAGIC + json.dumps(about).encode())


class ILogger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    def __init__(self) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class Dims(tuple[int, ...]):
    pass


class IPluginRegistry:
    def __init__(self, log: ILogger) -> None:
        self._log = log
        self._libraries: list[str] = []

    def load_library(self, plugin_path: str) -> object | None:
        if not Path(plugin_path).is_file():
            self._log.log(ILogger.Severity.ERROR, f"cannot open {Path(plugin_path).name}")
            return None
        self._libraries.append(plugin_path)
        return object()


class Runtime:
    cuda: FakeCuda

    def __init__(self, logger: ILogger) -> None:
        assert isinstance(logger, ILogger)
        self._log = logger
        self._registry = IPluginRegistry(logger)

    def get_plugin_registry(self) -> IPluginRegistry:
        return self._registry

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        content = bytes(memoryview(serialized_engine))
        if not content.startswith(MAGIC):
            self._log.log(ILogger.Severity.ERROR, "the magic tag does not match")
            return None
        about = json.loads(content.removeprefix(MAGIC))
        model = onnx.load(about["graph"], load_external_data=False)
        if any(node.domain == DOMAIN for node in model.graph.node) and not self._registry._libraries:
            self._log.log(ILogger.Severity.ERROR, "a plugin creator is not registered")
            return None
        return ICudaEngine(self, model, about)


class ICudaEngine:
    def __init__(self, runtime: Runtime, model: onnx.ModelProto, about: dict[str, Any]) -> None:
        self._runtime = runtime
        self._cuda = runtime.cuda
        self._log = runtime._log
        self._about = about
        self._aliases: dict[str, str] = about.get("aliases", {})
        self._inputs = {value.name: value.type.tensor_type for value in model.graph.input}
        self._outputs = {value.name: value.type.tensor_type for value in model.graph.output}
        self._tensors = self._inputs | self._outputs
        self._session = self._open(Path(about["graph"]), runtime._registry._libraries)
        self._contexts: list[IExecutionContext] = []
        self._has_weights = not about.get("stripped")
        self._runs = 0
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(about["profiles"])
        self.device_memory_size_v2 = about.get("workspace", 4096)

    def _open(self, path: Path, libraries: list[str]) -> ort.InferenceSession:
        options = ort.SessionOptions()
        for library in libraries:
            options.register_custom_ops_library(library)
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return TYPES[self._tensors[name].elem_type][0]

    def get_tensor_location(self, name: str) -> Any:
        return TensorLocation.HOST if name in self._about.get("host", ()) else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(d.dim_value if d.HasField("dim_value") else -1 for d in self._tensors[name].shape.dim)

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return self._aliases.get(name)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        assert name in self._inputs
        return [Dims(shape) for shape in self._about["profiles"][profile_index][name]]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> IExecutionContext:
        config = strategy if isinstance(strategy, IRuntimeConfig) else IRuntimeConfig()
        allocation = config._allocation if config is strategy else strategy
        self._contexts.append(self._context_class(self, allocation))
        self._contexts[-1]._kernels = config.dynamic_shapes_kernel_specialization_strategy
        return self._contexts[-1]

    @property
    def _context_class(self) -> type[IExecutionContext]:
        return CapturableContext if "capturable" in self._about else IExecutionContext


class IRuntimeConfig:
    def __init__(self) -> None:
        self._allocation: Any = ExecutionContextAllocationStrategy.STATIC

    dynamic_shapes_kernel_specialization_strategy: Any = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self._allocation = strategy


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: ILogger) -> None:
        self._engine, self._log = engine, logger
        self._read = False

    def refit_cuda_engine(self) -> bool:
        self._engine._has_weights = self._read
        return self._read


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: ILogger) -> None:
        self._refitter, self._log = refitter, logger

    def refit_from_file(self, model: str) -> bool:
        self._refitter._read = Path(model).read_bytes() == Path(self._refitter._engine._about["graph"]).read_bytes()
        if not self._refitter._read:
            self._log.log(ILogger.Severity.ERROR, "weights of another graph")
        return self._refitter._read


class IExecutionContext:
    """Profile, shapes, addresses and workspace are its state; `_changes` counts what is done to them."""

    def __init__(self, engine: ICudaEngine, strategy: Any) -> None:
        self._engine = engine
        self._cuda = engine._cuda
        self._profile = 0
        self._profile_stream: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._workspace = None if strategy is ExecutionContextAllocationStrategy.USER_MANAGED else 0
        self._changes = 0
        self._prepared = -1  # changes at its last run that was not captured
        self._kernels: Any = None

    def _refuse(self, message: str) -> bool:
        self._engine._log.log(ILogger.Severity.ERROR, message)
        return False

    def set_device_memory(self, memory: int, size: int) -> None:
        if size < self._engine.device_memory_size_v2 or memory % ALIGNMENT:
            raise Misuse("the workspace is too small or not aligned")
        self._cuda.check(memory, size, device=True)
        self._workspace = memory
        self._changes += 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._refuse(f"no profile {profile_index}")
        self._profile, self._profile_stream = profile_index, stream_handle
        self._shapes = {}
        self._changes += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self._engine._inputs:
            return self._refuse(f"{name} is no input")
        least, _, most = self._engine._about["profiles"][self._profile][name]
        if len(shape) != len(most) or not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return self._refuse(f"{name}: {shape} is outside profile {self._profile}")
        self._shapes[name] = tuple(shape)
        self._changes += 1
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._tensors or memory % ALIGNMENT:
            return self._refuse(f"{name}: no such tensor, or an address that is not aligned")
        self._addresses[name] = memory
        self._changes += 1
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        shapes = self._check(stream_handle)
        if self._cuda.last.value:
            return self._refuse(f"{self._cuda.last.name} before the run")
        captured = self._cuda.is_capturing(stream_handle)
        if captured:
            if self._prepared != self._changes:
                return self._refuse("new shapes or addresses need a run before they can be captured")
            if self._engine._about.get("syncs"):
                self._cuda.cudaStreamSynchronize(stream_handle)
        else:
            self._prepared = self._changes
        addresses, changes = dict(self._addresses), self._changes

        def run() -> None:
            if captured and self._changes != changes:
                raise Misuse("a context was changed after a graph had been captured of it")
            self._run(shapes, addresses)

        self._cuda.start(stream_handle, run, *addresses.values(), self._workspace or 0)
        return True

    def _check(self, stream: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors, when everything is set as it has to be."""
        if not self._engine._has_weights:
            raise Misuse("an engine without weights is run")
        if self._workspace is None:
            raise Misuse("a context without memory is run")
        if self._profile_stream not in (None, stream):
            raise Misuse("a context is run on another stream than its profile was set on")
        sizes: dict[str, int] = {}
        for name, type in self._engine._inputs.items():
            if name not in self._shapes:
                raise Misuse(f"{name}: a run without its shape")
            for dim, size in zip(type.shape.dim, self._shapes[name], strict=True):
                if dim.dim_value not in (0, size) or (sizes.setdefault(dim.dim_param, size) != size and dim.dim_param):
                    raise Misuse(f"{name}: {size} where the graph or another input has another {dim.dim_param!r}")
        shapes = dict(self._shapes)
        for name, type in self._engine._outputs.items():
            alias = self._engine._aliases.get(name)
            if alias is not None:
                shapes[name] = shapes[alias]
                if self._addresses.get(name) != self._addresses.get(alias):
                    raise Misuse(f"{name}: not where {alias} is, which it updates")
            else:
                shapes[name] = tuple(d.dim_value or sizes[d.dim_param] for d in type.shape.dim)
        for name in self._engine._tensors:
            if name not in self._addresses:
                raise Misuse(f"{name}: a run without its address")
            self._check_memory(name, shapes[name], self._addresses[name])
        return shapes

    def _check_memory(self, name: str, shape: tuple[int, ...], address: int) -> int:
        size = int(np.prod(shape)) * np.dtype(TYPES[self._engine._tensors[name].elem_type][1]).itemsize
        self._cuda.check(address, size, device=True)
        return size

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        self._engine._runs += 1
        binding = self._engine._session.io_binding()
        for name, address in addresses.items():
            size = self._check_memory(name, shapes[name], address)
            is_input = name in self._engine._inputs
            if not is_input and name not in self._engine._aliases:
                self._cuda.cudaMemset(address, POISON, size)
            bind = binding.bind_input if is_input else binding.bind_output
            bind(name, "cpu", 0, TYPES[self._engine._tensors[name].elem_type][1], shapes[name], address)
        if self._workspace:
            self._cuda.cudaMemset(self._workspace, POISON, self._engine.device_memory_size_v2)
        self._engine._session.run_with_iobinding(binding)


class CapturableContext(IExecutionContext):
    """The execution context of TensorRT-RTX, which says whether it can be captured."""

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self._engine._about["capturable"])


def make_module(cuda: FakeCuda, name: str = "tensorrt", version: str = "11.1.0") -> types.ModuleType:
    """A module of the API on `cuda`."""
    module = types.ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    for each in (
        ILogger, DataType, TensorIOMode, TensorLocation, ExecutionContextAllocationStrategy, ICudaEngine, IExecutionContext,
        Refitter, OnnxParserRefitter,
    ):  # fmt: skip
        setattr(module, each.__name__, each)
    if name == "tensorrt_rtx":
        module.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    setattr(module, "Runtime", type("Runtime", (Runtime,), {"cuda": cuda}))  # noqa: B010
    return module
