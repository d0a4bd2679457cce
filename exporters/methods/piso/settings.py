"""What is chosen when the weights of one layer are quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from enginewright.runtime.errors import ExportError

ScaleRule = Literal["piso", "mse", "absmax"]
Correction = Literal["none", "gptq", "qronos"]
Interleave = Literal["layer", "group"]
ScaleType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """How the weights of a layer become scale * code.

    bits: 2 to 8 of a code. group_size: columns that share a scale; None: all of a row.
    scales: piso: least output error; mse: least (w - s q)^2, exactly; absmax: the largest weight is the largest code.
    correction: none: codes are the nearest; gptq: columns not yet rounded make up for those that are; qronos: these also make
    up for inputs that differ from the float model's.
    interleave: scales are fitted before the layer's correction, or each group's when its first column is reached, on weights
    corrected so far. sequential: a group's scale accounts for the groups before it; else for its own columns alone.
    diagonal: piso sees the diagonal of the moments alone, and no groups before. signed: negative scales too, of piso and mse.
    narrow: the lowest code is not used. refit: piso's scale is the best for its codes, which then need not be the nearest.
    scale_type: scales are rounded to it before codes and corrections depend on them.

    Source: PiSO, arXiv 2606.10890, sections 3.2, 3.3, appendices A and B.
    """

    bits: int = 4
    group_size: int | None = 32
    scales: ScaleRule = "piso"
    correction: Correction = "gptq"
    interleave: Interleave = "group"
    sequential: bool = True
    diagonal: bool = False
    signed: bool = False
    narrow: bool = False
    refit: bool = False
    scale_type: ScaleType = "float32"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ExportError(f"piso: bits: got {self.bits}, expected 2 to 8")
        if self.group_size is not None and self.group_size < 1:
            raise ExportError(f"piso: group_size: got {self.group_size}, expected 1 or more, or None")
        for name, known in (
            ("scales", ScaleRule),
            ("correction", Correction),
            ("interleave", Interleave),
            ("scale_type", ScaleType),
        ):
            if getattr(self, name) not in get_args(known):
                raise ExportError(f"piso: {name}: got {getattr(self, name)!r}, expected {', '.join(get_args(known))}")
