"""Opens a TensorRT plan: checks that it was built for this machine and library, and reads its profiles."""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from enginewright.plugins.libraries.locate import LibraryError
from enginewright.plugins.libraries.tensorrt import EXTRAS, MODULES, open_tensorrt_library
from enginewright.runtime.artifact.manifest import BuiltGraph, Graph
from enginewright.runtime.backends.device.cuda_runtime import CudaRuntime
from enginewright.runtime.errors import ArtifactError, UnsupportedError

Shape = tuple[int, ...]
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
}


@dataclass(frozen=True)
class Profile:
    """A range of shapes that a plan is prepared for; created by TensorRTPlan.

    index: its number in the plan.
    ranges: name of an input -> its smallest and its largest shape.
    """

    index: int
    ranges: dict[str, tuple[Shape, Shape]]

    def refused(self, shapes: Mapping[str, Shape]) -> list[str]:
        """Return the names of the inputs whose shapes this profile does not admit."""
        return [name for name in self.ranges if name in shapes and not _admits(self.ranges[name], shapes[name])]


def _admits(limits: tuple[Shape, Shape], shape: Shape) -> bool:
    least, most = limits
    return len(shape) == len(most) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))


class TensorRTPlan:
    """A deserialised plan; created by `open_plan`.

    path: the plan's file.
    trt: the Python module of TensorRT or TensorRT-RTX.
    engine: TensorRT's own engine.
    inputs: names of the plan's inputs; TensorRT may have removed some of the graph's.
    outputs: names of the plan's outputs.
    profiles: its profiles, in order.
    """

    def __init__(self, path: Path, trt: Any, engine: Any, runtime: Any, log: Any) -> None:
        self.path = path
        self.trt = trt
        self.engine = engine
        self._held = runtime, log  # so that they live as long as the engine, which does not keep them itself
        self._log = log
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self.profiles = [self._profile(i) for i in range(engine.num_optimization_profiles)]

    def find(self, shapes: Mapping[str, Shape]) -> Profile | None:
        """Return the first profile that admits the shapes of all inputs; None where there is none."""
        return next((profile for profile in self.profiles if not profile.refused(shapes)), None)

    def describe_refusal(self, shapes: Mapping[str, Shape]) -> str:
        """Return in words which input the profiles do not admit, and the shapes that each profile admits for it.

        That is an input that every profile refuses. If there is none, it is one that the profile with the fewest refusals
        refuses.
        """
        refused = [profile.refused(shapes) for profile in self.profiles]
        name = next((n for n in refused[0] if all(n in each for each in refused)), min(refused, key=len)[0])
        known = " or ".join(
            f"{_write_shape(least)} to {_write_shape(most)} (profile {profile.index})"
            for profile in self.profiles
            for least, most in [profile.ranges[name]]
        )
        return f"{self.path}: {name}: got {_write_shape(shapes[name])}, expected {known}"

    def failure(self, what: str) -> UnsupportedError:
        """Return the error for a call that TensorRT refused, with the messages of TensorRT's log."""
        return UnsupportedError(
            f"{self.path}: TensorRT {what} ({self._log.take()}); look at its log and at the GPU's memory"
        )

    def check(self, root: Path, graph: Graph, backend: str) -> None:
        """Raise ArtifactError where the plan's inputs and outputs are not those that the manifest gives the graph."""
        again = f"run {_command(root, backend)}"
        specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
        if unknown := [name for name in (*self.inputs, *self.outputs) if name not in specs]:
            raise ArtifactError(f"{self.path}: got a tensor {unknown[0]!r} that the manifest does not have; {again}")
        if missing := [spec.name for spec in graph.outputs if spec.name not in self.outputs]:
            raise ArtifactError(f"{self.path}: got no output {missing[0]!r}, which the manifest has; {again}")
        for name in (*self.inputs, *self.outputs):
            dtype = self.engine.get_tensor_dtype(name).name
            if _DTYPES.get(dtype, dtype) != specs[name].dtype:
                raise ArtifactError(
                    f"{self.path}: {name}: got {_DTYPES.get(dtype, dtype)}, expected {specs[name].dtype}; {again}"
                )
            if self.engine.get_tensor_location(name) != self.trt.TensorLocation.DEVICE:
                raise ArtifactError(f"{self.path}: {name}: got a tensor in host memory, expected the device's; {again}")
            alias = self.engine.get_aliased_input_tensor(name)
            if alias and alias != specs[name].alias:
                raise ArtifactError(
                    f"{self.path}: {name}: got an update of {alias}, expected one of {specs[name].alias}; {again}"
                )

    def _profile(self, index: int) -> Profile:
        return Profile(index, {name: self._range(name, index) for name in self.inputs})

    def _range(self, name: str, index: int) -> tuple[Shape, Shape]:
        shape = tuple(self.engine.get_tensor_shape(name))
        if -1 not in shape:
            return shape, shape
        least, _, most = self.engine.get_tensor_profile_shape(name, index)
        return tuple(least), tuple(most)


def open_module(backend: str) -> Any:
    """Import and return the backend's Python module.

    Raises:
        UnsupportedError: it is not installed.
    """
    name = MODULES[backend]
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UnsupportedError(
            f"{backend}: got no Python package {name} ({e}), expected the one that runs its engines; "
            f"pip install 'enginewright[{EXTRAS[backend]}]'"
        ) from e


def open_plan(root: Path, graph: Graph, engine: BuiltGraph, cuda: CudaRuntime) -> TensorRTPlan:
    """Deserialise the plan of `engine` on the current device.

    Raises:
        ArtifactError: it was built for another version, GPU or plugin library, or is damaged.
        UnsupportedError: the plugin library is missing, or TensorRT does not load it.
    """
    trt, path = open_module(engine.backend), root / engine.files[0].path
    _check_build(root, engine, path, trt, cuda)
    log = _open_log(trt)
    log.take()
    try:
        runtime = trt.Runtime(log)
    except (TypeError, RuntimeError) as e:  # the bindings raise these for a null pointer
        raise UnsupportedError(
            f"{path}: TensorRT does not start ({log.take()}); check that the driver is new enough for it"
        ) from e
    if engine.plugins:
        _load_plugins(root, engine, path, runtime, log)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        opened = runtime.deserialize_cuda_engine(content)
    if opened is None:
        raise ArtifactError(
            f"{path}: {MODULES[engine.backend]} {trt.__version__} cannot load it ({log.take()}); "
            f"run {_command(root, engine.backend)}"
        )
    if len(engine.files) > 1:
        _load_weights(root, engine, path, trt, opened, log)
    plan = TensorRTPlan(path, trt, opened, runtime, log)
    plan.check(root, graph, engine.backend)
    return plan


def _check_build(root: Path, engine: BuiltGraph, path: Path, trt: Any, cuda: CudaRuntime) -> None:
    again = f"run {_command(root, engine.backend)} on this machine"
    if engine.version != trt.__version__:
        raise ArtifactError(
            f"{path}: built for {MODULES[engine.backend]} {engine.version}, installed is {trt.__version__}; {again}, or "
            "install the version it was built for"
        )
    device = cuda.compute_capability()
    if not _runs_on(engine.compute, device):
        raise ArtifactError(f"{path}: built for {engine.compute}, this machine's GPU is {device}; {again}")


def _runs_on(compute: str, device: str) -> bool:
    """Whether a plan for `compute` runs on `device`.

    compute: such as "sm_90", "sm_86+sm_89" for both, or "sm_80+" for sm_80 and later ones.
    """
    if compute.endswith("+"):
        return int(device.removeprefix("sm_")) >= int(compute.removeprefix("sm_").removesuffix("+"))
    return device in compute.split("+")


def _load_plugins(root: Path, engine: BuiltGraph, path: Path, runtime: Any, log: Any) -> None:
    try:
        library = open_tensorrt_library()
    except LibraryError as e:
        raise UnsupportedError(str(e)) from e
    try:
        library.check_versions(engine.plugins)
    except LibraryError as e:
        raise ArtifactError(f"{path}: {e}; run {_command(root, engine.backend)}") from e
    if runtime.get_plugin_registry().load_library(str(library.path)) is None:
        raise UnsupportedError(
            f"{library.path}: TensorRT does not load it ({log.take()}); build the library again for this TensorRT"
        )


def _load_weights(root: Path, engine: BuiltGraph, path: Path, trt: Any, opened: Any, log: Any) -> None:
    """Give a plan that was built without weights the weights of the graph that is its second file."""
    graph = root / engine.files[1].path
    refitter = trt.Refitter(opened, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise ArtifactError(
            f"{path}: {MODULES[engine.backend]} {trt.__version__} cannot load the weights of {graph} ({log.take()}); "
            f"run {_command(root, engine.backend)}"
        )


@cache
def _open_log(trt: Any) -> Any:
    """Return the only logger of `trt`, which keeps the first logger that it gets for good.

    Its method `take` returns the errors since the last call.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self._errors.append(message.strip())

        def take(self) -> str:
            errors, self._errors = self._errors, []
            return "; ".join(errors) or "it says nothing"

    return Log()


def _command(root: Path, backend: str) -> str:
    return f"`enginewright compile {root} --backend {backend}`"


def _write_shape(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
