"""Fits the scales of a layer's weights as its settings ask, in the type in which they are stored."""

from __future__ import annotations

import torch

from enginewright.exporters.methods.piso.settings import LayerSettings
from enginewright.exporters.methods.piso.solver import best_cells, group_targets, int_grid, nearest
from enginewright.runtime.errors import ExportError

_SMALLEST = {"float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-24}
_COARSE = 2.0**-7  # a scale whose relative change in storing is larger lies outside its type's normal numbers


class ScaleFitter:
    """Fits scales by one layer's settings; `quantize_layer` and `correct` create one for each layer."""

    def __init__(self, settings: LayerSettings, like: torch.Tensor) -> None:
        self._settings = settings
        self.grid = torch.as_tensor(int_grid(settings.bits, settings.narrow), device=like.device)

    def fit_layer(
        self, weights: torch.Tensor, h: torch.Tensor, g: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales [C, groups] and the codes [C, D] of all groups, before any correction."""
        size = self._settings.group_size or weights.shape[1]
        if self._settings.diagonal or self._settings.scales != "piso":
            h, g = h.diagonal(), None if g is None else g.diagonal()
        scales = weights.new_empty(len(weights), weights.shape[1] // size)
        codes, restored = torch.empty_like(weights), torch.zeros_like(weights)
        for index, target in group_targets(weights, h, g, size, restored, sequential=self._settings.sequential):
            part = slice(index * size, (index + 1) * size)
            block = h[part] if h.ndim == 1 else h[part, part]
            scales[:, index], codes[:, part] = self.fit(weights[:, part], target, block)
            restored[:, part] = scales[:, index, None] * codes[:, part]
        return scales, codes

    def fit(
        self, weights: torch.Tensor, target: torch.Tensor, block: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales [C], rounded to their type, and codes [C, g] of one group.

        weights: [C, g].
        target: [C, g], the linear term p of the error s^2 q' H q - 2 s q' p.
        block: H [g, g] or its diagonal [g].

        Codes belong to the scale before it was rounded to its type.
        """
        if self._settings.scales == "absmax":
            scales = self._store(self._largest(weights))
            return scales, self.nearest(weights, scales[:, None])
        if self._settings.scales == "mse":
            scales, codes = self._fit_mse(weights)
        else:
            scales, codes = self._fit_piso(weights, target, block)
        stored = self._store(scales)
        coarse = (stored / scales - 1).abs() > _COARSE
        if coarse.any():
            codes[coarse] = self.nearest(weights[coarse], stored[coarse, None])
        return stored, codes

    def nearest(self, weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Codes [C, g] of weights [C, g] under scales that broadcast to them."""
        return nearest(weights / scales, self.grid)

    def _fit_mse(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        unit = weights.new_ones(weights.shape[1])
        best = best_cells(weights, weights, unit, self.grid, signed=self._settings.signed)
        return best.scales, best.codes

    def _fit_piso(
        self, weights: torch.Tensor, target: torch.Tensor, block: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales [C] and codes [C, g] of the least output error.

        A row for which no scale is better than codes of 0, such as one whose inputs are always 0, gets the scale of mse. Its
        codes are 0 unless the nearest ones are as good.
        """
        best = best_cells(weights, target, block, self.grid, signed=self._settings.signed, refit=self._settings.refit)
        lost = best.errors == torch.inf
        if lost.any():
            scales, codes = self._fit_mse(weights[lost])
            restored = scales[:, None] * codes
            product = restored * block if block.ndim == 1 else restored @ block
            excess = (restored.double() * (product - 2 * target[lost]).double()).sum(1)
            best.scales[lost], best.codes[lost] = scales, codes * (excess <= 0)[:, None]
        return best.scales, best.codes

    def _largest(self, weights: torch.Tensor) -> torch.Tensor:
        largest = weights.abs().amax(1)
        return torch.where(largest > 0, largest / self.grid.abs().max().to(weights), torch.ones_like(largest))

    def _store(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales rounded to their type, neither 0 nor infinite.

        Raises:
            ExportError: a scale is larger than the type's largest number.
        """
        name = self._settings.scale_type
        stored = scales.to(getattr(torch, name)).to(scales)
        if not stored.isfinite().all():
            largest = float(scales.abs().max())
            raise ExportError(f"piso: scale_type: got a scale of {largest:.3g}, expected a {name}; use float32")
        return torch.where(stored == 0, _SMALLEST[name], stored)
