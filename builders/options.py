"""Options of a build: one set for all backends, of which each backend takes some."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from enginewright.runtime.errors import BuildError

PREFILL_CHUNK = 512
COMPUTES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""Compute capabilities that TensorRT-RTX builds for ahead of time; without --compute it builds for 8.0 and later."""
TAKEN: dict[str, frozenset[str]] = {
    "onnxruntime": frozenset(),
    "onnxruntime-cuda": frozenset(),
    "tensorrt": frozenset(
        {"prefill_chunk", "timing_cache", "weight_streaming", "strip_weights", "refit", "optimization_level"}
    ),
    "tensorrt-rtx": frozenset({"compute", "prefill_chunk", "weight_streaming", "optimization_level"}),
}
REASONS = {
    ("tensorrt", "compute"): "it builds for the GPU of the machine that it runs on",
    ("tensorrt-rtx", "timing_cache"): "it times nothing when it builds",
    ("tensorrt-rtx", "strip_weights"): "it cannot leave weights out without a GPU",
    ("tensorrt-rtx", "refit"): "it cannot make weights exchangeable without a GPU",
}


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """Options of a build; created from the command line by `from_arguments`. None or False means the backend's default.

    compute: GPUs to build for ahead of time, such as sm_86.
    prefill_chunk: the largest number of prompt tokens in one step that the engine is prepared for (512).
    timing_cache: a file of TensorRT's measurements, read and written; by default it lies next to the engine.
    weight_streaming: allow the weights to stay in host memory.
    strip_weights: leave the weights out of the plan; they come from the exported graph when the plan is loaded.
    refit: allow other weights at load.
    optimization_level: 0 to 5, TensorRT's own scale.
    """

    compute: tuple[str, ...] = ()
    prefill_chunk: int | None = None
    timing_cache: Path | None = None
    weight_streaming: bool = False
    strip_weights: bool = False
    refit: bool = False
    optimization_level: int | None = None

    def __post_init__(self) -> None:
        for name in self.compute:
            if name not in COMPUTES:
                raise BuildError(f"--compute: {_refuse_compute(name)}")
        if len(set(self.compute)) != len(self.compute):
            raise BuildError(f"--compute: got {','.join(self.compute)}, expected each name once; leave out the repeats")
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise BuildError(f"--prefill-chunk: got {self.prefill_chunk}, expected 1 or more")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise BuildError(f"--optimization-level: got {self.optimization_level}, expected 0 to 5")

    @property
    def chunk(self) -> int:
        """The largest number of prompt tokens in one step."""
        return self.prefill_chunk or PREFILL_CHUNK

    def check(self, backend: str) -> None:
        """Raise BuildError for the first option that is set but that `backend` does not take."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) == field.default or field.name in TAKEN[backend]:
                continue
            flag = "--" + field.name.replace("_", "-")
            takers = ", ".join(name for name, taken in TAKEN.items() if field.name in taken)
            why = REASONS.get((backend, field.name))
            raise BuildError(
                f"{flag}: got it with --backend {backend}, which does not take it{f': {why}' if why else ''}; "
                f"leave it out, or choose {takers}"
            )


def _refuse_compute(name: str) -> str:
    known = ", ".join(COMPUTES)
    if name in ("sm_90", "sm_100", "sm_103"):
        return (
            f"got {name}, expected one of {known}: TensorRT-RTX has no code for data-centre GPUs of that generation; "
            "use --backend tensorrt on a machine with such a GPU"
        )
    return f"unknown name {name!r}; known: {known}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of BackendOptions to a command line."""
    group = parser.add_argument_group("TensorRT", "options of --backend tensorrt and tensorrt-rtx")
    group.add_argument(
        "--compute", metavar="sm_86,...", help="tensorrt-rtx: GPUs to build for (default: sm_80 and later)"
    )
    group.add_argument(
        "--prefill-chunk", type=int, metavar="N", help=f"most prompt tokens in one step ({PREFILL_CHUNK})"
    )
    group.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="tensorrt: measurements to reuse (default: next to the engine)",
    )
    group.add_argument("--weight-streaming", action="store_true", help="allow weights to stay in host memory")
    group.add_argument("--strip-weights", action="store_true", help="tensorrt: a plan without weights, loaded later")
    group.add_argument("--refit", action="store_true", help="tensorrt: allow other weights at load")
    group.add_argument(
        "--optimization-level", type=int, metavar="0..5", help="effort of the build (TensorRT's default)"
    )


def from_arguments(arguments: argparse.Namespace) -> BackendOptions:
    """Return the options that the command line sets."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(BackendOptions)}
    values["compute"] = tuple(filter(None, (arguments.compute or "").split(",")))
    return BackendOptions(**values)


def to_arguments(options: BackendOptions) -> list[str]:
    """Return the command-line arguments that set `options`."""
    words = []
    for field in dataclasses.fields(options):
        value, flag = getattr(options, field.name), "--" + field.name.replace("_", "-")
        if value == field.default:
            continue
        words.append(flag)
        if value is not True:
            words.append(",".join(value) if isinstance(value, tuple) else str(value))
    return words
