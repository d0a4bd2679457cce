"""Reads and writes results files: the figures of one run of a benchmark, with its command and machine.

    {"benchmark": "benchmarks.speed.long_context", "command": "python -m benchmarks.speed.long_context --half ...",
     "machine": {"cpu": ..., "cores": 2, ...}, "commit": "0aa908d4f1c2-dirty", "date": "2026-11-29",
     "figures": [{"name": "decode step", "value": 66.0, "unit": "ms", "conditions": {"cache": "16 bits"}}], "notes": ""}

Every benchmark with figures takes `--results FILE` and writes such a file there. The files in results/ have the figures of the
docs. Standard library only, because the interpreters of other runtimes import this module, too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

CHECKOUT = Path(__file__).resolve().parent.parent
Made = TypeVar("Made")
NOT_RECORDED = "not recorded"
RUN = "python -m "

Condition: TypeAlias = str | int | float
"""The value of a condition, such as `"weights": "int4"` or `"batch": 8`."""


class ResultsError(ValueError):
    """A results file, or the data for one, is not valid."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number."""

    name: str
    """The quantity: `decode`, `decode step`, `right`."""
    value: float
    unit: str
    """`tokens/s`, `ms`, `%`; `times` for a ratio."""
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    """The conditions that distinguish this number from the others of the run: side, size, statistic."""
    interval: tuple[float, float] | None = None
    """95 % interval of the value."""

    def __post_init__(self) -> None:
        """Raises ResultsError: a field is empty, not finite, or of another type."""
        for key in ("name", "unit"):
            _check(isinstance(getattr(self, key), str) and getattr(self, key), key, getattr(self, key), "some text")
        _check(_is_finite(self.value), "value", self.value, "a finite number")
        for key, condition in self.conditions.items():
            _check(isinstance(condition, str) or _is_finite(condition), key, condition, "text or a finite number")
        if self.interval is not None:
            ordered = len(self.interval) == 2 and all(map(_is_finite, self.interval))
            ordered = ordered and self.interval[0] <= self.interval[1]
            _check(ordered, "interval", self.interval, "a lower and an upper bound")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine on which figures were measured; created by `this_machine` and `read`.

    Unknown texts are NOT_RECORDED, unknown numbers None.
    """

    cpu: str = NOT_RECORDED
    cores: int | None = None
    """Logical cores that the process may use."""
    memory_gib: float | None = None
    system: str = NOT_RECORDED
    python: str = NOT_RECORDED
    onnxruntime: str = NOT_RECORDED
    gpu: str = "none"


@dataclass(frozen=True, kw_only=True)
class Results:
    """The contents of a results file; created by `record` for a run, and by `read`."""

    benchmark: str
    """The module's name, as `python -m` takes it."""
    command: str
    machine: Machine
    commit: str
    """The commit of the checkout that measured; ends in -dirty if it had changes."""
    date: str
    """YYYY-MM-DD in UTC, or NOT_RECORDED."""
    figures: tuple[Figure, ...]
    notes: str = ""

    def __post_init__(self) -> None:
        """Raises ResultsError: the command runs another module, the date is not valid, or there are no figures."""
        begins = self.command.startswith(f"{RUN}{self.benchmark} ") or self.command == RUN + self.benchmark
        _check(begins, "command", self.command, f"{RUN}{self.benchmark} and its arguments")
        _check(self.date == NOT_RECORDED or _is_date(self.date), "date", self.date, f"YYYY-MM-DD or {NOT_RECORDED!r}")
        _check(self.commit, "commit", self.commit, f"a commit or {NOT_RECORDED!r}")
        _check(self.figures, "figures", [], "one at least")

    def arguments(self) -> list[str]:
        """The command's arguments, after the module's name."""
        return shlex.split(self.command)[3:]

    def write(self, file: Path) -> None:
        """Write the file completely or not at all."""
        staged = file.with_name(file.name + ".part")
        staged.write_text(json.dumps(_plain(self), indent=1, ensure_ascii=False) + "\n")
        staged.replace(file)


def read(file: Path) -> Results:
    """Read a results file.

    Raises:
        ResultsError: the file is not JSON, or a field is missing, unknown or not valid.
    """
    try:
        found = json.loads(file.read_text())
        machine = _made(Machine, found.pop("machine"))
        figures = tuple(_figure(each) for each in found.pop("figures"))
        return _made(Results, {**found, "machine": machine, "figures": figures})
    except (ResultsError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{file}: {error!r}; expected what benchmarks/results_file.py shows") from error


def benchmark_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of a benchmark's command line that already has `--results`.

    description: the module's docstring.
    """
    parser = argparse.ArgumentParser(
        prog=RUN + module, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=_results_path, metavar="FILE", help="write the figures there, as JSON")
    return parser


def print_lines(lines: Iterable[tuple[str, Sequence[Figure]]]) -> list[Figure]:
    """Print each line as it comes; return the figures of all lines."""
    figures: list[Figure] = []
    for line, found in lines:
        print(line, flush=True)
        figures += found
    return figures


def save(
    file: Path | None,
    module: str,
    arguments: Sequence[str],
    figures: Iterable[Figure],
    *,
    gpu: str = "",
    notes: str = "",
) -> None:
    """Write the figures of a run that just ended; do nothing if `file` is None because `--results` was not given."""
    if file is not None:
        record(module, arguments, figures, gpu=gpu, notes=notes).write(file)


def record(
    module: str, arguments: Sequence[str], figures: Iterable[Figure], *, gpu: str = "", notes: str = ""
) -> Results:
    """The results of a run that just ended on this machine."""
    return Results(
        benchmark=module,
        command=shlex.join([*RUN.split(), module, *_without_results(arguments)]),
        machine=this_machine(gpu),
        commit=this_commit(),
        date=datetime.now(UTC).date().isoformat(),
        figures=tuple(figures),
        notes=notes,
    )


def this_machine(gpu: str = "") -> Machine:
    """The machine that runs this process."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        onnxruntime=_version_of("onnxruntime"),
        gpu=gpu or "none",
    )


def this_commit() -> str:
    """The checkout's commit, with -dirty if files differ from it; NOT_RECORDED outside of git."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    except (OSError, subprocess.CalledProcessError):
        return NOT_RECORDED
    return done.stdout.strip() or NOT_RECORDED


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or NOT_RECORDED
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), NOT_RECORDED)


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _results_path(text: str) -> Path:
    """The argument of `--results`, refused before anything is measured if it cannot be written."""
    path = Path(text)
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a file in a folder that exists")
    return path


def _without_results(arguments: Sequence[str]) -> list[str]:
    """The arguments without `--results FILE`, which changes no figure."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--results" and not argument.startswith("--results="):
            kept.append(argument)
        skip = argument == "--results"
    return kept


def _figure(found: dict[str, Any]) -> Figure:
    interval = found.get("interval")
    return _made(Figure, {**found, "interval": None if interval is None else tuple(interval)})


def _made(kind: type[Made], found: dict[str, Any]) -> Made:
    """An instance of the dataclass with the keys of a JSON object."""
    known = [each.name for each in fields(kind)]  # type: ignore[arg-type]
    if unknown := set(found) - set(known):
        raise ResultsError(f"got {', '.join(sorted(unknown))}, expected some of {', '.join(known)}")
    return kind(**found)


def _plain(results: Results) -> dict[str, Any]:
    """The results as JSON; empty conditions and missing intervals are left out."""
    figures = [{key: x for key, x in asdict(figure).items() if x not in (None, {})} for figure in results.figures]
    return {**asdict(results), "figures": figures}


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _check(met: object, name: str, got: object, expected: str) -> None:
    if not met:
        raise ResultsError(f"{name}: got {got!r}, expected {expected}")
