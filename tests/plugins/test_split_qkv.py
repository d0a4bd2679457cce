"""SplitQkv through ONNX Runtime against its oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from op_session import run_op

from enginewright.plugins.ops import SPLIT_QKV

pytestmark = pytest.mark.native


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call; half: dimensions that turn with another one, 0 without rotation."""

    name: str
    tokens: int = 3
    query_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    value_dim: int = 64
    half: int = 32
    norm: bool = False
    epsilon: float | None = None
    magnitude: float = 1.0

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes; the default is left out so that it is tested."""
        sizes = {name: getattr(self, name) for name in ("query_heads", "kv_heads", "head_dim", "value_dim")}
        return sizes if self.epsilon is None else {**sizes, "epsilon": self.epsilon}


CASES = [
    Case(name="rotated"),
    Case(name="one_token", tokens=1),
    Case(name="no_token", tokens=0),
    Case(name="many_tokens", tokens=333),
    Case(name="plain", half=0),
    Case(name="normalised", half=0, norm=True),
    Case(name="both", norm=True, tokens=17),
    Case(name="epsilon_counts", norm=True, epsilon=0.5, magnitude=0.1),
    Case(name="default_epsilon_counts", norm=True, magnitude=1e-3),
    Case(name="partial", half=13),
    Case(name="partial_both", half=24, norm=True, head_dim=80, value_dim=80),
    Case(name="odd_sizes", query_heads=3, kv_heads=1, head_dim=7, value_dim=5, half=3, norm=True),
    Case(name="smallest", query_heads=1, kv_heads=1, head_dim=1, value_dim=1, half=0, norm=True),
    Case(name="values_wider", value_dim=96),
    Case(name="parallel", tokens=100, query_heads=32, kv_heads=8, head_dim=128, value_dim=128, half=64, norm=True),
]


def make_inputs(case: Case) -> dict[str, np.ndarray]:
    """Random projections; angles of every size."""
    rng = np.random.default_rng(0)
    width = (case.query_heads + case.kv_heads) * case.head_dim + case.kv_heads * case.value_dim
    arrays = {"packed": (rng.standard_normal((1, case.tokens, width)) * case.magnitude).astype(np.float32)}
    if case.half:
        angles = rng.uniform(-10, 10, (1, case.tokens, case.half))
        arrays |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}
    if case.norm:
        arrays["query_norm"] = rng.standard_normal(case.head_dim).astype(np.float32)
        arrays["key_norm"] = rng.standard_normal(case.head_dim).astype(np.float32)
    return arrays


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle(case: Case, isa: str) -> None:
    arrays = make_inputs(case)
    expected = SPLIT_QKV.load_oracle()(**arrays, **case.attributes)
    for threads in (2, 1):
        for got, wanted in zip(run_op("SplitQkv", arrays, threads, **case.attributes), expected, strict=True):
            assert got.shape == wanted.shape
            # a few float32 roundings of numbers near 4
            np.testing.assert_allclose(got, wanted, rtol=0, atol=3e-6)


def test_a_token_is_bitwise_the_same_alone(isa: str) -> None:
    case = next(case for case in CASES if case.name == "parallel")
    arrays = make_inputs(case)
    alone = {name: x[:, 57:58] if x.ndim == 3 else x for name, x in arrays.items()}
    together = run_op("SplitQkv", arrays, **case.attributes)
    for one, all_of_them in zip(run_op("SplitQkv", alone, **case.attributes), together, strict=True):
        np.testing.assert_array_equal(one[0], all_of_them[57])


BAD: dict[str, Any] = {
    r"packed: got shape \[1, 3, 511\], expected .* = \[1, any, 512\]": {"packed": np.zeros((1, 3, 511), np.float32)},
    r"packed: got shape \[2, 3, 512\]": {"packed": np.zeros((2, 3, 512), np.float32)},
    r"cos: got shape \[1, 2, 32\], expected \[1, T, R\] = \[1, 3, any\]": {"cos": np.zeros((1, 2, 32), np.float32)},
    r"sin: got shape \[1, 3, 31\], expected \[1, T, R\] = \[1, 3, 32\]": {"sin": np.zeros((1, 3, 31), np.float32)},
    r"cos: got R = 33, expected at most half of D = 64": dict.fromkeys(
        ("cos", "sin"), np.zeros((1, 3, 33), np.float32)
    ),
    r"sin: got only one of the two, expected both or neither of it and cos": {"sin": None},
    r"key_norm: got only one of the two, expected both or neither of it and query_norm": {"key_norm": None},
    r"query_norm: got shape \[63\], expected \[D\] = \[64\]": {"query_norm": np.zeros(63, np.float32)},
    r"kv_heads: got 0, expected 1 or more": {"kv_heads": 0},
    r"epsilon: got -1\.0+, expected 0 or more": {"epsilon": -1.0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message: str) -> None:
    case = Case(name="errors", norm=True)
    arrays, attributes = make_inputs(case), dict(case.attributes)
    for name, value in BAD[message].items():
        (arrays if name in arrays else attributes)[name] = value
    arrays = {name: x for name, x in arrays.items() if x is not None}
    with pytest.raises(Exception, match="SplitQkv: " + message):
        run_op("SplitQkv", arrays, **attributes)
