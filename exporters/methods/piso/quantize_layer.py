"""Quantises the weights of one layer, from the moments of its inputs.

Source: PiSO, arXiv 2606.10890, sections 3 and 4, appendices A and B.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from enginewright.exporters.methods.piso.error_correction import correct
from enginewright.exporters.methods.piso.scales import ScaleFitter
from enginewright.exporters.methods.piso.settings import LayerSettings
from enginewright.exporters.methods.piso.solver import quadratic_errors
from enginewright.runtime.errors import ExportError

__all__ = ["LayerResult", "LayerSettings", "quantize_layer"]


@dataclass(frozen=True)
class LayerResult:
    """Codes and scales whose product v is close to the weights w; `quantize_layer` creates it.

    codes: int8 [C, D].
    scales: float32 [C, groups], whose values the settings' scale_type holds.
    error: (w - v)' H (w - v), summed over rows. With a cross term G it is v' H v - 2 v' G w, which lacks the constant
        w' X'X w, so that it may be negative.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    error: float


def quantize_layer(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    cross: torch.Tensor | None,
    settings: LayerSettings,
    *,
    scales: torch.Tensor | None = None,
) -> LayerResult:
    """Return the codes and scales of weights [C, D] that keep the layer's outputs, as the settings ask.

    hessian: H [D, D], the sum of x~ x~' over the layer's inputs in the quantised model. All zeros without calibration:
        scales are then those of the least (w - s q)^2, and codes the nearest.
    cross: G [D, D], the sum of x~ x' with the float model's inputs x, times the same factor; None: as if x were x~. GPTQ has
        no cross term and leaves it out, for its scales too.
    scales: [C, groups] of an earlier pass, which are kept; only codes are chosen.

    Computes in float64 if weights are float64, else in float32, on the device of the tensors. Warns where H needs more
    damping than the settings' correction asks for. Also warns where H cannot be factored at all; codes are then the nearest.

    Raises:
        ExportError: shapes, a group size or scales do not fit, or numbers are not finite.
    """
    weights = weights if weights.dtype is torch.float64 else weights.float()
    hessian = hessian.to(weights)
    cross = None if cross is None or settings.correction == "gptq" else cross.to(weights)
    _check(weights, hessian, cross, settings, scales)
    if scales is not None:
        scales = scales.to(weights)
    if not hessian.diagonal().any():
        settings = replace(settings, correction="none", scales="mse" if settings.scales == "piso" else settings.scales)
    found = None
    if settings.correction != "none":
        found = correct(weights, hessian, cross, settings, scales=scales)
    if found is None:
        found = _round(weights, hessian, cross, settings, scales)
    size = settings.group_size or weights.shape[1]
    restored = found[0].repeat_interleave(size, 1) * found[1]
    return LayerResult(found[1].to(torch.int8), found[0].float(), _error(weights, restored, hessian, cross))


def _check(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    cross: torch.Tensor | None,
    settings: LayerSettings,
    scales: torch.Tensor | None,
) -> None:
    if weights.ndim != 2 or not weights.shape[1]:
        raise ExportError(f"piso: weights: got shape {list(weights.shape)}, expected [rows, columns]")
    rows, columns = weights.shape
    size = settings.group_size or columns
    if columns % size:
        raise ExportError(f"piso: group_size: got {size}, expected a divisor of the {columns} columns")
    expected = {"hessian": [columns, columns], "cross": [columns, columns], "scales": [rows, columns // size]}
    for name, tensor in (("weights", weights), ("hessian", hessian), ("cross", cross), ("scales", scales)):
        if tensor is None:
            continue
        if name in expected and list(tensor.shape) != expected[name]:
            raise ExportError(f"piso: {name}: got shape {list(tensor.shape)}, expected {expected[name]}")
        if not tensor.isfinite().all():
            raise ExportError(f"piso: {name}: got numbers that are not finite, expected finite ones")
    if hessian.diagonal().min() < 0:
        raise ExportError("piso: hessian: got a negative diagonal, expected a sum of x x'")
    if scales is not None and not scales.all():
        raise ExportError("piso: scales: got a scale of 0, expected none")


def _round(
    weights: torch.Tensor,
    hessian: torch.Tensor,
    cross: torch.Tensor | None,
    settings: LayerSettings,
    scales: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales [C, groups], fitted unless they are given, and codes [C, D] without correction."""
    fitter = ScaleFitter(settings, weights)
    if scales is None:
        return fitter.fit_layer(weights, hessian, cross)
    size = settings.group_size or weights.shape[1]
    return scales, fitter.nearest(weights, scales.repeat_interleave(size, 1))


def _error(weights: torch.Tensor, restored: torch.Tensor, hessian: torch.Tensor, cross: torch.Tensor | None) -> float:
    if cross is None:
        return float(quadratic_errors(weights - restored, hessian).sum())
    linear = (restored.double() * (weights @ cross.T).double()).sum()
    return float(quadratic_errors(restored, hessian).sum() - 2 * linear)
