"""Table of each GPU kernel's registers, stack and spills, as the compiler reports them.

    python -m benchmarks.kernels.gpu.compile_report

Table: docs/benchmarks/gpu-builds.md, "Registers and spills". Limit: a thread has at most 255 registers; what spills goes
through memory. Builds `libenginewright_cuda` into build/cuda, whose objects have ptxas's report next to them. Needs nvcc,
no GPU.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results_file import Condition, Figure, benchmark_parser, save

NAME = "benchmarks.kernels.gpu.compile_report"
ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "build" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")


@dataclass(kw_only=True)
class Kernel:
    """One instance of a kernel, compiled for one architecture; created by `read_report`.

    stack, spills: in bytes.
    """

    symbol: str
    architecture: str
    registers: int = -1
    stack: int = 0
    spills: int = 0

    @property
    def name(self) -> str:
        """The kernel's name without its template arguments: decode_paged_kernel, clp_emit::out_kernel."""
        parts = identifiers(self.symbol)
        return "::".join(part for part in parts if part != "ew" and not part.startswith("_GLOBAL__N_"))


def identifiers(symbol: str) -> list[str]:
    """The parts of a mangled name up to its template arguments: _ZN2ew9namespace6kernelILi1EEEv -> ew, namespace, kernel."""
    found, rest = [], re.sub(r"^_ZN?", "", symbol)
    while match := re.match(r"\d+", rest):
        length, rest = int(match[0]), rest[match.end() :]
        found.append(rest[:length])
        rest = rest[length:]
    return found or [symbol]


def read_report(text: str) -> list[Kernel]:
    """The kernels of one object file. The stack of the functions that a kernel calls counts as the kernel's own."""
    kernels: list[Kernel] = []
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            kernels.append(Kernel(symbol=match[1], architecture=match[2]))
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, *spills = map(int, match.groups())
            kernels[-1].stack += stack
            kernels[-1].spills += max(spills)
        elif match := re.search(r"Used (\d+) registers", line):
            kernels[-1].registers = int(match[1])
    return kernels


def read_reports(folder: Path = FOLDER) -> list[Kernel]:
    """All kernels of the library that was built in `folder`."""
    return [kernel for path in sorted(folder.rglob("*.report.txt")) for kernel in read_report(path.read_text())]


def grouped(kernels: Iterable[Kernel]) -> dict[str, dict[str, list[Kernel]]]:
    """Kernel -> architecture -> instances."""
    groups: dict[str, dict[str, list[Kernel]]] = defaultdict(lambda: defaultdict(list))
    for kernel in kernels:
        groups[kernel.name][kernel.architecture].append(kernel)
    return groups


def figures_of(kernels: Iterable[Kernel]) -> list[Figure]:
    """The largest numbers among each kernel's instances on each architecture; stack and spills only where there are any."""
    figures = []
    for name, by_architecture in sorted(grouped(kernels).items()):
        for architecture, instances in by_architecture.items():
            about: dict[str, Condition] = {"kernel": name, "architecture": architecture, "instances": len(instances)}
            for key, unit in (("registers", "registers"), ("stack", "bytes"), ("spills", "bytes")):
                most = max(getattr(kernel, key) for kernel in instances)
                if key == "registers" or most:
                    figures.append(Figure(name=f"{key}, most", value=most, unit=unit, conditions=about))
    return figures


def table(kernels: Iterable[Kernel]) -> list[str]:
    """The Markdown table: each kernel's registers, fewest to most of its instances, and any bytes of stack and spills."""
    groups = grouped(kernels)
    lines = [f"| kernel | instances | {' | '.join(ARCHITECTURES)} |", f"|{'---|' * (2 + len(ARCHITECTURES))}"]
    for name, by_architecture in sorted(groups.items()):
        count = max(map(len, by_architecture.values()))
        cells = (_cell(by_architecture[architecture]) for architecture in ARCHITECTURES)
        lines.append(f"| `{name}` | {count} | {' | '.join(cells)} |")
    return lines


def _cell(instances: list[Kernel]) -> str:
    if not instances:
        return "not compiled"
    registers = sorted({kernel.registers for kernel in instances})
    text = f"{registers[0]}" if len(registers) == 1 else f"{registers[0]}-{registers[-1]}"
    stack, spills = (max(getattr(kernel, name) for kernel in instances) for name in ("stack", "spills"))
    return f"{text}, stack {stack}, spills {spills}" if stack or spills else text


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    return benchmark_parser(NAME, __doc__)


def main(arguments: Sequence[str]) -> None:
    """Build the library, then print the table."""
    options = make_parser().parse_args(arguments)
    from enginewright.plugins.build import build

    build(FOLDER, ort=False, cuda=True)
    kernels = read_reports()
    print("\n".join(table(kernels)))
    save(options.results, NAME, arguments, figures_of(kernels))


if __name__ == "__main__":
    main(sys.argv[1:])
