"""Tests of sums of products, and of the products, at sizes around those of the blocks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from enginewright.exporters.calibration import fast_linear
from enginewright.exporters.calibration.fast_linear import FastLinear, multiply
from enginewright.exporters.calibration.moments import Moments

CPU = torch.device("cpu")
TOLERANCE = 1e-6  # of the largest value: float32 sums of 37 products


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers, the same ones at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare with a sum in double precision."""
    assert found.dtype == torch.float32
    assert (found.double() - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 5, 767, 768, 769, 1600])
def test_moments(width: int, dtype: torch.dtype) -> None:
    batches = [(drawn(n, width, dtype=dtype), drawn(n, width, dtype=dtype) - 1) for n in (20, 1, 16)]
    square, cross = Moments(width, cross=False, device=CPU), Moments(width, cross=True, device=CPU)
    for a, b in batches:
        square.add(a)
        cross.add(a, b)
    found = square.finish()
    assert_close(found, sum(a.double().T @ a.double() for a, _ in batches))  # type: ignore[arg-type]
    assert_close(cross.finish(), sum(a.double().T @ b.double() for a, b in batches))  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 7), (2, 5, 7), (0, 7)])
def test_products(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing:
        monkeypatch.setattr(fast_linear, "_PRODUCT", None)
    x, w, b = drawn(*shape, dtype=dtype), drawn(11, 7, dtype=dtype), drawn(11, dtype=dtype) if bias else None
    expected = functional.linear(x, w, b)
    assert multiply(x, w, b).dtype == dtype
    torch.testing.assert_close(multiply(x, w, b), expected)
    with FastLinear():
        torch.testing.assert_close(functional.linear(x, w, b), expected)
        torch.testing.assert_close(functional.linear(x, weight=w, bias=b), expected)
        assert torch.equal(functional.silu(x), torch.nn.SiLU()(x)), "what is no product is left alone"
