"""Turns a rewritten graph and its options into TensorRT's objects: network, configuration, plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from enginewright.builders.options import BackendOptions
from enginewright.builders.tensorrt.profiles import ProfileShapes
from enginewright.builders.tensorrt.python_module import CallbackErrors, open_logger, open_progress, open_writer
from enginewright.plugins.libraries.tensorrt import MODULES
from enginewright.plugins.ops.registry import OPS
from enginewright.runtime.errors import BuildError

FLAGS = {"weight_streaming": "WEIGHT_STREAMING", "strip_weights": "STRIP_PLAN", "refit": "REFIT"}


class PlanBuilder:
    """Turns one ONNX file into a plan; created for one build of one graph.

    trt: the backend's Python module.
    where: the graph's name, with which messages begin.
    builder: TensorRT's own builder.
    """

    def __init__(self, trt: Any, backend: str, where: str) -> None:
        self._trt, self._backend, self._where = trt, backend, where
        self._logger = open_logger(trt)
        self._logger.errors.clear()
        try:
            self.builder = trt.Builder(self._logger)
        except (TypeError, RuntimeError) as e:  # the bindings' errors for a null pointer
            raise self._error("cannot begin a build", self._reason() or str(e), "install a driver that fits it") from e

    def parse(self, path: Path) -> Any:
        """Return the strongly typed network of the ONNX file at `path`; the weights stay in their file until the build."""
        trt = self._trt
        network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(path)):
            raise self._error("does not take the graph", self._parser_errors(parser), "export the model again")
        for layer in map(network.get_layer, range(network.num_layers)):
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer
                layer.attention.decomposable = True  # there is no fused kernel for float32 and for odd head sizes
        return network

    def configure(
        self, options: BackendOptions, profiles: Sequence[ProfileShapes], *, aliases: bool, timing_cache: Path | None
    ) -> Any:
        """Return the configuration of a build.

        aliases: whether a plugin's output shares its input's buffer.
        timing_cache: the file of TensorRT's measurements to start from; None: no timing cache.
        """
        trt, config = self._trt, self.builder.create_builder_config()
        for field, flag in FLAGS.items():
            if getattr(options, field):
                config.set_flag(getattr(trt.BuilderFlag, flag))
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if aliases:
            config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        if options.compute:
            config.num_compute_capabilities = len(options.compute)
            for i, name in enumerate(options.compute):
                config.set_compute_capability(getattr(trt.ComputeCapability, name.replace("_", "").upper()), i)
        for profile in profiles:
            if config.add_optimization_profile(self.make_profile(profile)) < 0:
                what = f"does not take the {profile.name} profile"
                raise self._error(what, self._reason(), "report it with the manifest")
        if timing_cache is not None:
            self._take_timings(config, timing_cache)
        return config

    def build(self, network: Any, config: Any, file: BinaryIO) -> None:
        """Write the plan to `file`."""
        errors = CallbackErrors()
        config.progress_monitor = progress = open_progress(self._trt, errors)
        writer = open_writer(self._trt, file, errors)
        try:
            done = self.builder.build_serialized_network_to_stream(network, config, writer)
        finally:
            progress.close()
        errors.release()
        if not done:
            raise self._error(
                "cannot build the engine", self._reason(), "follow its reason, which concerns the graph or the GPU"
            )

    def make_profile(self, profile: ProfileShapes) -> Any:
        """Return `profile` as a profile of TensorRT."""
        made = self.builder.create_optimization_profile()
        for name, shapes in profile.shapes.items():
            made.set_shape(name, *shapes)
        return made

    def _take_timings(self, config: Any, path: Path) -> None:
        cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise self._error(
                f"does not take the timing cache {path}", self._reason() or "of another version or GPU", "delete it"
            )

    def _parser_errors(self, parser: Any) -> str:
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        named = [f"node {e.node_name()!r} of {e.node_operator()}: {e.desc()}" for e in found if e.node_operator()]
        reports = named or [e.desc() for e in found]
        ours = tuple(f"{op}: " for op in OPS)  # the beginning of a plugin's message when it cannot be made
        plugins = [message for message in self._logger.errors if message.startswith(ours)]
        return "; ".join([*reports, *plugins]) or self._reason()

    def _reason(self) -> str:
        return "; ".join(self._logger.errors[:3])

    def _error(self, what: str, reason: str, fix: str) -> BuildError:
        name = f"{self._backend} {self._trt.__version__}"
        return BuildError(f"{self._where}: {name} {what} ({reason or 'it gave no reason'}); {fix}")


@contextmanager
def plugins_loaded(trt: Any, backend: str, path: Path) -> Iterator[None]:
    """Keep the creators of the plugin library at `path` in TensorRT's registry while the block runs."""
    registry = trt.get_plugin_registry()
    handle = registry.load_library(str(path))
    if handle is None:
        reason = "; ".join(open_logger(trt).errors[:3]) or "it gave no reason"
        raise BuildError(f"{path}: {MODULES[backend]} {trt.__version__} cannot load it ({reason}); build it again")
    try:
        yield
    finally:
        registry.deregister_library(handle)
