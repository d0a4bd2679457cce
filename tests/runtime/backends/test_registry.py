"""Tests of the choice among a directory's engines: their order, those passed over, and the message if none can run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enginewright.plugins.libraries.cuda import ORT_BACKEND
from enginewright.plugins.libraries.locate import LibraryError, ort_library
from enginewright.runtime import RequestError, Sampling, UnsupportedError, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import BuiltGraph, Manifest
from enginewright.runtime.backends.onnxruntime import cuda_session
from enginewright.runtime.backends.onnxruntime.backend import CpuBackend
from enginewright.runtime.backends.registry import choose_backend
from enginewright.runtime.backends.tensorrt.backend import TensorRTBackend
from enginewright.runtime.cli import main
from enginewright.runtime.evaluation import score
from enginewright.runtime.evaluation.suites import Task
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.tensorrt_engines import add_plan, install

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def exported(make_engine: Callable[..., Path]) -> Path:
    return make_engine()


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without TensorRT, CUDA and their libraries of kernels."""
    for name in ("tensorrt", "tensorrt_rtx", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)

    def missing() -> Any:
        raise LibraryError("plugins: got no libenginewright_cuda")

    monkeypatch.setattr(cuda_session, "open_cuda_library", missing)


def manifest_with(exported: Path, *backends: str, dtype: str = "float32") -> Manifest:
    manifest = directory.load(exported)
    engines = tuple(BuiltGraph(backend=each, version="1", compute="any", files=()) for each in backends)
    graph = dataclasses.replace(manifest.graphs["decoder"], engines=engines)
    return dataclasses.replace(manifest, graphs={"decoder": graph}, weights={"kind": dtype})


def test_without_engines_the_cpu_runs_the_graph(exported: Path) -> None:
    assert isinstance(choose_backend(manifest_with(exported), 1), CpuBackend)


def test_the_first_that_can_run_is_taken(exported: Path, monkeypatch: pytest.MonkeyPatch, nothing: None) -> None:
    every = manifest_with(exported, "onnxruntime", "tensorrt-rtx", ORT_BACKEND, "tensorrt")
    assert isinstance(choose_backend(every, 1), CpuBackend)
    install(monkeypatch, FakeCuda(), name="tensorrt_rtx")
    chosen = choose_backend(every, 1)
    assert isinstance(chosen, TensorRTBackend) and chosen._engine(every).backend == "tensorrt-rtx"
    install(monkeypatch, FakeCuda())
    chosen = choose_backend(every, 1)
    assert isinstance(chosen, TensorRTBackend) and chosen._engine(every).backend == "tensorrt"
    assert isinstance(choose_backend(every, 1, "onnxruntime"), CpuBackend)
    chosen = choose_backend(every, 1, "tensorrt-rtx")
    assert isinstance(chosen, TensorRTBackend) and chosen._engine(every).backend == "tensorrt-rtx"


def test_a_machine_without_a_gpu(exported: Path, monkeypatch: pytest.MonkeyPatch, nothing: None) -> None:
    cuda = FakeCuda()
    install(monkeypatch, cuda)
    cuda.devices = 0
    assert isinstance(choose_backend(manifest_with(exported, "tensorrt", "onnxruntime"), 1), CpuBackend)
    message = r"^cuda: got no GPU that CUDA can use .*, or pass --backend onnxruntime to run the graph on the CPU$"
    with pytest.raises(UnsupportedError, match=message):
        choose_backend(manifest_with(exported, "tensorrt"), 1)


def test_every_reason_is_said(exported: Path, nothing: None) -> None:
    message = (
        r"^tensorrt: got no Python package tensorrt \(.*\), expected the one that runs its engines; "
        r"pip install 'enginewright\[tensorrt\]'; "
        r"tensorrt-rtx: got no Python package tensorrt_rtx \(.*\), .*; pip install 'enginewright\[rtx\]'; "
        r"onnxruntime-cuda: plugins: got no libenginewright_cuda, or pass --backend onnxruntime to run the graph on the CPU$"
    )
    with pytest.raises(UnsupportedError, match=message):
        choose_backend(manifest_with(exported, ORT_BACKEND, "tensorrt-rtx", "tensorrt"), 1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_not_for_the_cpu(dtype: str, exported: Path, nothing: None) -> None:
    manifest = manifest_with(exported, "tensorrt", dtype=dtype)
    with pytest.raises(UnsupportedError, match=r"pip install 'enginewright\[tensorrt\]'$"):
        choose_backend(manifest, 1)
    message = r"got 'onnxruntime', but the graph of tiny computes in half precision, .* or build with --dtype float32"
    with pytest.raises(UnsupportedError, match=message):
        choose_backend(manifest, 1, "onnxruntime")
    standard = dataclasses.replace(manifest.graphs["decoder"], ops={})
    dense = dataclasses.replace(manifest, graphs={"decoder": standard})
    if dtype == "float16":
        assert isinstance(choose_backend(dense, 1, "onnxruntime"), CpuBackend)
    else:
        with pytest.raises(UnsupportedError, match="half precision"):
            choose_backend(dense, 1, "onnxruntime")


def test_names(exported: Path) -> None:
    message = r"^load: backend: got 'cuda', expected one of tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime$"
    with pytest.raises(RequestError, match=message):
        load(exported, backend="cuda")
    message = (
        r"^load: backend: got 'tensorrt', but tiny has engines for none; "
        r"`enginewright compile DIR --backend tensorrt` builds one$"
    )
    with pytest.raises(RequestError, match=message):
        load(exported, backend="tensorrt")
    with pytest.raises(
        RequestError, match=r"got 'tensorrt', but tiny has engines for onnxruntime-cuda, tensorrt-rtx; "
    ):
        choose_backend(manifest_with(exported, "tensorrt-rtx", ORT_BACKEND), 1, "tensorrt")


def test_an_evaluation_takes_a_backend(exported: Path) -> None:
    candidate = SimpleNamespace(root=exported)
    with pytest.raises(RequestError, match=r"^load: backend: got 'cuda', expected one of"):
        score._load(Task(suite="reasoning", backend="cuda"), candidate)  # type: ignore[arg-type]


def test_the_engine_of_the_other_tensorrt(
    exported: Path, monkeypatch: pytest.MonkeyPatch, nothing: None, tmp_path: Path
) -> None:
    """Both have plans here; each runs its own, and the plugin library is TensorRT's alone."""
    root = add_plan(exported, tmp_path / "one")
    root = add_plan(root, tmp_path / "both", backend="tensorrt-rtx", version="1.7.1", compute="sm_89")
    rtx, trt = FakeCuda((8, 9)), FakeCuda((9, 0))
    install(monkeypatch, rtx, ort_library(), name="tensorrt_rtx", version="1.7.1")
    with load(root) as llm:
        wanted = llm.generate([5, 6], Sampling(max_tokens=9, ignore_eos=True))[0].token_ids
        assert rtx.launches == 7 and llm.loop.session._plan.path.name == "decoder.tensorrt-rtx.plan"
        llm.generate([list(range(3, 30))], Sampling(max_tokens=2, ignore_eos=True))
        contexts = llm.loop.session.contexts
        assert [each._context.context._kernels.name for each in contexts.replays.values()] == ["EAGER", "EAGER"]
        assert [each.context._kernels.name for each in contexts._contexts.values()] == ["LAZY"], "prompts of any length"
    install(monkeypatch, trt, ort_library())
    with load(root) as llm:
        assert llm.generate([5, 6], Sampling(max_tokens=9, ignore_eos=True))[0].token_ids == wanted
        assert trt.launches == 7 and llm.loop.session._plan.path.name == "decoder.tensorrt.plan"


def test_the_commands_take_a_backend(
    make_engine: Callable[..., Path],
    byte_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    nothing: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cuda = FakeCuda()
    root = add_plan(make_engine(tokenizer=byte_tokenizer), tmp_path / "engine")
    arguments = ["run", str(root), "--prompt", "the cat", "--max-tokens", "12"]
    assert main([*arguments, "--backend", "onnxruntime"]) == 0
    wanted = capsys.readouterr().out
    assert main(arguments) == 2
    assert "pip install 'enginewright[tensorrt]', or pass --backend onnxruntime" in capsys.readouterr().err
    install(monkeypatch, cuda, ort_library())
    for chosen in ([], ["--backend", "tensorrt"]):
        launches = cuda.launches
        assert main([*arguments, *chosen]) == 0
        assert capsys.readouterr().out == wanted and cuda.launches > launches
    launches = cuda.launches
    assert (
        main(["bench", str(root), "--batch", "1", "--repeat", "1", "--prompt-tokens", "9", "--new-tokens", "12"]) == 0
    )
    assert cuda.launches > launches
    launches = cuda.launches
    bench = ["bench", str(root), "--batch", "1", "--repeat", "1", "--prompt-tokens", "9", "--new-tokens", "12"]
    assert main([*bench, "--backend", "onnxruntime"]) == 0
    assert cuda.launches == launches
    assert main([*bench, "--backend", "tensorrt-rtx"]) == 2
    assert "has engines for tensorrt; `enginewright compile DIR --backend tensorrt-rtx`" in capsys.readouterr().err
