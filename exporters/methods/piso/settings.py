"""The settings that say how the weights of one layer are quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from enginewright.runtime.errors import ExportError

ScaleRule = Literal["piso", "mse", "absmax"]
Correction = Literal["none", "gptq", "qronos"]
Interleave = Literal["decoupled", "layer", "group"]
ScaleType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """Settings of one layer, whose weights become scale * code; the method's `Config` adds those of the calibration.

    bits: of a code, 2 to 8.
    group_size: columns of a row that share a scale; 0: the whole row.
    scales: the rule for a scale.
        piso: the least error of the layer's outputs.
        mse: the least (w - s q)^2, exactly; it needs no data.
        absmax: the largest weight gets the largest code.
    correction: whether later columns make up for rounding errors.
        none: each code is the nearest.
        gptq: columns that are not yet rounded make up for those that are.
        qronos: they also make up for inputs that differ from the float model's.
    interleave: when scales are fitted.
        group: each group's when its first column is reached, on the weights as corrected so far.
        layer: before the layer's correction.
        decoupled: for the whole model before any correction; for one layer this is the same as layer.
    sequential: a group's scale accounts for the errors of the groups before it; otherwise for its own columns alone.
    diagonal: piso sees only the diagonal of the moments, and no groups before.
    signed: scales of piso and mse may be negative, which a grid with one more negative code gains from.
    narrow: the lowest code is not used.
    refit: piso's scale is the best one for its codes, which then need not be the nearest.
    scale_type: the type that scales are rounded to, before codes and corrections depend on them. Servers of checkpoints
        want the model's own type.

    Raises:
        ExportError: a value that is not known, or out of range.

    Source: PiSO, arXiv 2606.10890, sections 3.2, 3.3, appendices A and B.
    """

    bits: int = 4
    group_size: int = 32
    scales: ScaleRule = "piso"
    correction: Correction = "gptq"
    interleave: Interleave = "group"
    sequential: bool = True
    diagonal: bool = False
    signed: bool = True
    narrow: bool = False
    refit: bool = False
    scale_type: ScaleType = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ExportError(f"piso: bits: got {self.bits}, expected 2 to 8")
        if self.group_size < 0:
            raise ExportError(f"piso: got group_size={self.group_size}, expected a multiple of 16, or 0 for whole rows")
        for name, known in (
            ("scales", ScaleRule),
            ("correction", Correction),
            ("interleave", Interleave),
            ("scale_type", ScaleType),
        ):
            if getattr(self, name) not in get_args(known):
                raise ExportError(f"piso: {name}: got {getattr(self, name)!r}, expected {', '.join(get_args(known))}")
