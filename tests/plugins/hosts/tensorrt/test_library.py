"""Tests of the plugin library for TensorRT: its declarations, their reading in Python, and its build."""

from __future__ import annotations

import ctypes
import json
import subprocess
from pathlib import Path

import pytest

from enginewright.plugins.build import PLUGINS
from enginewright.plugins.libraries import locate, tensorrt
from enginewright.plugins.libraries.locate import LibraryError, file_name
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import GPU_OPS, op_versions
from tests.support.ops.tensorrt_host import built_folder, creators, plugin_library

pytestmark = pytest.mark.emulated
VERSIONS = op_versions(GPU_OPS)


def test_the_programs_checks_hold() -> None:
    done = subprocess.run([built_folder() / "enginewright_trt_test"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("0 of "), done.stdout + done.stderr


def test_creators_equal_ops_py() -> None:
    fields = {"int": 5, "float": 1}  # TensorRT's kINT32, which ONNX's parser makes of every int, and kFLOAT32
    wanted = [
        f"{op.name} {op.version} {DOMAIN}:"
        + "".join(f" {attribute.name}:{fields[attribute.type]}" for attribute in op.attributes)
        + f" present:{fields['int']}"
        for op in GPU_OPS.values()
    ]
    assert creators().splitlines() == sorted(wanted), "the order does not depend on the linker"


def test_declarations_equal_ops_py() -> None:
    plugins = ctypes.CDLL(str(plugin_library()))
    plugins.ew_trt_ops.restype = ctypes.c_char_p
    declared = json.loads(plugins.ew_trt_ops())
    assert declared["domain"] == DOMAIN
    assert {op["name"] for op in declared["ops"]} == set(GPU_OPS)
    for op in declared["ops"]:
        wanted = GPU_OPS[op["name"]]
        assert op["version"] == wanted.version
        for ports, tensors in ((op["inputs"], wanted.inputs), (op["outputs"], wanted.outputs)):
            assert [port["name"] for port in ports] == [tensor.name for tensor in tensors]
            assert [port["optional"] for port in ports] == [tensor.optional for tensor in tensors]
            assert [port["variadic"] for port in ports] == [tensor.variadic for tensor in tensors]
            assert [port["alias"] for port in ports] == [tensor.alias for tensor in tensors]
            assert all(port["type"] in tensor.types for port, tensor in zip(ports, tensors, strict=True))
        assert op["attributes"] == [{"name": a.name, "type": a.type, "default": a.default} for a in wanted.attributes]
    activations = {(op["name"], op["inputs"][0]["type"]) for op in declared["ops"]}
    others = {("GreedySample", "float32"), ("CompactTiles", "int8")}
    typed = set(GPU_OPS) - {name for name, _ in others}
    assert activations == {(name, type) for name in typed for type in ("float16", "bfloat16")} | others


def test_python_reads_the_library() -> None:
    loaded = tensorrt.load_tensorrt_library(plugin_library())
    assert loaded.path == plugin_library()
    version = (PLUGINS.parent / "pyproject.toml").read_text().split('\nversion = "')[1].split('"')[0]
    assert loaded.version == version
    assert dict(loaded.op_versions) == VERSIONS
    loaded.check_versions(VERSIONS)
    loaded.check_versions({})


def test_needed_versions_are_compared() -> None:
    loaded = tensorrt.load_tensorrt_library(plugin_library())
    with pytest.raises(
        LibraryError, match=r"got DepthMix version 1, expected DepthMix version 2; export and build the"
    ):
        loaded.check_versions({"ClpEmit": 1, "DepthMix": 2})
    with pytest.raises(LibraryError, match=r"got no TreeAttention, expected TreeAttention version 1; export and build"):
        loaded.check_versions({"TreeAttention": 1})


def test_check_versions_asks_the_installed_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "open_tensorrt_library", lambda: tensorrt.load_tensorrt_library(plugin_library()))
    tensorrt.check_versions(VERSIONS)
    with pytest.raises(LibraryError, match="expected ClpEmit version 9"):
        tensorrt.check_versions({"ClpEmit": 9})


def test_a_library_with_other_ops_than_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = {
        name: op for name, op in GPU_OPS.items() if name != "DepthMix"
    }  # a copy: undoing a deletion changes the order
    monkeypatch.setattr(tensorrt, "GPU_OPS", fewer)
    with pytest.raises(
        LibraryError, match=r"got DepthMix version 1, expected none; build or install the library again"
    ):
        tensorrt.load_tensorrt_library(plugin_library())


def test_what_is_no_plugin_library_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / file_name("enginewright_trt")
    broken.write_bytes(b"not a library")
    with pytest.raises(LibraryError, match=r"enginewright_trt.* does not load: .*; build or install the library again"):
        tensorrt.load_tensorrt_library(broken)
    kernels = built_folder().parent / "emulation" / file_name("enginewright_cuda_emulated")
    with pytest.raises(LibraryError, match="got a library without ew_trt_ops, expected enginewright_trt"):
        tensorrt.load_tensorrt_library(kernels)


def test_a_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locate, "_library_folders", lambda: [tmp_path])
    message = r"got no .*enginewright_trt.* do: install CUDA 13's nvcc and unpack TensorRT's SDK.* --tensorrt SDK`"
    with pytest.raises(LibraryError, match=message):
        tensorrt.open_tensorrt_library()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-DTENSORRT_INCLUDE_DIR=/nowhere"], 'got no NvInferRuntime.h in "/nowhere", expected'),
        (["-DTENSORRT_ROOT=/nowhere"], 'got no NvInferRuntime.h in "/nowhere/include", expected'),
        (
            [f"-DTENSORRT_INCLUDE_DIR={PLUGINS.parent}/tests/plugins/hosts/tensorrt/sdk_headers"],
            "Set ENGINEWRIGHT_CUDA=ON too",
        ),
    ],
    ids=["no_headers", "no_sdk", "no_kernels"],
)
def test_cmake_names_what_is_missing(options: list[str], message: str, tmp_path: Path) -> None:
    command = ["cmake", "-S", str(PLUGINS), "-B", str(tmp_path), "-DENGINEWRIGHT_ORT=OFF", "-DENGINEWRIGHT_TENSORRT=ON"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
