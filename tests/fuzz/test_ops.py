"""Random and hostile calls of every op under the address and the undefined-behaviour sanitizers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from enginewright.plugins.build import build_sanitized
from enginewright.plugins.ops.registry import OPS
from tests.fuzz.op_calls import MAKERS
from tests.support.fuzzing.figures import Figures
from tests.support.fuzzing.rounds import rounds, seed
from tests.support.paths import ROOT


def test_every_op_has_calls() -> None:
    """A new op gets an entry in MAKERS."""
    assert MAKERS.keys() == OPS.keys()


@pytest.mark.slow
@pytest.mark.emulated
def test_no_call_reads_or_writes_out_of_bounds(figures: Figures) -> None:
    library = build_sanitized()
    calls = rounds(1000)
    runtime = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    settings = {
        "LD_PRELOAD": ":".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    command = [sys.executable, "-m", "tests.fuzz.drive_ops", str(library), str(calls), str(seed(0))]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout)
    counts, (slowest, op) = found["counts"], found["slowest"]
    figures.note(op, slowest, attempts=calls)
    figures.refused, figures.peak = counts["refused"], found["peak"]
    assert sum(counts.values()) == calls and counts.keys() == {*OPS, "refused"}
