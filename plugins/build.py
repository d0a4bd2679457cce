"""Builds the native libraries of a checkout, for tests and development.

    python -m enginewright.plugins.build [--cuda] [--tensorrt SDK] [--emulation] [--sanitize]

Without options it builds the ops for ONNX Runtime on the CPU into `plugins/lib`, the same build that `pip install` runs.

    --cuda          also the kernels for GPUs (needs nvcc and some minutes)
    --tensorrt SDK  also these kernels and the plugins for TensorRT; SDK: the folder of TensorRT or of its headers
    --emulation     nothing but the GPU kernels compiled for a CPU, for tests, in `build/emulation`
    --sanitize      nothing but the ops for the CPU with checks of memory and arithmetic, for tests, in `build/sanitized`
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from enginewright.plugins.libraries.locate import LibraryError, file_name

PLUGINS = Path(__file__).resolve().parent
OBJECTS = PLUGINS.parent / "build"


def build(build_dir: Path | None = None, *, ort: bool = True, cuda: bool = False, tensorrt: Path | None = None) -> Path:
    """Configure, build and install the libraries; return `plugins/lib`.

    build_dir: the folder for objects; by default `build/plugins` in the checkout.
    ort: build the ops for ONNX Runtime on the CPU.
    cuda: build the kernels for GPUs.
    tensorrt: the folder of TensorRT's SDK or of its headers. If given, TensorRT's plugins are built, and the CUDA kernels
        that they start.

    Raises:
        LibraryError: CMake or the sources are missing, or the build fails.
    """
    objects = build_dir or OBJECTS / "plugins"
    options = [f"-DENGINEWRIGHT_ORT={_on(ort)}", f"-DENGINEWRIGHT_CUDA={_on(cuda or tensorrt is not None)}"]
    options += [f"-DENGINEWRIGHT_TENSORRT={_on(tensorrt is not None)}", "-DENGINEWRIGHT_TENSORRT_TESTS=OFF"]
    if tensorrt is not None:
        is_headers = (tensorrt / "NvInferRuntime.h").exists()
        options.append(f"-DTENSORRT_INCLUDE_DIR={(tensorrt if is_headers else tensorrt / 'include').resolve()}")
    _make(objects, *options)
    _run(_cmake(), "--install", str(objects))
    return PLUGINS / "lib"


def build_emulation(build_dir: Path | None = None) -> Path:
    """Build the CUDA kernels for a CPU; return the library's path.

    build_dir: the folder for objects; by default `build/emulation` in the checkout.

    Raises:
        LibraryError: CMake or the sources are missing, or the build fails.
    """
    objects = build_dir or OBJECTS / "emulation"
    _make(objects, "-DENGINEWRIGHT_ORT=OFF", "-DENGINEWRIGHT_EMULATION=ON", "-DENGINEWRIGHT_TENSORRT_TESTS=OFF")
    return objects / "csrc" / "emulation" / file_name("enginewright_cuda_emulated")


def build_sanitized(build_dir: Path | None = None) -> Path:
    """Build the ops for the CPU with the address and the undefined-behaviour sanitizers; return the library's path.

    A process can load it only after the sanitizers' runtime (LD_PRELOAD).
    build_dir: the folder for objects; by default `build/sanitized` in the checkout.

    Raises:
        LibraryError: CMake or the sources are missing, or the build fails.
    """
    objects = build_dir or OBJECTS / "sanitized"
    _make(objects, "-DENGINEWRIGHT_ORT=ON", "-DENGINEWRIGHT_SANITIZE=ON", "-DENGINEWRIGHT_TENSORRT_TESTS=OFF")
    return objects / "csrc" / file_name("enginewright_ort")


def build_tensorrt_tests(*, cuda: bool = False) -> Path:
    """Build the libraries that test TensorRT's plugins without its SDK; return their folder.

    cuda: let the plugins start the kernels for GPUs instead of those for a CPU.

    Raises:
        LibraryError: CMake or the sources are missing, or the build fails.
    """
    objects = OBJECTS / ("cuda" if cuda else "emulation")  # here the kernels are compiled already
    kernels = "-DENGINEWRIGHT_CUDA=ON" if cuda else "-DENGINEWRIGHT_EMULATION=ON"
    _make(objects, "-DENGINEWRIGHT_ORT=OFF", kernels, "-DENGINEWRIGHT_TENSORRT_TESTS=ON")
    return objects / "csrc" / "tensorrt_tests"


def _on(wanted: bool) -> str:
    return "ON" if wanted else "OFF"


def _cmake() -> str:
    cmake = shutil.which("cmake")
    if cmake is None:
        raise LibraryError("plugins: got no cmake on PATH, expected CMake 3.22 or later; do: pip install cmake ninja")
    return cmake


def _make(objects: Path, *options: str) -> None:
    """Configure and build in `objects`."""
    if not (PLUGINS / "CMakeLists.txt").exists():
        raise LibraryError(
            f"plugins: got no CMakeLists.txt in {PLUGINS}, expected a source checkout; clone the repository and build there"
        )
    configure = [_cmake(), "-S", str(PLUGINS), "-B", str(objects), *options, f"-DCMAKE_INSTALL_PREFIX={PLUGINS}"]
    configure.append(f"-DPython3_EXECUTABLE={sys.executable}")  # runs generate.py
    if shutil.which("ninja") and not (objects / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja"]
    _run(*configure)
    _run(_cmake(), "--build", str(objects), "--parallel")


def _run(*command: str) -> None:
    if subprocess.run(command).returncode != 0:
        raise LibraryError(f"plugins: `{' '.join(command)}` failed; its output says why")


def main() -> None:
    """Build the libraries that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="build the GPU kernels too")
    parser.add_argument("--tensorrt", metavar="SDK", type=Path, help="build the GPU kernels and TensorRT's plugins too")
    parser.add_argument("--emulation", action="store_true", help="build the GPU kernels for a CPU, and nothing else")
    parser.add_argument(
        "--sanitize", action="store_true", help="build the ops for the CPU with sanitizers, and nothing else"
    )
    options = parser.parse_args()
    try:
        if options.emulation or options.sanitize:
            print(build_emulation() if options.emulation else build_sanitized())
        else:
            print(build(cuda=options.cuda, tensorrt=options.tensorrt))
    except LibraryError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
