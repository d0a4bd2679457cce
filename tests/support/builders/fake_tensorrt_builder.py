"""A fake of the module `tensorrt` that records the calls of a build and answers as a test tells it to.

Tests with TensorRT-RTX check the real module's answers; the fake is for the cases that need a GPU.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx

__version__ = "11.1.0"


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class ILogger:
    """Like the bindings' base class, its __init__ has to be called."""

    Severity = Severity

    def __init__(self) -> None:
        self.is_made = True


class IProgressMonitor(ILogger): ...


class IStreamWriter(ILogger): ...


class Fake:
    """The fake module and its recorded calls; other fields are set by a test to choose the results.

    events: the calls in order.
    parsed: the model that the parser read.
    plan: the chunks of the plan.
    errors: the errors that the parser reports.
    during: called with the configuration while the engine is built.
    """

    __version__ = __version__
    ILogger, IProgressMonitor, IStreamWriter = ILogger, IProgressMonitor, IStreamWriter
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", ["UNUSED", "STRONGLY_TYPED"])
    LayerType = enum.Enum("LayerType", ["ATTENTION_INPUT", "MATRIX_MULTIPLY"])
    PreviewFeature = enum.Enum("PreviewFeature", ["ALIASED_PLUGIN_IO_10_03"])
    BuilderFlag = enum.Enum("BuilderFlag", ["WEIGHT_STREAMING", "STRIP_PLAN", "REFIT"])

    class IAttentionInputLayer:
        attention: Any

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.parsed: onnx.ModelProto | None = None
        self.plan: list[bytes] = [b"plan ", b"of an engine"]
        self.errors: list[tuple[str, str, str]] = []
        self.log: list[str] = []
        self.profile_index: Callable[[], int] = lambda: 0
        self.takes_timings = True
        self.loads_library = True
        self.during: Callable[[Any], None] = lambda config: None
        self.layers: list[Any] = []

    def Builder(self, logger: Any) -> Any:
        assert logger.is_made
        self.logger = logger
        return _Builder(self)

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        assert logger is self.logger
        return _Parser(self)

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(load_library=self._load, deregister_library=self._unload)

    def _load(self, path: str) -> object | None:
        self.events.append(("load", path))
        return "handle" if self.loads_library else None

    def _unload(self, handle: object) -> None:
        assert handle == "handle"
        self.events.append(("unload",))

    def complain(self) -> None:
        """Log what there is to say."""
        for message in self.log:
            self.logger.log(Severity.ERROR, message)
        self.logger.log(Severity.WARNING, "only a warning")


class _Parser:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    def parse_from_file(self, path: str) -> bool:
        self._fake.events.append(("parse",))
        self._fake.parsed = onnx.load(path)  # with its external data, which has to be found from there
        if self._fake.errors:
            self._fake.complain()
        return not self._fake.errors

    @property
    def num_errors(self) -> int:
        return len(self._fake.errors)

    def get_error(self, index: int) -> Any:
        node, operator, text = self._fake.errors[index]
        return SimpleNamespace(node_name=lambda: node, node_operator=lambda: operator, desc=lambda: text)


class _Builder:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    def create_network(self, flags: int) -> Any:
        self._fake.events.append(("network", flags))
        layers = self._fake.layers
        return SimpleNamespace(num_layers=len(layers), get_layer=lambda i: layers[i])

    def create_builder_config(self) -> Any:
        self._fake.config = _Config(self._fake)
        return self._fake.config

    def create_optimization_profile(self) -> Any:
        shapes: dict[str, Any] = {}
        return SimpleNamespace(shapes=shapes, set_shape=lambda name, *corners: shapes.update({name: corners}))

    def build_serialized_network_to_stream(self, network: Any, config: Any, writer: Any) -> bool:
        self._fake.events.append(("build",))
        self._fake.complain()
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        self._fake.during(config)
        wanted = monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        if not wanted:
            self._fake.events.append(("stopped",))
        return wanted and all(writer.write(chunk) == len(chunk) for chunk in self._fake.plan) and not self._fake.log


class _Config:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake
        self.flags: set[str] = set()
        self.features: dict[str, bool] = {}
        self.profiles: list[dict[str, Any]] = []
        self.builder_optimization_level: int | None = None
        self.timings: bytes | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def set_preview_feature(self, feature: Any, value: bool) -> None:
        self.features[feature.name] = value

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return self._fake.profile_index()

    def create_timing_cache(self, data: bytes) -> Any:
        return SimpleNamespace(data=data) if self._fake.takes_timings else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.timings = cache.data
        return True

    def get_timing_cache(self) -> Any:
        assert self.timings is not None
        return SimpleNamespace(serialize=lambda: self.timings + b"+measured")
