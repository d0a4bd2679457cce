"""The fixture `isa`, which runs native tests once for each instruction set that this CPU has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from enginewright.plugins.libraries.cpu import set_cpu_isa


@pytest.fixture(
    params=[pytest.param("avx512", marks=pytest.mark.slow), pytest.param("avx2", marks=pytest.mark.slow), "portable"]
)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces an instruction set for one test; the quick suite has one of them."""
    if not set_cpu_isa(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    yield request.param
    set_cpu_isa("auto")


@pytest.fixture(
    params=[
        pytest.param("avx512bf16", marks=pytest.mark.slow),
        pytest.param("avx512vnni", marks=pytest.mark.slow),
        pytest.param("avx512", marks=pytest.mark.slow),
        pytest.param("avx2vnni", marks=pytest.mark.slow),
        pytest.param("avx2", marks=pytest.mark.slow),
        "portable",
    ]
)
def dot_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same with the instruction sets that have versions of kernels that multiply bytes or bfloat16."""
    if not set_cpu_isa(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    yield request.param
    set_cpu_isa("auto")
