"""Tests that our declaration of TensorRT's interfaces equals NVIDIA's, and that adapters compile with both."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from enginewright.plugins import generate
from enginewright.plugins.build import PLUGINS

pytestmark = pytest.mark.emulated
HERE = Path(__file__).resolve().parent
OURS = HERE / "sdk_headers"
ADAPTERS = sorted((PLUGINS / "csrc" / "hosts" / "tensorrt").glob("*.cpp"))
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Werror", '-DEW_VERSION="0"', "-I", str(PLUGINS / "csrc"))


def compiler() -> str:
    """A C++ compiler."""
    return shutil.which("c++") or "g++"


def nvidias() -> list[str]:
    """Compiler options for NVIDIA's headers: TensorRT's, and CUDA's that these include."""
    named = os.environ.get("TENSORRT_INCLUDE_DIR")
    if not named:
        pytest.skip("no NVIDIA headers: set TENSORRT_INCLUDE_DIR to the folder of NvInferRuntime.h")
    folders = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        folders.append(Path(nvcc).resolve().parent.parent / "include")
    cuda = next((folder for folder in folders if (folder / "cuda_runtime_api.h").exists()), None)
    if cuda is None:
        pytest.skip("no CUDA headers: set CUDA_HOME, whose folder include has cuda_runtime_api.h")
    return ["-isystem", named, "-isystem", str(cuda)]


def report(options: list[str], program: Path) -> list[str]:
    """The output of abi_report.cpp, compiled against the headers that `options` name."""
    source = str(HERE / "host_program" / "abi_report.cpp")
    subprocess.run([compiler(), *STRICT, *options, source, "-o", str(program)], check=True)
    return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_report_of_our_declaration_is_whole(tmp_path: Path) -> None:
    lines = report(["-I", str(OURS)], tmp_path / "ours")
    assert len(lines) > 120 and len(set(lines)) == len(lines)
    # the order of a table, as TensorRT's first release with aliased outputs has it
    assert "slot IPluginV3OneBuildV2::getAliasedInput 121 0" in lines or os.uname().machine != "x86_64"


def test_our_declaration_is_nvidias(tmp_path: Path) -> None:
    assert report(["-I", str(OURS)], tmp_path / "ours") == report(nvidias(), tmp_path / "nvidias")


@pytest.mark.parametrize("headers", ["ours", "nvidias"])
def test_adapters_compile_without_warnings(headers: str, tmp_path: Path) -> None:
    generate.write(tmp_path)
    options = nvidias() if headers == "nvidias" else ["-I", str(OURS)]
    subprocess.run(
        [compiler(), *STRICT, *options, "-I", str(tmp_path), "-fsyntax-only", *map(str, ADAPTERS)], check=True
    )


def test_the_declaration_is_for_tests_alone() -> None:
    """A library for TensorRT is built against NVIDIA's headers: nothing under csrc finds ours."""
    files = [path for path in (PLUGINS / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".txt", ".cmake")]
    assert files and not [path for path in files if "sdk_headers" in path.read_text()]
