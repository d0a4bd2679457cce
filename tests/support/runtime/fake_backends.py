"""One engine directory for every backend of packed graphs, whose devices are fakes on the CPU."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import onnxruntime as ort
import pytest

from enginewright.plugins.libraries.cuda import ORT_BACKEND, ORT_COMPUTE
from enginewright.plugins.libraries.locate import ort_library
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import BuiltGraph
from enginewright.runtime.backends.onnxruntime import cuda_session
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.host_library import HostLibrary
from tests.support.runtime.tensorrt_engines import add_plan, install

PACKED_BACKENDS = ("onnxruntime", ORT_BACKEND, "tensorrt")


def build_for_all(root: Path, target: Path, *, chunk: int) -> Path:
    """Copy the engine directory `root` to `target`, with an engine for each backend; chunk: most tokens of a step of a prompt."""
    add_plan(root, target, chunk=chunk)
    manifest = directory.load(target)
    graph = manifest.graphs["decoder"]
    built = BuiltGraph(backend=ORT_BACKEND, version=ort.__version__, compute=ORT_COMPUTE, files=graph.files[:1])
    graph = dataclasses.replace(graph, engines=(*graph.engines, built))
    directory.save(dataclasses.replace(manifest, graphs={"decoder": graph}), target)
    return target


def fake_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TensorRT be its fake, and let ONNX Runtime's CUDA session run on the CPU, with our ops for it."""
    install(monkeypatch, FakeCuda(), ort_library())
    monkeypatch.setattr(cuda_session, "open_library", lambda: HostLibrary(ort_library()))
    on_cpu = partial(cuda_session.CudaSession, provider="CPUExecutionProvider", device="cpu")
    monkeypatch.setattr(cuda_session, "CudaSession", on_cpu)
