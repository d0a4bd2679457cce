"""DepthMix through ONNX Runtime against its oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from op_session import run_op

from enginewright.plugins.ops import DEPTH_MIX

pytestmark = pytest.mark.native


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call; magnitude: of queries and keys, so that softmax goes from even to one-sided."""

    name: str
    tokens: int = 3
    query_heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    value_dim: int = 64
    sources: int = 2
    magnitude: float = 1.0
    scale: float | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes."""
        return {"scale": self.dim**-0.5 if self.scale is None else self.scale}


CASES = [
    Case(name="usual"),
    Case(name="one_token", tokens=1),
    Case(name="no_token", tokens=0),
    Case(name="one_source", sources=1),
    Case(name="many_sources", sources=23),
    Case(name="no_source", sources=0),
    Case(name="shape_of_half_a_billion", tokens=1, query_heads=14, kv_heads=2),
    Case(name="no_groups", query_heads=2),
    Case(name="one_group", query_heads=7, kv_heads=1),
    Case(name="odd_sizes", tokens=17, query_heads=9, kv_heads=3, dim=7, value_dim=5),
    Case(name="smallest", query_heads=1, kv_heads=1, dim=1, value_dim=1),
    Case(name="values_wider", dim=24, value_dim=104),
    Case(name="another_scale", scale=0.9),
    Case(name="negative_scale", scale=-0.5),
    Case(name="even", magnitude=0.0),
    Case(name="one_sided", magnitude=30.0, sources=5),
    Case(name="parallel", tokens=333, query_heads=32, kv_heads=8, dim=128, value_dim=128, sources=3),
]


def make_inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Random heads."""
    rng = np.random.default_rng(seed)

    def normal(heads: int, size: int, magnitude: float) -> np.ndarray:
        return (rng.standard_normal((case.tokens, heads, size)) * magnitude).astype(np.float32)

    arrays = {
        "query": normal(case.query_heads, case.dim, case.magnitude),
        "key": normal(case.kv_heads, case.dim, case.magnitude),
        "value": normal(case.kv_heads, case.value_dim, 1.0),
    }
    for source in range(case.sources):
        arrays[f"sources.{2 * source}"] = normal(case.kv_heads, case.dim, case.magnitude)
        arrays[f"sources.{2 * source + 1}"] = normal(case.kv_heads, case.value_dim, 1.0)
    return arrays


def expected(case: Case, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The oracle's answer."""
    sources = [x for name, x in arrays.items() if name.startswith("sources.")]
    operands = {name: x for name, x in arrays.items() if not name.startswith("sources.")}
    mixed: np.ndarray = DEPTH_MIX.load_oracle()(**operands, sources=sources, **case.attributes)
    return mixed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, isa: str) -> None:
    arrays = make_inputs(case)
    wanted = expected(case, arrays)
    # float32 rounding of scores near 1; a score of magnitude 30 * 30 * sqrt(64) * scale is uncertain by 1e-3 of weight
    tolerance = 3e-6 if case.magnitude <= 1 else 3e-3
    for threads in (2, 1):
        (got,) = run_op("DepthMix", arrays, threads, **case.attributes)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)


def test_threads_and_neighbours_change_no_bit(isa: str) -> None:
    case = next(case for case in CASES if case.name == "parallel")
    arrays = make_inputs(case)
    (two,), (one,) = (run_op("DepthMix", arrays, threads, **case.attributes) for threads in (2, 1))
    np.testing.assert_array_equal(two, one)
    (alone,) = run_op("DepthMix", {name: x[57:58] for name, x in arrays.items()}, **case.attributes)
    np.testing.assert_array_equal(alone[0], one[57])


def test_without_sources_the_value_stays(isa: str) -> None:
    case = Case(name="copy", sources=0, magnitude=40.0)
    arrays = make_inputs(case)
    np.testing.assert_array_equal(run_op("DepthMix", arrays, **case.attributes)[0], arrays["value"])


def test_scores_that_no_exponential_holds(isa: str) -> None:
    case = Case(name="extreme", sources=3, magnitude=1e4)
    arrays = make_inputs(case)
    (got,) = run_op("DepthMix", arrays, **case.attributes)
    np.testing.assert_allclose(got, expected(case, arrays), rtol=0, atol=1e-6)  # all weight on one layer


BAD: dict[str, Any] = {
    r"query: got 3 heads, expected a multiple of the key's 2": {"query": np.zeros((3, 3, 64), np.float32)},
    r"query: got 0 heads": {"query": np.zeros((3, 0, 64), np.float32)},
    r"key: got shape \[2, 2, 64\], expected \[T, Hkv, D\] = \[3, any, 64\]": {"key": np.zeros((2, 2, 64), np.float32)},
    r"value: got shape \[3, 1, 64\], expected \[T, Hkv, Dv\]": {"value": np.zeros((3, 1, 64), np.float32)},
    r"query and value: got an empty head": {"value": np.zeros((3, 2, 0), np.float32)},
    r"sources: got 3 tensors, expected a key and a value of each source": {"sources.3": None},
    r"sources\[0\]: got shape \[3, 4, 64\], expected \[T, Hkv, D\] = \[3, 2, 64\]": {
        "sources.0": np.zeros((3, 4, 64), np.float32)
    },
    r"sources\[3\]: got shape \[3, 2, 32\], expected \[T, Hkv, Dv\]": {"sources.3": np.zeros((3, 2, 32), np.float32)},
    r"scale: got inf, expected a finite number": {"scale": float("inf")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    case = Case(name="errors")
    arrays, attributes = make_inputs(case), dict(case.attributes)
    for name, value in BAD[message].items():
        (arrays if name in arrays else attributes)[name] = value
    arrays = {name: x for name, x in arrays.items() if x is not None}
    with pytest.raises(Exception, match="DepthMix: " + message):
        run_op("DepthMix", arrays, **attributes)
