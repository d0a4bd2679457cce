"""Native tests run once per instruction set that this CPU has."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from enginewright.plugins.library import set_cpu_isa

sys.path.insert(0, str(Path(__file__).parent))  # attention_case, attention_cases, op_session


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces an instruction set for one test."""
    if not set_cpu_isa(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    yield request.param
    set_cpu_isa("auto")
