"""Tests of `--backend tensorrt` with a fake TensorRT: the calls it gets, the handling of its answers, the files on disk."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from enginewright import builders
from enginewright.builders.options import BackendOptions
from enginewright.builders.tensorrt import build as builder
from enginewright.builders.tensorrt.python_module import MODULES, device_compute, open_module
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from enginewright.plugins.libraries.locate import LibraryError
from enginewright.plugins.libraries.tensorrt import TensorRTLibrary
from enginewright.plugins.ops.registry import GPU_OPS, op_versions
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.decoder_graph import SPARE
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.port_shapes import input_shapes
from enginewright.runtime.cache.capacity import plan_capacity
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.errors import BuildError, TargetError
from tests.support.builders.fake_tensorrt_builder import Fake
from tests.support.exporters.fixtures import checkpoint_once, exported_once

PLAN = "engines/decoder.tensorrt.plan"
LIBRARY = Path("/lib/libenginewright_trt.so")


def make(family: str, tmp_path_factory: pytest.TempPathFactory, **recipe: Any) -> Path:
    """An engine directory of the family that no backend has built yet."""
    model = checkpoint_once(tmp_path_factory, family, num_hidden_layers=2)
    return exported_once(tmp_path_factory, model, Recipe(max_batch=3, max_context=300, **recipe))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("qwen3", tmp_path_factory, dtype="float16")


@pytest.fixture(scope="module")
def packed_int4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = {"weights": parse_weights("int4"), "apply": (parse_method("kvarn"),)}
    return make("qwen3", tmp_path_factory, dtype="bfloat16", **recipe)


@pytest.fixture(scope="module")
def packed_zero_points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("qwen3", tmp_path_factory, dtype="float16", weights=parse_weights("int4:symmetric=false"))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("qwen3", tmp_path_factory, dtype="float16", plugins="none", weights=parse_weights("int4"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Stands for TensorRT, a GPU and the plugin library in a build."""
    made = Fake()
    monkeypatch.setitem(sys.modules, "tensorrt", made)  # type: ignore[arg-type]
    monkeypatch.setattr(builder, "device_compute", lambda: "sm_90")
    library = TensorRTLibrary(path=LIBRARY, version="1", op_versions=op_versions(GPU_OPS))
    monkeypatch.setattr(builder, "open_tensorrt_library", lambda: library)
    return made


def build(source: Path, place: Path, **options: Any) -> tuple[Path, Manifest]:
    """Build a copy of `source` in `place`."""
    root = Path(shutil.copytree(source, place / "engine"))
    return root, builders.build(root, directory.load(root), "tensorrt", BackendOptions(**options))


def listing(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def check_as_plugins(model: onnx.ModelProto) -> None:
    """Run ONNX's checker under another domain, because the schemas of our own domain do not fit a plugin's nodes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for item in (*copy.graph.node, *copy.opset_import):
        item.domain = item.domain.replace("enginewright", "plugins")
    onnx.checker.check_model(copy)


class TestPacked:
    def test_the_engine_says_what_it_depends_on(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        root, manifest = build(packed, tmp_path)
        assert directory.load(root) == manifest
        (engine,) = manifest.graphs["decoder"].engines
        assert (engine.backend, engine.version, engine.compute) == ("tensorrt", "11.1.0", "sm_90")
        assert engine.plugins == {"GreedySample": 1, "PagedAttention": 1, "SplitQkv": 1}
        assert [file.path for file in engine.files] == [PLAN]
        assert (root / PLAN).read_bytes() == b"plan of an engine"
        assert listing(root) - listing(packed) == {PLAN, "engines/tensorrt.timing"}

    def test_in_this_order(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        build(packed, tmp_path)
        strongly_typed = 1 << int(fake.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        load = ("load", "/lib/libenginewright_trt.so")
        assert fake.events == [load, ("network", strongly_typed), ("parse",), ("build",), ("unload",)]
        assert fake.config.features == {"ALIASED_PLUGIN_IO_10_03": True}
        assert fake.config.flags == set() and fake.config.builder_optimization_level is None

    @pytest.mark.parametrize(
        "source",
        ["packed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("packed_int4", "packed_zero_points"))],
    )
    def test_the_parser_gets_plugins_and_standard_ops(
        self, source: str, fake: Fake, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        build(request.getfixturevalue(source), tmp_path)
        model = fake.parsed
        assert model is not None
        check_as_plugins(model)
        assert {node.domain for node in model.graph.node} == {"", "enginewright"}
        for node in model.graph.node:
            assert node.domain == "enginewright" or onnx.defs.has(node.op_type), node.op_type
            if not node.domain:
                continue
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert (values["plugin_version"], values["plugin_namespace"]) == (b"1", b"enginewright")
            assert "" not in node.input and values["present"].bit_count() == len(node.input)
        attention = [node for node in model.graph.node if node.op_type in ("PagedAttention", "KVarNAttention")]
        assert len(attention) == 2
        if source != "packed":
            codes = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT4}
            assert len(codes) == 9 and not any(t.data_type == onnx.TensorProto.UINT8 for t in model.graph.initializer)

    @pytest.mark.slow
    def test_profiles(self, packed_int4: Path, fake: Fake, tmp_path: Path) -> None:
        _, manifest = build(packed_int4, tmp_path, prefill_chunk=200)
        decode, prefill = fake.config.profiles
        specs = {spec.name: spec for spec in manifest.graphs["decoder"].inputs}
        assert set(decode) == set(prefill) == set(specs)
        assert decode["input_ids"] == ((1,), (3,), (3,)) and prefill["input_ids"] == ((1,), (131,), (131,))
        assert decode["query_starts"] == ((2,), (4,), (4,)) and decode["sample_rows"] == ((1,), (3,), (3,))
        assert decode["tile_table"] == ((2, 1, 2, 1), (2, 3, 2, 3), (2, 3, 2, 3))
        assert decode["kv.0.exact"] == ((1, 2, 2, 8192), (4, 2, 2, 8192), (4, 2, 2, 8192))
        assert decode["kv.0.tiles"] == ((2, 4032), (7, 4032), (7, 4032))
        for shapes in (decode, prefill):
            for name, corners in shapes.items():
                sizes = np.array(corners)
                assert (np.diff(sizes, axis=0) >= 0).all(), name
                fixed = [i for i, size in enumerate(specs[name].shape) if isinstance(size, int)]
                assert (sizes[:, fixed] == [specs[name].shape[i] for i in fixed]).all(), name

    def test_an_engine_is_replaced_and_others_stay(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        root, first = build(packed, tmp_path)
        files = first.graphs["decoder"].files
        other = dataclasses.replace(first.graphs["decoder"].engines[0], backend="other", files=files)
        graph = dataclasses.replace(first.graphs["decoder"], engines=(*first.graphs["decoder"].engines, other))
        fake.plan = [b"another plan"]
        second = builders.build(root, dataclasses.replace(first, graphs={"decoder": graph}), "tensorrt")
        assert [engine.backend for engine in second.graphs["decoder"].engines] == ["other", "tensorrt"]
        assert (root / PLAN).read_bytes() == b"another plan" and directory.load(root) == second


class TestOptions:
    def test_flags(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        build(packed, tmp_path, weight_streaming=True, refit=True, optimization_level=5)
        assert fake.config.flags == {"WEIGHT_STREAMING", "REFIT"} and fake.config.builder_optimization_level == 5

    def test_timings_are_kept_and_used_again(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        root, manifest = build(packed, tmp_path)
        assert fake.config.timings == b"" and (root / "engines/tensorrt.timing").read_bytes() == b"+measured"
        builders.build(root, manifest, "tensorrt")
        assert fake.config.timings == b"+measured"
        mine = tmp_path / "timings"
        mine.write_bytes(b"mine")
        builders.build(root, manifest, "tensorrt", BackendOptions(timing_cache=mine))
        assert mine.read_bytes() == b"mine+measured"
        assert (root / "engines/tensorrt.timing").read_bytes() == b"+measured+measured"

    @pytest.mark.slow
    def test_a_stripped_plan_brings_the_graph_it_is_refitted_from(
        self, dense: Path, fake: Fake, tmp_path: Path
    ) -> None:
        root, manifest = build(dense, tmp_path, strip_weights=True)
        assert fake.config.flags == {"STRIP_PLAN"} and fake.config.features == {}
        (engine,) = manifest.graphs["decoder"].engines
        graph = "graphs/decoder.tensorrt.onnx"
        assert [file.path for file in engine.files] == [PLAN, graph, f"{graph}.data"]
        assert listing(root) - listing(dense) == {PLAN, graph, f"{graph}.data", "engines/tensorrt.timing"}
        kept = onnx.load(str(root / graph))  # with its external data
        assert fake.parsed is not None
        assert {t.name: t.raw_data for t in kept.graph.initializer if t.raw_data} == {
            t.name: t.raw_data for t in fake.parsed.graph.initializer if t.raw_data
        }

    @pytest.mark.slow
    def test_attention_may_be_decomposed(self, dense: Path, fake: Fake, tmp_path: Path) -> None:
        attention = SimpleNamespace(decomposable=False)

        class Layer:
            def __init__(self, kind: Any) -> None:
                self.type, self.attention = kind, attention

        other = Layer(fake.LayerType.MATRIX_MULTIPLY)
        fake.layers = [other, Layer(fake.LayerType.ATTENTION_INPUT)]
        build(dense, tmp_path)
        assert attention.decomposable is True and type(other) is Layer
        assert isinstance(fake.layers[1], fake.IAttentionInputLayer)
        assert ("load", "/lib/libenginewright_trt.so") not in fake.events, "a dense graph needs no plugins"


def fails(source: Path, place: Path, error: type[BaseException], match: str, **options: Any) -> None:
    """Check that the build raises and leaves the directory unchanged."""
    root = Path(shutil.copytree(source, place / "engine"))
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(error, match=match):
        builders.build(root, directory.load(root), "tensorrt", BackendOptions(**options))
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


class TestFailures:
    def test_of_the_parser(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        fake.errors = [("node_7", "PagedAttention", "no creator"), ("", "", "gave up")]
        match = r"decoder: tensorrt 11.1.0 does not take the graph \(node 'node_7' of PagedAttention: no creator\)"
        fails(packed, tmp_path, BuildError, match)
        assert fake.events[-1] == ("unload",)

    def test_of_the_builder(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        fake.log = ["Error Code 1: out of workspace"]
        match = r"tensorrt 11.1.0 cannot build the engine \(Error Code 1: out of workspace\); "
        fails(packed, tmp_path, BuildError, match)

    def test_of_a_profile(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        fake.profile_index = lambda: -1
        fails(packed, tmp_path, BuildError, r"does not take the decode profile \(it gave no reason\)")

    def test_of_a_timing_cache(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        fake.takes_timings = False
        fails(packed, tmp_path, BuildError, r"does not take the timing cache .*tensorrt.timing .*; delete it")

    def test_of_the_library(self, packed: Path, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fake.loads_library = False
        fails(packed, tmp_path, BuildError, r"/lib/libenginewright_trt.so: tensorrt 11.1.0 cannot load it")
        library = TensorRTLibrary(path=LIBRARY, version="7", op_versions={**op_versions(GPU_OPS), "PagedAttention": 2})
        monkeypatch.setattr(builder, "open_tensorrt_library", lambda: library)
        match = r"libenginewright_trt.so 7: got PagedAttention version 2, expected PagedAttention version 1"
        fails(packed, tmp_path / "b", BuildError, match)

        def missing() -> None:
            raise LibraryError("libenginewright_trt.so: not found; build it")

        monkeypatch.setattr(builder, "open_tensorrt_library", missing)
        fails(packed, tmp_path / "c", BuildError, r"libenginewright_trt\.so: not found; build it")

    def test_of_a_plugin(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        """The parser reports that a creator made no plugin; the plugin itself logs the reason."""
        fake.errors, fake.log = [("node_7", "PagedAttention", "no plugin")], ["PagedAttention: heads of 48", "a line"]
        fails(packed, tmp_path, BuildError, r"PagedAttention: no plugin; PagedAttention: heads of 48\)")

    def test_of_a_builder_that_is_not_made(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        def refuse(logger: Any) -> None:
            raise TypeError("factory function returned nullptr")

        fake.Builder = refuse  # type: ignore[method-assign]
        fails(packed, tmp_path, BuildError, r"cannot begin a build \(factory function returned nullptr\)")

    def test_an_interrupt_stops_the_build(self, packed: Path, fake: Fake, tmp_path: Path) -> None:
        def interrupt(config: Any) -> None:
            bars = config.progress_monitor.bars
            bars["Building engine"].update = lambda n: (_ for _ in ()).throw(KeyboardInterrupt)

        fake.during = interrupt
        fails(packed, tmp_path, KeyboardInterrupt, "^$")
        assert fake.events[-2:] == [("stopped",), ("unload",)]

    def test_a_full_disk(self, packed: Path, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None: ...

            def write(self, data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

        opened = os.fdopen

        def fdopen(handle: int, mode: str) -> Any:
            if fake.events[-1:] != [("parse",)] or mode != "wb":
                return opened(handle, mode)
            os.close(handle)
            return Full()

        monkeypatch.setattr(os, "fdopen", fdopen)
        fails(packed, tmp_path, OSError, "No space left")


class TestRefusals:
    """Refusals before anything is built, with or without TensorRT."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("family", "recipe", "match"),
        [
            ("qwen3", {}, "got a graph that computes in float32, expected float16 or bfloat16"),
            ("qwen2", {"dtype": "float16"}, "got heads of 16 and 16, expected one of 32 and 32"),
        ],
    )
    def test_graphs_without_kernels(
        self, family: str, recipe: Any, match: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        self.refuse(make(family, tmp_path_factory, **recipe), "tensorrt", match)

    def test_plugins_under_rtx(self, packed: Path) -> None:
        self.refuse(packed, "tensorrt-rtx", "enginewright's own ops.*no plugins; build with --plugins none")

    def refuse(self, root: Path, backend: str, match: str) -> None:
        before = listing(root)
        with pytest.raises(BuildError, match=match) as caught:
            builders.build(root, directory.load(root), backend)
        assert not isinstance(caught.value, TargetError) and listing(root) == before

    def test_inputs_that_nobody_feeds(self, packed: Path, fake: Fake) -> None:
        manifest = directory.load(packed)
        graph = manifest.graphs["decoder"]
        spec = dataclasses.replace(graph.inputs[0], name="pixels")
        odd = dataclasses.replace(graph, inputs=(*graph.inputs, spec))
        with pytest.raises(
            BuildError, match="decoder input 'pixels': got a name unknown to this builder, expected one of input_i"
        ):
            builders.build(packed, dataclasses.replace(manifest, graphs={"decoder": odd}), "tensorrt")
        spec = dataclasses.replace(graph.inputs[2], shape=("a", "b"))
        odd = dataclasses.replace(graph, inputs=(spec,))
        with pytest.raises(
            BuildError, match="'query_starts': got a size 'b' on axis 1, expected a number or one of B1"
        ):
            builders.build(packed, dataclasses.replace(manifest, graphs={"decoder": odd}), "tensorrt")


@pytest.mark.parametrize(
    ("backend", "error", "extra"), [("tensorrt", TargetError, "tensorrt"), ("tensorrt-rtx", BuildError, "rtx")]
)
def test_without_the_package(
    backend: str, error: type[BuildError], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[backend], None)  # type: ignore[arg-type]
    with pytest.raises(error, match=rf"got no Python package tensorrt.*; pip install 'enginewright\[{extra}\]'") as e:
        open_module(backend)
    assert isinstance(e.value, TargetError) == (backend == "tensorrt")


class Cuda:
    """The part of `cuda.bindings.runtime` that identifies a device."""

    cudaError_t = SimpleNamespace(cudaSuccess=SimpleNamespace(name="cudaSuccess"))
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=9, cudaDevAttrComputeCapabilityMinor=0)

    def __init__(self, status: str, count: int) -> None:
        self._status = self.cudaError_t.cudaSuccess if status == "cudaSuccess" else SimpleNamespace(name=status)
        self._count = count

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        return self._status, self._count

    def cudaGetDevice(self) -> tuple[Any, int]:
        return self._status, 0

    def cudaDeviceGetAttribute(self, name: int, device: int) -> tuple[Any, int]:
        return self._status, name

    def cudaGetErrorString(self, status: Any) -> tuple[Any, bytes]:
        return status, b"driver too old"


def test_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(module: object) -> None:
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)  # type: ignore[arg-type]

    place(Cuda("cudaSuccess", 1))
    assert device_compute() == "sm_90"
    for status, reason in (("cudaErrorInsufficientDriver", "driver too old"), ("cudaSuccess", "no device")):
        place(Cuda(status, 0))
        with pytest.raises(TargetError, match=rf"--backend tensorrt: cuda: got no GPU .*{reason}"):
            device_compute()
    place(None)
    with pytest.raises(TargetError, match=r"got no Python package cuda\.bindings"):
        device_compute()


@pytest.mark.parametrize("chunk", [1, 100, 512])
@pytest.mark.parametrize("source", ["packed", pytest.param("packed_int4", marks=pytest.mark.slow)])
def test_profiles_admit_what_a_session_asks_for(source: str, chunk: int, request: pytest.FixtureRequest) -> None:
    """Profiles admit the runtime's own sizes for a chunk, with the spare tile and slot that it adds, and nothing more."""
    manifest = directory.load(request.getfixturevalue(source))
    options: dict[str, Any] = {"max_batch": None, "cache_tokens": None, "prefill_chunk": chunk, "prefix_reuse": True}
    capacity = plan_capacity(manifest, 1 << 40, **options)
    shapes = input_shapes(manifest, TileTables(manifest.cache, capacity), capacity, spare=SPARE)
    profile = builder.plan_profiles(manifest, manifest.graphs["decoder"], chunk)[1].shapes
    for name, (_, _, most) in profile.items():
        wanted = shapes[name][0]
        if name == "sample_rows":
            wanted = (min(capacity.step_tokens, capacity.logit_rows),)
        assert most == wanted, name
