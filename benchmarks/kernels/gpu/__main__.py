"""Speed of the GPU kernels: times, bandwidths and ratios to torch's best, with the targets that they must reach.

    python -m benchmarks.kernels.gpu [--only decode,prefill,flush,mix,emit,linear,split,greedy] [--json FILE] [--quick]

Table: docs/benchmarks/gpu-builds.md, "Targets". Needs one NVIDIA GPU, the library (`python -m enginewright.plugins.build
--cuda`) and torch with CUDA; flash-attn takes part where it is installed. Exit status 1: a target is missed.

Limits: bandwidths are printed as shares of a copy (its reads and writes) and of a read, both measured in the same run. Our
call and torch's alternate within one run, as CUDA graphs, on sets of memory that together do not fit the last-level cache.
The best of all rounds counts, the median is shown. `--json` writes every field of every result, `--results` the figures in
the form of all benchmarks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results_file import Figure, benchmark_parser, save, this_commit
from enginewright.plugins.libraries.cuda import CudaLibrary, open_cuda_library
from enginewright.plugins.libraries.locate import LibraryError

if TYPE_CHECKING:
    from benchmarks.kernels.gpu.comparisons import Sizes
    from benchmarks.kernels.gpu.measure import KernelMeasurement
    from benchmarks.kernels.gpu.timing import Timer

GIB = 1 << 30
NAME = "benchmarks.kernels.gpu"
CHECKOUT = Path(__file__).resolve().parents[3]


def open_device() -> CudaLibrary:
    """Open the library, after a check that this machine can run it and torch.

    Raises:
        LibraryError: the library, its device, or torch with CUDA is missing.
    """
    library = open_cuda_library()
    library.check_device()
    if importlib.util.find_spec("torch") is None:
        raise LibraryError("benchmarks.kernels.gpu: got no torch, which owns the memory; do: pip install torch")
    import torch

    if not torch.cuda.is_available():
        raise LibraryError(
            f"benchmarks.kernels.gpu: got torch {torch.__version__}, which sees no GPU, expected one with CUDA; do: pip install torch "
            "from an index of CUDA builds, as pytorch.org says"
        )
    return library


def output_of(*command: str) -> str:
    """The output of a command, without its last newline; empty if the command is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def facts(library: CudaLibrary, arguments: Sequence[str]) -> dict[str, Any]:
    """The facts that a run depends on: device, clocks, versions, date, commit, command."""
    import torch

    query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
    properties = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "device": properties.name if properties else "none",
        "multiprocessors": properties.multi_processor_count if properties else 0,
        "cache_bytes": properties.L2_cache_size if properties else 0,
        "driver and clocks": output_of("nvidia-smi", query, "--format=csv"),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "library": library.version,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": this_commit(),
        "command": " ".join(["python -m benchmarks.kernels.gpu", *arguments]),
    }


def measure_all(
    library: CudaLibrary, timer: Timer, sizes: Sizes, only: Iterable[str], *, buffer: int = GIB, compiled: bool = True
) -> tuple[dict[str, float], list[KernelMeasurement]]:
    """Measure the bandwidths, in bytes a second, and the groups in `only`; print each measurement as it comes."""
    from benchmarks.kernels.gpu.comparisons import comparisons
    from benchmarks.kernels.gpu.measure import run_comparison
    from benchmarks.kernels.gpu.timing import measure_bandwidth

    bandwidth = measure_bandwidth(timer, buffer)
    print(f"copy {bandwidth.copy / 1e9:.0f} GB/s (reads and writes), read {bandwidth.read / 1e9:.0f} GB/s", flush=True)
    results: list[KernelMeasurement] = []
    for comparison in comparisons(sizes):
        if comparison.group in only:
            for result in run_comparison(comparison, library, timer, bandwidth, compiled):
                print(result, flush=True)
                results.append(result)
    return asdict(bandwidth), results


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = benchmark_parser(NAME, __doc__)
    parser.add_argument("--only", help="groups, comma-separated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write facts and results there too")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds, no baselines of torch.compile")
    return parser


def figures_of(bandwidth: dict[str, float], results: Iterable[KernelMeasurement]) -> list[Figure]:
    """The bandwidths; for each measurement its best time and, where there is a baseline, the ratio to torch's best."""
    figures = [Figure(name=f"plain {way}", value=rate / 1e9, unit="GB/s") for way, rate in bandwidth.items()]
    for result in results:
        about = {"group": result.group, "size": result.name, "op": result.op}
        figures.append(Figure(name="best time", value=result.best, unit="us", conditions=about))
        if result.bytes:
            figures.append(Figure(name="share of copying", value=100 * result.copy_share, unit="%", conditions=about))
        if result.baseline:
            about = {**about, "baseline": result.baseline}
            figures.append(Figure(name="torch's best / ours, time", value=result.ratio, unit="times", conditions=about))
    return figures


def main(arguments: Sequence[str]) -> int:
    """Measure the groups that the command line asks for; return the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    library = open_device()
    from benchmarks.kernels.gpu.comparisons import FULL, QUICK, groups
    from benchmarks.kernels.gpu.timing import CudaTimer

    known = groups(FULL)
    only = options.only.split(",") if options.only else known
    if unknown := set(only) - set(known):
        parser.error(f"--only: got {', '.join(sorted(unknown))}, expected some of {', '.join(known)}")
    about = facts(library, arguments)
    for name, fact in about.items():
        print(f"{name}: {fact}")
    timer = CudaTimer(rounds=4 if options.quick else 12)
    sizes = QUICK if options.quick else FULL
    bandwidth, results = measure_all(library, timer, sizes, only, compiled=not options.quick)
    if options.json:
        written = {"facts": about, "bandwidth": bandwidth, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(written, indent=1) + "\n")
    notes = f"library {about['library']}; torch {about['torch']}; {about['driver and clocks']}"
    save(options.results, NAME, arguments, figures_of(bandwidth, results), gpu=about["device"], notes=notes)
    missed = sum(not met for result in results for met in result.targets.values())
    print(f"{missed} targets missed of {sum(len(result.targets) for result in results)}")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LibraryError as error:
        sys.exit(str(error))
