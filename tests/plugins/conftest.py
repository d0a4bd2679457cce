"""Native tests run once per instruction set that this CPU has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginewright.plugins.libraries.cpu import set_cpu_isa

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # attention_case, attention_cases, op_session
sys.path.append(str(HERE.parent / "gpu"))  # device, attention_calls: the plugins' kernels are those of its tests


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces an instruction set for one test."""
    if not set_cpu_isa(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    yield request.param
    set_cpu_isa("auto")
