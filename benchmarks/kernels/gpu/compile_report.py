"""What the compiler says of each kernel: registers, stack and spills, as a table.

    python -m benchmarks.kernels.gpu.compile_report

Builds `libenginewright_cuda` into build/cuda, whose objects have ptxas's report beside them. Needs nvcc, no GPU.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "build" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")


@dataclass(kw_only=True)
class Kernel:
    """One instance of a kernel as compiled for one architecture; bytes of stack and spills."""

    symbol: str
    architecture: str
    registers: int = -1
    stack: int = 0
    spills: int = 0

    @property
    def name(self) -> str:
        """Without its template arguments: decode_paged_kernel, clp_emit::out_kernel."""
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
    """The kernels of one object. What the functions that a kernel calls keep on the stack counts as its own."""
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


def table(kernels: Iterable[Kernel]) -> list[str]:
    """Markdown: of each kernel the registers, least to most of its instances, and any bytes of stack and spills."""
    groups: dict[str, dict[str, list[Kernel]]] = defaultdict(lambda: defaultdict(list))
    for kernel in kernels:
        groups[kernel.name][kernel.architecture].append(kernel)
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


def main() -> None:
    """Build, then print the table."""
    from enginewright.plugins.build import build

    build(FOLDER, ort=False, cuda=True)
    print("\n".join(table(read_reports())))


if __name__ == "__main__":
    main()
