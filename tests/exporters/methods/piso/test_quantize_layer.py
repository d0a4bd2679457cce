"""Tests of whole quantised layers: orderings that the method promises, and inputs that a calibration can give."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from enginewright.exporters.methods.piso.quantize_layer import LayerResult, LayerSettings, quantize_layer
from enginewright.runtime.errors import ExportError
from tests.support.exporters.piso_reference import GROUPS_OF_4, example

pytestmark = pytest.mark.native
Array = NDArray[np.float64]


def layer(rows: int, d: int, seed: int, tokens: int | None = None) -> tuple[Array, Array, Array]:
    """Weights, inputs of the float model, and those of the quantised one; some channels are outliers."""
    rng = np.random.default_rng(seed)
    gain = np.exp(0.5 * rng.standard_normal(d))
    gain[:: max(d // 8, 2)] *= 8
    x = (rng.standard_normal((tokens or 4 * d + 3, d)) + 0.3 * rng.standard_normal((1, d))) * gain
    rough = x + 0.1 * rng.standard_normal(x.shape) * np.abs(x).mean()
    return 0.02 * rng.standard_normal((rows, d)), x, rough


def run(w: Array, h: Array, g: Array | None = None, **settings: Any) -> LayerResult:
    tensors = [None if a is None else torch.tensor(a, dtype=torch.float32) for a in (w, h, g)]
    assert tensors[0] is not None and tensors[1] is not None
    return quantize_layer(tensors[0], tensors[1], tensors[2], LayerSettings(**{"signed": False, **settings}))


def restore(found: LayerResult) -> Array:
    scales, codes = found.scales.double().numpy(), found.codes.double().numpy()
    return np.repeat(scales, codes.shape[1] // scales.shape[1], 1) * codes


def errors(found: LayerResult, w: Array, x: Array, rough: Array | None = None) -> Array:
    """Squared output error of each row."""
    rest = x @ w.T - (x if rough is None else rough) @ restore(found).T
    return np.square(rest).sum(0)


@pytest.mark.parametrize("is_cross", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize(("bits", "narrow"), [(2, False), (2, True), (3, False), (4, False), (8, False)])
def test_no_other_scale_of_a_row_is_better(bits: int, narrow: bool, is_cross: bool) -> None:
    """Each row, always, without correction. float32: 1e-4 of the outputs' energy is beyond its sums."""
    plain: dict[str, Any] = {"bits": bits, "narrow": narrow, "group_size": 0, "correction": "none"}
    for seed, d in enumerate((1, 2, 3, 7, 16, 31, 64, 5, 11, 24)):
        w, x, rough = layer(12, d, seed + 100 * bits)
        rough = rough if is_cross else x
        h, g = rough.T @ rough, rough.T @ x if is_cross else None
        best = errors(run(w, h, g, **plain), w, x, rough)
        slack = 1e-6 * np.square(x @ w.T).sum(0)
        for change in ({"scales": "absmax"}, {"scales": "mse"}, {"diagonal": True}, {"refit": False, "signed": False}):
            other = errors(run(w, h, g, **{**plain, **change}), w, x, rough)
            assert (best <= other * (1 + 1e-4) + slack).all(), change
        for change in ({"refit": True}, {"signed": True}):
            assert (errors(run(w, h, g, **{**plain, **change}), w, x, rough) <= best * (1 + 1e-4) + slack).all(), change


def mean_error(bits: int, seed: int, is_cross: bool = False, **settings: Any) -> float:
    """The mean error over rows as a share of the output's energy; D = 256."""
    w, x, rough = layer(24, 256, seed)
    rough = rough if is_cross else x
    found = run(w, rough.T @ rough, rough.T @ x if is_cross else None, bits=bits, **settings)
    return float((errors(found, w, x, rough) / np.square(x @ w.T).sum(0)).mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", [7, 8])
def test_orderings_of_rows(bits: int, seed: int) -> None:
    """Without correction, absmax > mse > diagonal > dense; correction beats all of them, least with scales of absmax."""
    plain: dict[str, Any] = {"group_size": 0, "correction": "none"}
    changes: list[dict[str, Any]] = [{"scales": "absmax"}, {"scales": "mse"}, {"diagonal": True}, {}]
    means = [mean_error(bits, seed, **plain, **change) for change in changes]
    assert means == sorted(means, reverse=True)
    absmax, best = (mean_error(bits, seed, group_size=0, scales=scales) for scales in ("absmax", "piso"))
    assert best < absmax < means[0]
    assert best < means[-1]


@pytest.mark.parametrize("seed", [7, 8])
def test_orderings_of_groups(seed: int) -> None:
    """2 bits, groups of 16, absmax > mse > independent > sequential; correction after either beats it."""
    plain: dict[str, Any] = {"group_size": 16, "correction": "none"}
    changes: list[dict[str, Any]] = [{"scales": "absmax"}, {"scales": "mse"}, {"sequential": False}, {}]
    means = [mean_error(2, seed, **plain, **change) for change in changes]
    assert means == sorted(means, reverse=True)
    for interleave in ("group", "layer"):
        assert mean_error(2, seed, group_size=16, interleave=interleave) < means[-1]


@pytest.mark.parametrize("seed", [7, 8])
def test_qronos_makes_up_for_inputs(seed: int) -> None:
    for group_size in (32, 0):
        gptq, qronos = (
            mean_error(3, seed, True, correction=name, group_size=group_size) for name in ("gptq", "qronos")
        )
        assert qronos < gptq


@pytest.mark.parametrize(("bits", "sequential", "scales", "error"), GROUPS_OF_4)
def test_reference_values_of_groups(bits: int, sequential: bool, scales: Any, error: float) -> None:
    w, _, _, h = example()
    found = run(w[None], h, bits=bits, sequential=sequential, group_size=4, correction="none")
    assert (*found.scales[0].tolist(), found.error) == pytest.approx((*scales, error), abs=1e-5)


@pytest.mark.parametrize("correction", ["none", "gptq", "qronos"])
@pytest.mark.parametrize(("d", "size"), [(1, 1), (1, 0), (7, 1), (13, 0), (15, 5), (130, 65), (131, 0)])
def test_awkward_sizes(d: int, size: int, correction: Any) -> None:
    """Shapes, types, and the error as its definition gives it."""
    for rows in (0, 1, 3):
        w, x, rough = layer(rows, d, d)
        for is_cross in (False, True):
            h, g = (rough.T @ rough, rough.T @ x) if is_cross else (x.T @ x, None)
            found = run(w, h, g, group_size=size, correction=correction, bits=3)
            assert found.codes.shape == (rows, d) and found.codes.dtype is torch.int8
            assert found.scales.shape == (rows, d // (size or d)) and found.scales.dtype is torch.float32
            v = restore(found)
            expected = np.trace((w - v) @ h @ (w - v).T)
            if g is not None and correction != "gptq":
                expected = np.trace(v @ h @ v.T) - 2 * np.trace(v @ g @ w.T)
            assert found.error == pytest.approx(expected, rel=1e-3, abs=1e-5 * np.square(x @ w.T).sum())


@pytest.mark.parametrize("scale_type", ["bfloat16", "float16"])
def test_types_of_scales(scale_type: Any) -> None:
    """Scales are what their type holds; without correction the codes stay those of the unrounded scale."""
    w, x, _ = layer(40, 64, 3)
    h = x.T @ x
    plain: dict[str, Any] = {"group_size": 16, "correction": "none", "sequential": False}
    exact, stored = run(w, h, **plain), run(w, h, scale_type=scale_type, **plain)
    assert (stored.scales == exact.scales.to(getattr(torch, scale_type)).float()).all()
    assert (stored.codes == exact.codes).all()
    ratio = w.reshape(40, 4, 16) / stored.scales.double().numpy()[..., None]
    anew = np.clip(np.floor(ratio + 0.5), -8, 7)
    assert (anew.reshape(40, 64) != stored.codes.numpy()).any(), "the case must tell codes kept from codes chosen anew"
    assert stored.error < 1.05 * exact.error
    for correction in ("gptq", "qronos"):
        found = run(w, h, scale_type=scale_type, correction=correction, group_size=16)
        assert (found.scales == found.scales.to(getattr(torch, scale_type)).float()).all()
        assert found.error < exact.error


def test_scales_beyond_float16() -> None:
    plain: dict[str, Any] = {"group_size": 0, "scale_type": "float16"}
    w = np.array([[1e-9, -3e-9], [1e-6, -7e-7], [0, 0]])
    for correction in ("none", "gptq"):
        found = run(w, np.eye(2), correction=correction, **plain)
        assert (found.scales > 0).all()
        ratio = np.clip(w / found.scales.double().numpy(), -8, 7)
        assert (np.abs(found.codes.numpy() - ratio) < 0.501).all(), "codes fit the scale that is stored"
    with pytest.raises(ExportError, match=r"piso: scale_type: got a scale of .*e\+06, expected a float16; use float32"):
        run(1e7 * np.ones((1, 2)), np.eye(2), scales="absmax", **plain)


CHOICES = [
    {"scales": scales, "correction": correction, "interleave": interleave, "group_size": size}
    for scales, correction, interleave, size in itertools.product(
        ("piso", "mse", "absmax"), ("none", "gptq", "qronos"), ("layer", "group"), (4, 0)
    )
]


@pytest.mark.parametrize("settings", CHOICES, ids=lambda choice: "-".join(str(value) for value in choice.values()))
def test_degenerate_moments(settings: dict[str, Any]) -> None:
    """No calibration, constant inputs, channels and groups that never fire, weights of 0: all finite, nothing raised."""
    w, x, rough = layer(6, 16, 2)
    w[1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = run(w, np.zeros((16, 16)), np.zeros((16, 16)), **settings)
    free = {**settings, "correction": "none", "scales": "absmax" if settings["scales"] == "absmax" else "mse"}
    assert (empty.scales == run(w, np.eye(16), **free).scales).all()
    assert (empty.codes == run(w, np.eye(16), **free).codes).all() and empty.error == 0

    dead = [2, 4, 5, 6, 7]
    x[:, dead], rough[:, dead] = 0, 0
    found = run(w, rough.T @ rough, rough.T @ x, **settings)
    ratio = w / np.repeat(found.scales.double().numpy(), 16 // found.scales.shape[1], 1)
    assert np.isfinite(ratio).all() and (found.codes[1] == 0).all()
    assert (np.abs(np.clip(ratio, -8, 7) - found.codes.numpy())[:, dead] < 0.501).all(), "rounded to the nearest"
    if settings["group_size"] == 4 and settings["correction"] == "none":
        assert (found.scales[:, 1] == run(w[:, 4:8], np.eye(4), **{**free, "group_size": 4}).scales[:, 0]).all()

    constant = np.outer(x[0], x[0])
    found = run(w, constant, constant, **settings)
    assert found.scales.isfinite().all() and np.isfinite(found.error)
    if settings["correction"] != "none":
        assert found.error <= 1e-2 * float(np.square(w @ x[0]).sum())


def test_moments_that_cannot_be_factored() -> None:
    x = np.random.default_rng(4).standard_normal((50, 12))
    w, h = x[:3], x.T @ x
    lowest = np.linalg.eigvalsh(h)[0]
    with pytest.warns(UserWarning, match="piso: hessian: not positive definite when damped by .*; damped by") as seen:
        found = run(w, h - (lowest + 0.02 * h.diagonal().mean()) * np.eye(12), group_size=4)
    assert len(seen) == 1 and found.scales.isfinite().all()
    broken = h - 2 * (h - np.diag(h.diagonal())) * 1e6
    with pytest.warns(UserWarning, match="the layer is rounded without correction") as seen:
        found = run(w, broken, group_size=4, scales="mse")
    assert len(seen) == 1
    assert (found.codes == run(w, broken, group_size=4, scales="mse", correction="none").codes).all()


def test_rows_that_no_scale_serves_get_codes_of_0() -> None:
    """Inputs of the opposite sign: every scale adds error; such a row's scale is still one that fits its weights."""
    w, x, _ = layer(5, 12, 6)
    h = np.diag(np.square(x).sum(0))
    for settings in (
        {"group_size": 0},
        {"group_size": 4, "sequential": False},
        {"group_size": 0, "diagonal": True},
    ):
        found = run(w, h, -h, correction="none", **settings)
        assert (found.codes == 0).all() and found.error == 0
        assert (found.scales == run(w, h, None, correction="none", **{**settings, "scales": "mse"}).scales).all()


def test_ties_go_up() -> None:
    w = torch.tensor([[0.5, 1.5, -0.5, -1.5, 7.5, -8.5]])
    for correction in ("none", "gptq", "qronos"):
        settings = LayerSettings(group_size=0, correction=correction)
        found = quantize_layer(w, torch.eye(6), None, settings, scales=torch.ones(1, 1))
        assert found.codes.tolist() == [[1, 2, 0, -1, 7, -8]]


def test_frozen_scales() -> None:
    w, x, rough = layer(5, 24, 6)
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (w, rough.T @ rough, rough.T @ x)]
    settings = LayerSettings(group_size=8, correction="none", signed=False, scale_type="bfloat16")
    scales = quantize_layer(*tensors, settings).scales
    for correction in ("none", "gptq", "qronos"):
        found = quantize_layer(*tensors, replace(settings, correction=correction), scales=scales)
        assert (found.scales == scales).all()
        ratio = w / np.repeat(scales.double().numpy(), 8, 1)
        is_nearest = (np.abs(np.clip(ratio, -8, 7) - found.codes.numpy()) < 0.501).all()
        assert is_nearest == (correction == "none")


def test_scales_of_a_layer_do_not_see_its_correction() -> None:
    w, x, _ = layer(5, 24, 6)
    plain, found = (
        run(w, x.T @ x, group_size=8, interleave="layer", correction=correction) for correction in ("none", "gptq")
    )
    assert (found.scales == plain.scales).all() and (found.codes != plain.codes).any()
    assert (run(w, x.T @ x, group_size=8).scales != plain.scales).any()


def test_gptq_knows_no_cross_term_and_qronos_needs_none() -> None:
    w, x, rough = layer(5, 24, 6)
    h, g = rough.T @ rough, rough.T @ x
    for interleave in ("layer", "group"):
        with_cross, without = (run(w, h, cross, group_size=8, interleave=interleave) for cross in (g, None))
        assert (with_cross.codes == without.codes).all() and with_cross.error == without.error
        same, own = (
            run(w, h, cross, group_size=8, interleave=interleave, correction="qronos", scales="mse")
            for cross in (h, None)
        )
        assert (same.codes == own.codes).float().mean() > 0.95
        assert own.error < 1.2 * run(w, h, group_size=8, interleave=interleave, scales="mse").error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.zeros(4)}, r"weights: got shape \[4\], expected \[rows, columns\]"),
        ({"weights": torch.full((2, 8), torch.nan)}, "weights: got numbers that are not finite"),
        ({"hessian": torch.eye(4)}, r"hessian: got shape \[4, 4\], expected \[8, 8\]"),
        ({"hessian": torch.full((8, 8), torch.nan)}, "hessian: got numbers that are not finite"),
        ({"hessian": -torch.eye(8)}, "hessian: got a negative diagonal"),
        ({"cross": torch.eye(4)}, r"cross: got shape \[4, 4\], expected \[8, 8\]"),
        ({"cross": torch.full((8, 8), torch.inf)}, "cross: got numbers that are not finite"),
        ({"scales": torch.ones(2, 8)}, r"scales: got shape \[2, 8\], expected \[2, 2\]"),
        ({"scales": torch.zeros(2, 2)}, "scales: got a scale of 0"),
        ({"weights": torch.zeros(2, 6), "hessian": torch.eye(6)}, "group_size: got 4, expected a divisor of the 6"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"weights": torch.ones(2, 8), "hessian": torch.eye(8), "cross": torch.eye(8), **change}
    settings = LayerSettings(group_size=4, correction="none")
    with pytest.raises(ExportError, match=f"piso: {message}"):
        quantize_layer(call["weights"], call["hessian"], call["cross"], settings, scales=call.get("scales"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 1}, "bits: got 1, expected 2 to 8"),
        ({"bits": 9}, "bits: got 9, expected 2 to 8"),
        ({"group_size": -1}, "got group_size=-1, expected a multiple of 16, or 0 for whole rows"),
        ({"scales": "best"}, "scales: got 'best', expected piso, mse, absmax"),
        ({"correction": "GPTQ"}, "correction: got 'GPTQ', expected none, gptq, qronos"),
        ({"interleave": "row"}, "interleave: got 'row', expected decoupled, layer, group"),
        ({"scale_type": "float64"}, "scale_type: got 'float64', expected float32, bfloat16, float16"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=f"piso: {message}"):
        LayerSettings(**change)
