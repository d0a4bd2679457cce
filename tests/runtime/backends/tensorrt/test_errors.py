"""Tests of the messages when a TensorRT engine cannot run: packages, devices, versions, damaged plans, sizes."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.plugins.libraries.locate import LibraryError, ort_library
from enginewright.plugins.libraries.tensorrt import TensorRTLibrary
from enginewright.runtime import ArtifactError, RequestError, Sampling, UnsupportedError, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import File, Graph
from enginewright.runtime.backends.device.cuda_runtime import CudaRuntime, open_cuda_runtime
from enginewright.runtime.backends.tensorrt import plan
from enginewright.runtime.backends.tensorrt.contexts import Contexts
from enginewright.runtime.backends.tensorrt.plan import Profile, TensorRTPlan, open_plan
from tests.support.runtime.fake_cuda import FakeCuda, Misuse
from tests.support.runtime.fake_tensorrt import IExecutionContext
from tests.support.runtime.tensorrt_engines import add_plan, install

pytestmark = pytest.mark.native


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    cuda = FakeCuda()
    install(monkeypatch, cuda, ort_library())
    return cuda


@pytest.fixture(scope="module")
def exported(make_engine: Callable[..., Path]) -> Path:
    return make_engine()


def profiles_with(exported: Path, tmp_path: Path, name: str, shapes: list[Any]) -> list[dict[str, Any]]:
    """The profiles of an engine, with other shapes of one input."""
    content = (add_plan(exported, tmp_path / "sample") / "engines/decoder.tensorrt.plan").read_bytes()
    profiles: list[dict[str, Any]] = json.loads(content.partition(b"\n")[2])["profiles"]
    return [{**profile, name: shape} for profile, shape in zip(profiles, shapes, strict=True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"version": "10.9.0"},
            r"decoder\.tensorrt\.plan: built for tensorrt 10\.9\.0, installed is 11\.1\.0; "
            r"run `enginewright compile \S+ --backend tensorrt` on this machine, or install the version it was built for",
        ),
        (
            {"compute": "sm_80"},
            r"built for sm_80, this machine's GPU is sm_90; run `enginewright compile \S+ --backend tensorrt` on this",
        ),
        ({"compute": "sm_86+sm_89"}, r"built for sm_86\+sm_89, this machine's GPU is sm_90"),
        ({"compute": "sm_100+"}, r"built for sm_100\+, this machine's GPU is sm_90"),
        (
            {"plugins": {"PagedAttention": 7}},
            r"decoder\.tensorrt\.plan: plugins: libenginewright_ort\.\w+ 0\.1\.0: got PagedAttention version 1, expected "
            r"PagedAttention version 7; .*; run `enginewright compile \S+ --backend tensorrt`$",
        ),
        ({"plugins": {"Magic": 1}}, r"libenginewright_ort\.\w+ 0\.1\.0: got no Magic, expected Magic version 1; "),
        (
            {"plugins": {}},
            r"tensorrt 11\.1\.0 cannot load it \(a plugin creator is not registered\); run `enginewright compile",
        ),
        ({"host": ["sample_rows"]}, r"sample_rows: got a tensor in host memory, expected the device's; run `"),
        (
            {"aliases": {"kv.0.tiles.out": "kv.1.tiles"}},
            r"kv\.0\.tiles\.out: got an update of kv\.1\.tiles, expected one of kv\.0\.tiles; run `",
        ),
    ],
)
def test_an_engine_for_something_else_is_refused(
    changes: dict[str, Any], message: str, exported: Path, cuda: FakeCuda, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(add_plan(exported, tmp_path / "engine", **changes))


@pytest.mark.parametrize("compute", ["sm_90", "sm_86+sm_90+sm_120", "sm_80+", "sm_90+"])
def test_an_engine_for_this_gpu_among_others_is_taken(
    compute: str, exported: Path, cuda: FakeCuda, tmp_path: Path
) -> None:
    with load(add_plan(exported, tmp_path / "engine", compute=compute)) as llm:
        assert llm.generate([1], Sampling(max_tokens=2, ignore_eos=True))[0].token_ids


def test_a_plan_without_weights(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    """The second file of such an engine is the graph that has the weights."""
    options = {"stripped": True, "weights": "graphs/decoder.onnx"}
    with load(add_plan(exported, tmp_path / "engine", **options)) as llm:
        assert llm.generate([1], Sampling(max_tokens=2, ignore_eos=True))[0].token_ids
    with (
        load(add_plan(exported, tmp_path / "lost", stripped=True)) as llm,
        pytest.raises(Misuse, match="without weights"),
    ):
        llm.generate([1], Sampling(max_tokens=2))
    message = (
        r"plan: tensorrt 11\.1\.0 cannot load the weights of \S+/manifest\.json \(weights of another graph\); "
        r"run `enginewright compile \S+ --backend tensorrt`"
    )
    other = add_plan(exported, tmp_path / "other", stripped=True)
    manifest = directory.load(other)
    graph = manifest.graphs["decoder"]
    files = (*graph.engines[0].files, File(path="manifest.json", size=0, sha256=""))
    engine = dataclasses.replace(graph.engines[0], files=files)
    with pytest.raises(ArtifactError, match=message):
        open_plan(other, graph, engine, CudaRuntime(cuda))


def test_a_damaged_plan(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    root = add_plan(exported, tmp_path / "engine")
    manifest, path = directory.load(root), root / "engines/decoder.tensorrt.plan"
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(ArtifactError, match=r"plan: got 100 bytes, expected"):
        load(root)
    graph = manifest.graphs["decoder"]
    engine = dataclasses.replace(graph.engines[0], files=(directory.describe_file(root, path),))
    changed = dataclasses.replace(graph, engines=(engine,))
    directory.save(dataclasses.replace(manifest, graphs={"decoder": changed}), root)
    message = (
        r"decoder\.tensorrt\.plan: tensorrt 11\.1\.0 cannot load it \(the magic tag does not match\); "
        r"run `enginewright compile \S+ --backend tensorrt`"
    )
    with pytest.raises(ArtifactError, match=message):
        load(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda graph: {"inputs": graph.inputs[1:]},
            r"got a tensor 'input_ids' that the manifest does not have; run `",
        ),
        (
            lambda graph: {"outputs": (*graph.outputs, dataclasses.replace(graph.outputs[0], name="more"))},
            r"got no output 'more', which the manifest has; run `",
        ),
        (
            lambda graph: {"inputs": (dataclasses.replace(graph.inputs[0], dtype="int32"), *graph.inputs[1:])},
            r"plan: input_ids: got int64, expected int32; run `",
        ),
    ],
    ids=["unknown", "missing", "another type"],
)
def test_a_plan_that_is_not_the_manifests(
    change: Callable[[Graph], dict[str, Any]], message: str, exported: Path, cuda: FakeCuda, tmp_path: Path
) -> None:
    root = add_plan(exported, tmp_path / "engine")
    manifest = directory.load(root)
    graph = manifest.graphs["decoder"]
    changed = dataclasses.replace(graph, **change(graph))
    directory.save(dataclasses.replace(manifest, graphs={"decoder": changed}), root)
    with pytest.raises(ArtifactError, match=message):
        load(root)


def test_tensorrt_does_not_start(
    exported: Path, cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(log: Any) -> None:
        log.log(log.Severity.ERROR, "the driver is older than the runtime")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", refuse)
    message = r"plan: TensorRT does not start \(the driver is older than the runtime\); check that the driver is new enough for it$"
    with pytest.raises(UnsupportedError, match=message):
        load(add_plan(exported, tmp_path / "engine"))


def test_the_plugin_library(exported: Path, cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = add_plan(exported, tmp_path / "engine")
    versions = {"PagedAttention": 1, "GreedySample": 1}
    library = TensorRTLibrary(path=tmp_path / "libgone.so", version="0.1.0", op_versions=versions)
    monkeypatch.setattr(plan, "open_tensorrt_library", lambda: library)
    message = r"libgone\.so: TensorRT does not load it \(cannot open libgone\.so\); build the library again"
    with pytest.raises(UnsupportedError, match=message):
        load(root)

    def missing() -> None:
        raise LibraryError("plugins: got no libenginewright_trt.so, expected ...")

    monkeypatch.setattr(plan, "open_tensorrt_library", missing)
    with pytest.raises(UnsupportedError, match=r"^plugins: got no libenginewright_trt\.so"):
        load(root)


def test_more_tokens_than_profiles_admit_at_load(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    root = add_plan(exported, tmp_path / "engine", chunk=64)
    with load(root, prefill_chunk=64):
        pass
    message = (
        r"^load: \S+plan: input_ids: got \[512\], expected \[1\] to \[8\] \(profile 0\) or \[1\] to \[64\] \(profile 1\); "
        r"pass a smaller prefill_chunk, max_batch or cache_tokens, or build an engine with larger limits$"
    )
    with pytest.raises(RequestError, match=message):
        load(root)


def test_a_larger_cache_than_profiles_admit_at_load(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    profiles = profiles_with(exported, tmp_path, "kv.2.tiles", [[[1, 8192]] + 2 * [[20, 8192]]] * 2)
    root = add_plan(exported, tmp_path / "engine", profiles=profiles)
    with load(root, cache_tokens=128 * 9):  # 18 tiles, for two heads
        pass
    message = (
        r"kv\.2\.tiles: got \[128, \d+\], expected \[1, \d+\] to \[20, \d+\] \(profile 0\) or \[1, \d+\] to \[20, "
    )
    with pytest.raises(RequestError, match=message):
        load(root)


def test_a_step_that_no_profile_admits(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    """Steps of fewer tokens than every profile's least are known when they come."""
    profiles = profiles_with(exported, tmp_path, "input_ids", [[[4], [8], [8]], [[9], [9], [512]]])
    with load(add_plan(exported, tmp_path / "engine", profiles=profiles)) as llm:
        message = (
            r"plan: input_ids: got \[1\], expected \[4\] to \[8\] \(profile 0\) or \[9\] to \[512\] \(profile 1\); "
            r"build an engine with larger limits, or ask for less at once"
        )
        with pytest.raises(UnsupportedError, match=message):
            llm.generate([1], Sampling(max_tokens=2))


def test_inputs_that_no_profile_admits_together() -> None:
    plan = TensorRTPlan.__new__(TensorRTPlan)
    plan.path = Path("p")
    plan.profiles = [
        Profile(0, {"a": ((1,), (4,)), "b": ((1,), (9,))}),
        Profile(1, {"a": ((1,), (9,)), "b": ((1,), (4,))}),
    ]
    assert plan.find({"a": (4,), "b": (5,)}) is plan.profiles[0]
    assert plan.find({"a": (5,), "b": (4,)}) is plan.profiles[1]
    assert plan.find({"a": (5,), "b": (5,)}) is None and plan.find({"a": (1, 1), "b": (1,)}) is None
    expected = "p: a: got [5], expected [1] to [4] (profile 0) or [1] to [9] (profile 1)"
    assert plan.describe_refusal({"a": (5,), "b": (5,)}) == expected


def test_what_tensorrt_refuses_is_told_in_its_words(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    with load(add_plan(exported, tmp_path / "engine")) as llm:
        contexts: Contexts = llm.loop.session.contexts  # type: ignore[attr-defined]
        context = contexts._open(contexts.plan.profiles[0])
        message = (
            r"plan: TensorRT does not take input_ids of shape \[99\] \(input_ids: \(99,\) is outside profile 0\); look"
        )
        with pytest.raises(UnsupportedError, match=message):
            context.reshape({"input_ids": (99,)})
        with pytest.raises(UnsupportedError, match=r"TensorRT does not take an address for nothing \(nothing: no such"):
            context.bind({"nothing": 0})
        with pytest.raises(UnsupportedError, match=r"TensorRT does not take profile 5 \(no profile 5\)"):
            contexts._open(dataclasses.replace(contexts.plan.profiles[0], index=5))


@pytest.mark.parametrize("prompt", [[5], [5] * 40], ids=["replayed", "run"])
def test_a_run_that_tensorrt_refuses_ends_its_requests_alone(
    exported: Path, cuda: FakeCuda, tmp_path: Path, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(add_plan(exported, tmp_path / "engine")) as llm:
        expected = llm.generate([7, 8], Sampling(max_tokens=3))[0].token_ids
        llm.loop.session.contexts.replays.clear()  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(IExecutionContext, "execute_async_v3", lambda self, _: self._refuse("out of resources"))
            with pytest.raises(UnsupportedError, match=r"plan: TensorRT could not run the engine \(out of resources\)"):
                llm.generate(prompt, Sampling(max_tokens=3))
        assert llm.generate([7, 8], Sampling(max_tokens=3))[0].token_ids == expected


def test_too_little_memory(exported: Path, cuda: FakeCuda, tmp_path: Path) -> None:
    root = add_plan(exported, tmp_path / "engine")
    cuda.free = 3 << 20
    message = (
        r"^load: cuda: device memory: got \d MiB free, expected 1 MiB; use a smaller cache or batch; cache and buffers"
    )
    with pytest.raises(RequestError, match=message):
        load(root, cache_tokens=8 * 1024)
    cuda.free = 4 << 30
    root = add_plan(exported, tmp_path / "other", workspace=5 << 30)
    with pytest.raises(RequestError, match=r"^load: no memory for a cache of .* GiB; pass a smaller cache_tokens"):
        load(root, cache_tokens=8 * 1024)


def test_the_cuda_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    message = r"^cuda: got no Python package cuda\.bindings \(.*\), expected .*; pip install 'enginewright\[rtx\]'$"
    with pytest.raises(UnsupportedError, match=message):
        open_cuda_runtime("rtx")


def test_the_driver_and_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.devices = 0
    message = (
        r"^cuda: got no GPU that CUDA can use \(cudaErrorInsufficientDriver: text of cudaErrorInsufficientDriver\), "
        r"expected one with NVIDIA's driver; install the driver, or run the engine where there is one$"
    )
    with pytest.raises(UnsupportedError, match=message):
        CudaRuntime(cuda)
    monkeypatch.setattr(cuda, "cudaGetDeviceCount", lambda: (cuda.cudaError_t.cudaSuccess, 0))
    with pytest.raises(UnsupportedError, match=r"got no GPU that CUDA can use \(no device\)"):
        CudaRuntime(cuda)


def test_the_cuda_runtime() -> None:
    """Memory is zeros, what fails is said with CUDA's words, and a capability is read as architectures are called."""
    cuda = FakeCuda((12, 1), free=1 << 22)
    runtime = CudaRuntime(cuda)
    assert runtime.compute_capability() == "sm_121" and runtime.free_bytes() == 1 << 22
    device, host = runtime.allocate(1000), runtime.allocate(1000, host=True)
    assert not any(ctypes.string_at(device, 1000)) and not any(ctypes.string_at(host, 1000))
    with pytest.raises(MemoryError, match=r"^cuda: device memory: got 3 MiB free, expected 5 MiB; use a smaller cache"):
        runtime.allocate(5 << 20)
    stream = runtime.create_stream()
    ctypes.memset(host, 7, 1000)
    runtime.copy_pieces(device, 20, host, 10, 5, 3, stream)
    assert not any(ctypes.string_at(device, 1000)), "a copy that does not wait"
    runtime.synchronize(stream)
    assert [place for place in range(1000) if ctypes.string_at(device, 1000)[place]] == [
        20 * piece + i for piece in range(3) for i in range(5)
    ]
    with pytest.raises(
        UnsupportedError, match=r"^cuda: copy: got cudaErrorInvalidValue: text of .*, expected success; look"
    ):
        runtime.copy_pieces(device, 4, host, 10, 5, 3, stream)
    runtime.begin_capture(stream)
    runtime.copy(device, host, 1000, stream)
    graph = runtime.end_capture(stream)
    runtime.synchronize(stream)
    assert ctypes.string_at(device, 1000) != ctypes.string_at(host, 1000)
    runtime.launch_graph(graph, stream)
    runtime.synchronize(stream)
    assert ctypes.string_at(device, 1000) == ctypes.string_at(host, 1000)
    runtime.destroy_graph(graph)
    for address, is_host in ((device, False), (host, True)):
        runtime.free(address, host=is_host)
    runtime.destroy_stream(stream)
    assert not cuda.blocks and not cuda.streams and not cuda.graphs
