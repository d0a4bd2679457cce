"""Tests of the compiled CUDA library: every kernel for every architecture, ptxas's report, dependencies and exports.

They compile on any machine with nvcc and need no GPU. The first run takes minutes; later runs compile only changed files.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kernels.gpu.compile_report import ARCHITECTURES, FOLDER, ROOT, Kernel, read_report, read_reports, table
from enginewright.plugins.build import build
from enginewright.plugins.libraries.cuda import CudaLibrary
from enginewright.plugins.libraries.locate import CUDA_LIBRARY, LibraryError, file_name
from enginewright.plugins.ops.registry import CALLS

KERNELS = ROOT / "plugins" / "csrc"
MAY_SPILL = {
    "prefill_kernel": 24,  # heads of 64 and of 256: their sums and fragments take all registers that their blocks leave
}
"""Kernel -> bytes that it may keep on the stack. None that decodes may."""


def has_nvcc() -> bool:
    return shutil.which("nvcc") is not None or bool(os.environ.get("CUDACXX"))


needs_nvcc = pytest.mark.skipif(not has_nvcc() or shutil.which("cmake") is None, reason="needs nvcc and cmake")


@pytest.fixture(scope="module")
def library() -> Path:
    return build(FOLDER, ort=False, cuda=True) / file_name(CUDA_LIBRARY)


@pytest.fixture(scope="module")
def kernels(library: Path) -> list[Kernel]:
    found = read_reports()
    print("\n".join(table(found)))
    return found


def declared_kernels() -> set[str]:
    """Names in the sources."""
    found = set()
    for path in (*KERNELS.rglob("*.cuh"), *KERNELS.rglob("*.cu")):
        if path.name not in ("ptx.cuh", "device.cuh"):
            found |= set(re.findall(r"EW_KERNEL\([^\n]*\)\s+(\w+)\(EW_CONSTANT", path.read_text()))
    return found


def test_sources_are_read() -> None:
    assert {"prepare_paged_kernel", "decode_paged_kernel", "out_kernel", "int4_linear_kernel"} <= declared_kernels()


@needs_nvcc
@pytest.mark.slow
def test_every_kernel_is_compiled_for_every_architecture(kernels: list[Kernel]) -> None:
    symbols = {name: {k.symbol for k in kernels if k.architecture == name} for name in ARCHITECTURES}
    assert {kernel.architecture for kernel in kernels} == set(ARCHITECTURES)
    assert all(found == symbols["sm_80"] for found in symbols.values())
    assert {kernel.name.rpartition("::")[2] for kernel in kernels} == declared_kernels()
    assert all(0 < kernel.registers <= 255 for kernel in kernels)


@needs_nvcc
@pytest.mark.slow
def test_no_kernel_spills(kernels: list[Kernel]) -> None:
    spilling = [k for k in kernels if max(k.stack, k.spills) > MAY_SPILL.get(k.name, 0)]
    assert not any("decode" in name for name in MAY_SPILL)
    assert not spilling, "registers do not suffice; give the launch bounds fewer blocks, or the kernel less to hold"


@needs_nvcc
@pytest.mark.slow
def test_the_library_exports_its_c_functions(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    lines = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    exported = [line.split()[1:] for line in lines.splitlines()]
    # the C++ library's own templates are weak symbols wherever they are compiled
    ours = {name for kind, name in exported if kind.isupper() and kind not in "WV"}
    assert {f"ew_cuda_{call.file_stem}{suffix}" for call in CALLS.values() for suffix in ("", "_workspace")} <= ours
    strange = {name for name in ours if not re.fullmatch(r"ew_\w+|RegisterCustomOps", name)}
    weak = {name for kind, name in exported if not (kind.isupper() and kind not in "WV")}
    assert not strange and all(re.match(r"_ZN?K?(St|SaI|9__gnu_cxx|ZN?K?St)", name) for name in weak)


@needs_nvcc
@pytest.mark.slow
def test_the_library_needs_no_framework(library: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    lines = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*?)\.so", lines)
    assert needed and set(needed) <= {
        "libstdc++",
        "libgcc_s",
        "libc",
        "libm",
        "libpthread",
        "libdl",
        "librt",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }


PTX, SASS = 1, 2


def fat_binary_entries(library: bytes) -> Iterator[tuple[int, int]]:
    """Kind and architecture of all device code in a library, off the headers of its fat binaries."""
    at = library.find(b"\x50\xed\x55\xba")
    while at >= 0:
        _, version, header, size = struct.unpack_from("<IHHQ", library, at)
        end = at + 4
        if (version, header) == (1, 16):
            entry, end = at + header, at + header + size
            while entry < end:
                kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, entry)
                yield kind, struct.unpack_from("<I", library, entry + 28)[0]
                entry += entry_header + entry_size
        at = library.find(b"\x50\xed\x55\xba", end)


@needs_nvcc
@pytest.mark.slow
def test_the_library_has_code_for_four_architectures(library: Path) -> None:
    found = Counter(fat_binary_entries(library.read_bytes()))
    assert set(found) == {(SASS, 80), (SASS, 90), (SASS, 100), (SASS, 120), (PTX, 120)}
    assert len(set(found.values())) == 1, "a source without one of them"


@needs_nvcc
@pytest.mark.slow
def test_the_library_loads_without_a_driver_and_says_so(library: Path) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    opened = CudaLibrary(library)
    with pytest.raises(LibraryError, match="device: driver: got none, expected an NVIDIA driver for CUDA 13"):
        opened.check_device()


REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN2ew8clp_emit10out_kernelILNS_4TypeE1ELb0ELb1EEEvNS0_4TaskE' for 'sm_80'
ptxas info    : Function properties for _ZN2ew8clp_emit10out_kernelILNS_4TypeE1ELb0ELb1EEEvNS0_4TaskE
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 98 registers, used 1 barriers, 536 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN2ew8clp_emit10out_kernelILNS_4TypeE0ELb0ELb1EEEvNS0_4TaskE' for 'sm_80'
ptxas info    : Function properties for _ZN2ew8clp_emit10out_kernelILNS_4TypeE0ELb0ELb1EEEvNS0_4TaskE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers, 536 bytes cmem[0]
"""


def test_a_report_is_read() -> None:
    spilling, other = read_report(REPORT)
    assert (spilling.name, spilling.architecture) == ("clp_emit::out_kernel", "sm_80")
    assert (spilling.registers, spilling.stack, spilling.spills) == (98, 16, 12)
    assert (other.registers, other.stack, other.spills) == (90, 0, 0)
    assert table([spilling, other])[2:] == [
        "| `clp_emit::out_kernel` | 2 | 90-98, stack 16, spills 12 | not compiled | not compiled | not compiled |"
    ]
