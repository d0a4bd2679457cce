"""Tests that the fakes have the names and parameters of NVIDIA's modules, and that misuse of them fails."""

from __future__ import annotations

import importlib
import inspect
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from enginewright.runtime import ArtifactError, UnsupportedError
from enginewright.runtime.artifact import directory, manifest
from enginewright.runtime.backends.device.cuda_runtime import CudaRuntime, open_cuda_runtime
from enginewright.runtime.backends.tensorrt import plan
from tests.support.runtime import fake_tensorrt
from tests.support.runtime.fake_cuda import FakeCuda, Misuse
from tests.support.runtime.fake_tensorrt import make_module, write_plan


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def documented(function: Any) -> list[list[str]]:
    """Parameters of each overload, as the first lines of pybind's docstring have them."""
    lines = [line for line in (function.__doc__ or "").splitlines() if "->" in line and "(self" in line]
    found = []
    for line in lines:
        inside = re.sub(r"\[[^\]]*\]", "", line.partition("(")[2].rpartition(") ->")[0])
        found.append([part.partition(":")[0].strip() for part in inside.split(",") if ":" in part][1:])
    return found


FAKES = (
    "Runtime", "ICudaEngine", "IExecutionContext", "CapturableContext", "IPluginRegistry", "ILogger", "Refitter",
    "OnnxParserRefitter", "IRuntimeConfig",
)  # fmt: skip


@pytest.mark.rtx
@pytest.mark.parametrize("name", FAKES)
def test_names_and_parameters_are_those_of_tensorrt(name: str) -> None:
    """TensorRT-RTX has the same Python API, and imports without a GPU."""
    trt = importlib.import_module("tensorrt_rtx")
    fake = getattr(fake_tensorrt, name)
    real = getattr(trt, "IExecutionContext" if name == "CapturableContext" else name)
    methods = [each for each in dir(fake) if not each.startswith("_")]
    assert methods
    if name in ("Runtime", "Refitter", "OnnxParserRefitter"):
        methods.append("__init__")
    for method in methods:
        assert hasattr(real, method), method
        if inspect.isfunction(getattr(fake, method)):
            assert parameters(getattr(fake, method)) in documented(getattr(real, method)), method


@pytest.mark.rtx
def test_attributes_and_enumerations_are_those_of_tensorrt() -> None:
    trt = importlib.import_module("tensorrt_rtx")
    for attribute in ("num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"):
        assert hasattr(trt.ICudaEngine, attribute)
    strategies = ("ExecutionContextAllocationStrategy", "DynamicShapesKernelSpecializationStrategy")
    for name in ("DataType", "TensorIOMode", "TensorLocation", *strategies):
        assert set(getattr(fake_tensorrt, name).__members__) <= set(getattr(trt, name).__members__), name
    assert trt.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy.fset is not None
    assert set(fake_tensorrt.ILogger.Severity.__members__) == set(trt.ILogger.Severity.__members__)


@pytest.mark.rtx
def test_a_damaged_plan_is_none_for_tensorrt_too() -> None:
    """The session's own way to open a plan, with the real module, and no GPU."""
    trt = importlib.import_module("tensorrt_rtx")
    log = plan._open_log(trt)
    log.take()
    assert trt.Runtime(log).deserialize_cuda_engine(memoryview(b"\x00" * 4096)) is None
    assert "rror" in log.take() and log.take() == "it says nothing"


@pytest.mark.rtx
def test_the_real_tensorrt_opens_a_plan_as_far_as_it_can(tmp_path: Path) -> None:
    """The session's own code with the real module and a real plan; without a GPU TensorRT says that there is none."""
    trt = importlib.import_module("tensorrt_rtx")
    api = importlib.import_module("cuda.bindings.runtime")
    if api.cudaGetDeviceCount()[0] == api.cudaError_t.cudaSuccess:
        pytest.skip("needs a machine without a GPU")
    log = plan._open_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    network.mark_output(network.add_identity(network.add_input("x", trt.float32, (4,))).get_output(0))
    path = tmp_path / "plan"
    path.write_bytes(memoryview(builder.build_serialized_network(network, builder.create_builder_config())))
    files = (directory.describe_file(tmp_path, path),)
    engine = manifest.BuiltGraph(backend="tensorrt-rtx", version=trt.__version__, compute="sm_80+", files=files)
    graph = manifest.Graph(files=(), inputs=(), outputs=())
    message = r"plan: tensorrt_rtx \S+ cannot load it \(.*cudaError.*\); run `enginewright compile \S+ --backend tensorrt-rtx`"
    with pytest.raises(ArtifactError, match=message):
        plan.open_plan(tmp_path, graph, engine, CudaRuntime(FakeCuda((8, 6))))


@pytest.mark.rtx
def test_names_and_parameters_are_those_of_cuda() -> None:
    api = importlib.import_module("cuda.bindings.runtime")
    functions = [name for name in dir(FakeCuda) if re.match(r"cuda[A-Z]", name) and callable(getattr(FakeCuda, name))]
    functions.remove("cudaError_t")
    assert len(functions) > 15
    for name in functions:
        signature = (getattr(api, name).__doc__ or "").splitlines()[0]
        inside = signature.partition("(")[2].rpartition(")")[0]
        wanted = [part.partition(":")[0].split()[-1] for part in inside.split(",") if part.strip()]
        assert parameters(getattr(FakeCuda, name)) == wanted, name
    assert {each.name: each.value for each in FakeCuda.cudaError_t}.items() <= {
        each.name: each.value for each in api.cudaError_t
    }.items()
    assert api.cudaStreamNonBlocking == FakeCuda.cudaStreamNonBlocking
    for enumeration in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        assert vars(getattr(FakeCuda, enumeration)).keys() <= set(getattr(api, enumeration).__members__)
    assert int(api.cudaMemcpyKind.cudaMemcpyDefault) == FakeCuda.cudaMemcpyKind.cudaMemcpyDefault


@pytest.mark.rtx
def test_the_real_cuda_says_what_is_missing() -> None:
    """Handles are taken as numbers, and without a driver every call says so."""
    api = importlib.import_module("cuda.bindings.runtime")
    if api.cudaGetDeviceCount()[0] == api.cudaError_t.cudaSuccess:
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(
        UnsupportedError, match=r"^cuda: got no GPU that CUDA can use \(cudaError\w+: .*\), expected one"
    ):
        open_cuda_runtime("rtx")
    runtime = CudaRuntime.__new__(CudaRuntime)
    runtime._api, runtime._device = api, 0
    calls: list[Callable[[], Any]] = [
        runtime.enter_thread,
        runtime.compute_capability,
        lambda: runtime.allocate(8),
        lambda: runtime.allocate(8, host=True),
        lambda: runtime.free(8),
        lambda: runtime.free(8, host=True),
        runtime.free_bytes,
        runtime.create_stream,
        lambda: runtime.destroy_stream(8),
        lambda: runtime.synchronize(8),
        lambda: runtime.copy(8, 8, 8, 8),
        lambda: runtime.copy_pieces(8, 8, 8, 8, 8, 1, 8),
        lambda: runtime.begin_capture(8),
        lambda: runtime.end_capture(8),
        lambda: runtime.launch_graph(8, 8),
        lambda: runtime.destroy_graph(8),
    ]
    for call in calls:
        with pytest.raises(UnsupportedError, match=r"^cuda: \w+: got cudaError\w+: .*, expected success"):
            call()


# ---- misuse of the fakes: the graph adds `x` [N] to `held` [4], which it updates, and gives `sum` [N]


@pytest.fixture
def trt(tmp_path: Path) -> tuple[FakeCuda, ModuleType, Any]:
    """A device, the module, and an engine."""
    types = {"x": ["N"], "held": [4], "held.out": [4], "sum": ["N"]}
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in types.items()}
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=1),
        helper.make_node("Add", ["held", "total"], ["held.out"]),
        helper.make_node("Add", ["x", "x"], ["sum"]),
    ]
    graph = helper.make_graph(nodes, "g", [tensors["x"], tensors["held"]], [tensors["held.out"], tensors["sum"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "g.onnx")
    profile = {"x": [[1], [2], [3]], "held": [[4], [4], [4]]}
    write_plan(tmp_path / "plan", tmp_path / "g.onnx", [profile], aliases={"held.out": "held"})
    cuda = FakeCuda()
    module = make_module(cuda)

    class Log(module.ILogger):  # type: ignore[name-defined,misc]
        def log(self, severity: Any, msg: str) -> None:
            pass

    return cuda, module, module.Runtime(Log()).deserialize_cuda_engine((tmp_path / "plan").read_bytes())


class Session:
    """Everything set as it has to be; tests change one thing."""

    def __init__(self, trt: tuple[FakeCuda, ModuleType, Any]) -> None:
        self.cuda, module, self.engine = trt
        self.context = self.engine.create_execution_context(module.ExecutionContextAllocationStrategy.USER_MANAGED)
        _, self.stream = self.cuda.cudaStreamCreateWithFlags(1)
        self.at = {name: self.device(64) for name in ("x", "held", "sum")}
        self.workspace = self.device(4096)
        self.context.set_device_memory(self.workspace, 4096)
        assert self.context.set_optimization_profile_async(0, self.stream)
        assert self.context.set_input_shape("x", (2,)) and self.context.set_input_shape("held", (4,))
        for name, address in {**self.at, "held.out": self.at["held"]}.items():
            assert self.context.set_tensor_address(name, address)

    def device(self, size: int) -> int:
        _, address = self.cuda.cudaMalloc(size)
        assert address is not None
        self.cuda.cudaMemset(address, 0, size)
        return address

    def run(self) -> None:
        assert self.context.execute_async_v3(self.stream)
        self.cuda.cudaStreamSynchronize(self.stream)

    def held(self) -> list[float]:
        import ctypes

        return np.frombuffer(ctypes.string_at(self.at["held"], 16), np.float32).tolist()


def test_a_run_happens_when_it_is_waited_for(trt: tuple[FakeCuda, ModuleType, Any]) -> None:
    import ctypes

    session = Session(trt)
    ctypes.memmove(session.at["x"], np.array([1, 2], np.float32).tobytes(), 8)
    assert session.context.execute_async_v3(session.stream)
    assert session.held() == [0, 0, 0, 0]
    session.cuda.cudaStreamSynchronize(session.stream)
    assert session.held() == [3, 3, 3, 3]
    session.run()
    assert session.held() == [6, 6, 6, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.context.set_tensor_address("held.out", s.device(64)), "not where held is, which it updates"),
        (lambda s: s.context._addresses.pop("x"), "x: a run without its address"),
        (lambda s: s.context._shapes.pop("x"), "x: a run without its shape"),
        (lambda s: s.cuda.cudaFree(s.at["x"]), "bytes that are not allocated"),
        (lambda s: s.cuda.cudaFree(s.workspace), "bytes that are not allocated"),
        (lambda s: s.context.set_tensor_address("x", s.cuda.cudaMallocHost(64)[1]), "host memory where the device's"),
        (lambda s: s.context.set_tensor_address("sum", 256), "bytes that are not allocated"),
        (lambda s: setattr(s, "stream", s.cuda.cudaStreamCreateWithFlags(1)[1]), "on another stream"),
        (lambda s: setattr(s, "stream", 5), "on another stream"),
        (lambda s: setattr(s.context, "_workspace", None), "a context without memory"),
        (lambda s: setattr(s.engine, "_has_weights", False), "an engine without weights"),
    ],
)
def test_misuse_fails(change: Callable[[Session], Any], message: str, trt: tuple[FakeCuda, ModuleType, Any]) -> None:
    session = Session(trt)
    session.run()
    change(session)
    with pytest.raises(Misuse, match=message):
        session.run()


def test_what_tensorrt_refuses(trt: tuple[FakeCuda, ModuleType, Any]) -> None:
    session = Session(trt)
    assert not session.context.set_input_shape("x", (4,)), "outside the profile"
    assert not session.context.set_input_shape("sum", (2,)), "no input"
    assert not session.context.set_tensor_address("x", session.at["x"] + 8), "not aligned"
    assert not session.context.set_optimization_profile_async(1, session.stream), "no such profile"
    session.cuda.cudaMalloc(1 << 40)
    assert not session.context.execute_async_v3(session.stream), "an error that nobody has taken"
    assert session.cuda.cudaGetLastError()[0].name == "cudaErrorMemoryAllocation"
    assert session.context.execute_async_v3(session.stream)
    with pytest.raises(Misuse, match="too small"):
        session.context.set_device_memory(session.workspace, 100)


def test_graphs(trt: tuple[FakeCuda, ModuleType, Any]) -> None:
    session = Session(trt)
    cuda, stream = session.cuda, session.stream

    def capture() -> Any:
        cuda.cudaStreamBeginCapture(stream, 1)
        started = session.context.execute_async_v3(stream)
        status, graph = cuda.cudaStreamEndCapture(stream)
        assert status.name == "cudaSuccess"
        return started, graph

    assert capture()[0] is False, "new shapes need a run first"
    session.run()
    started, graph = capture()
    assert started
    _, handle = cuda.cudaGraphInstantiate(graph, 0)
    cuda.cudaGraphLaunch(handle, stream)
    cuda.cudaStreamSynchronize(stream)
    assert cuda.launches == 1
    session.context.set_input_shape("x", (1,))
    cuda.cudaGraphLaunch(handle, stream)
    with pytest.raises(Misuse, match="changed after a graph had been captured"):
        cuda.cudaStreamSynchronize(stream)


@pytest.mark.parametrize("wait", ["cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMalloc"])
def test_a_capture_cannot_wait(wait: str) -> None:
    cuda = FakeCuda()
    _, stream = cuda.cudaStreamCreateWithFlags(1)
    cuda.cudaStreamBeginCapture(stream, 1)
    status, *_ = getattr(cuda, wait)(*([] if wait == "cudaDeviceSynchronize" else [stream]))
    assert status.name == "cudaErrorStreamCaptureUnsupported"
    assert cuda.cudaStreamEndCapture(stream)[0].name == "cudaErrorStreamCaptureInvalidated"


def test_a_thread_has_its_own_current_device() -> None:
    cuda, said = FakeCuda(device=1), list[str]()
    _, stream = cuda.cudaStreamCreateWithFlags(1)

    def work() -> None:
        try:
            cuda.start(stream, lambda: None)
        except Misuse as e:
            said.append(str(e))
        cuda.cudaSetDevice(1)
        cuda.start(stream, lambda: None)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (
        said == [f"stream {stream} is another device's than this thread's"] and len(cuda.streams[stream].pending) == 1
    )


def test_memory_under_way_is_not_given_back() -> None:
    cuda = FakeCuda()
    _, stream = cuda.cudaStreamCreateWithFlags(1)
    (_, to), (_, source) = cuda.cudaMalloc(8), cuda.cudaMallocHost(8)
    assert to is not None and source is not None
    cuda.cudaMemcpyAsync(to, source, 8, 4, stream)
    with pytest.raises(Misuse, match="while something that uses it is under way"):
        cuda.cudaFree(to)
    with pytest.raises(Misuse, match="while something is under way"):
        cuda.cudaStreamDestroy(stream)
