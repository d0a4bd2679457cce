"""The cores, memory and instruction set of this machine."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def physical_cores() -> int:
    """Return how many physical cores this process may use, at least 1; a container's CPU quota counts."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_core_of(cpu) for cpu in allowed})
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        cores = min(cores, -(-int(quota) // int(period)))
    return max(cores, 1)


def available_memory() -> int:
    """Return the bytes that this process can still take without swapping; a container's limit counts."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(_PROC / "meminfo"), re.MULTILINE)
    if found is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    free = int(found[1]) * 1024
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free


def compute_name() -> str:
    """Return this machine's name as in BuiltGraph.compute: the architecture, and on x86 the widest vectors that kernels use."""
    machine = platform.machine()
    if machine != "x86_64":
        return machine
    flags = set(_read(_PROC / "cpuinfo").partition("flags")[2].partition("\n")[0].split())
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
        return f"{machine}-avx512"
    return f"{machine}-avx2" if {"avx2", "fma", "f16c"} <= flags else machine


def _core_of(cpu: int) -> tuple[str, str]:
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    core = _read(topology / "core_id").strip()
    return _read(topology / "physical_package_id").strip(), core or f"cpu{cpu}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
