"""The fixture `isa`, which runs native tests once for each instruction set that this CPU has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from enginewright.plugins.libraries.cpu import set_cpu_isa


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces an instruction set for one test."""
    if not set_cpu_isa(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    yield request.param
    set_cpu_isa("auto")
