"""The demand curve of a model: how many tokens each layer needs for a share of its attention, as a file keeps it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from enginewright.exporters.methods.measured_file import SourceModel, write_measured
from enginewright.exporters.source.json_file import read_json
from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.errors import ExportError

Aggregate = Literal["mean", "heads_first", "max_head"]
"""The way from counts to a layer's demand: the mean over query heads; the count of the heads' mean weights; the largest head's
mean."""


@dataclass(frozen=True, kw_only=True)
class DemandCurve:
    """The demand of each layer; `tune reasonalloc` and `read_curve` create it.

    model: the one that was measured.
    rho: the share of attention, between 0 and 1.
    demand: tokens that each layer needs, in the model's order; None for a layer with a window, which gets no share.
    aggregate: the way from counts to demand.
    heads: the mean of each query head's counts; one number a layer with heads_first.
    data: the name of the prompts' file, or of the problems.
    texts, tokens, positions: the number of texts, of their tokens, and of the query positions that were counted.
    """

    model: SourceModel
    rho: float
    demand: tuple[float | None, ...]
    aggregate: Aggregate
    heads: tuple[tuple[float, ...] | None, ...]
    data: str
    texts: int
    tokens: int
    positions: int

    def __post_init__(self) -> None:
        if not 0 < self.rho < 1:
            raise ValueError(f"rho: got {self.rho}, expected a number between 0 and 1")
        found = self.shares
        if not found or not all(math.isfinite(each) and each > 0 for each in found.values()):
            raise ValueError(
                f"demand: got {list(self.demand)}, expected a number above 0 for a layer at least, else null"
            )

    @property
    def shares(self) -> dict[int, float]:
        """The demand of the layers that take part, by their numbers."""
        return {layer: each for layer, each in enumerate(self.demand) if each is not None}

    def write(self, path: Path) -> None:
        """Write the file, completely or not at all.

        Raises:
            ExportError: it cannot be written.
        """
        write_measured(path, self)


def open_curve(path: Path) -> DemandCurve:
    """Return the curve of a file, of whatever model.

    Raises:
        ExportError: the file is missing or no curve.
    """
    try:
        return parse(DemandCurve, read_json(path, "curve"), str(path))
    except ValueError as e:
        raise ExportError(f"{e}; make the curve by `enginewright tune reasonalloc`") from e


def read_curve(path: Path, *, sha256: str, layers: int) -> DemandCurve:
    """Return the curve of a file, which has to be that of a given model.

    sha256: of the model's tensors, as `hash_of` gives it.
    layers: the model's number of layers.

    Raises:
        ExportError: the file is missing or no curve, or the curve is of another model.
    """
    curve = open_curve(path)
    if curve.model.sha256 != sha256 or len(curve.demand) != layers:
        raise ExportError(
            f"{path}: got the curve of {curve.model.name!r}, {len(curve.demand)} layers, sha256 {curve.model.sha256[:12]}, expected "
            f"that of this model, {layers} layers, sha256 {sha256[:12]}; make one by `enginewright tune reasonalloc`"
        )
    return curve
