"""Weights that adapters change, as recipes, and the rules by which changes of one weight combine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError, UnsupportedError

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class AdaptedWeight(Weight):
    """A weight that at least one adapter has changed; `Changes` creates it.

    additive: whether all changes were added, so that another one may be.
    """

    additive: bool


class Changes:
    """The weights of a model while one adapter changes them; `merge_adapter` creates it.

    weights: by parameter, as they are by now.
    """

    def __init__(self, root: Path, factor: float, weights: Mapping[str, Weight]) -> None:
        self._root, self._factor, self._given = root, factor, weights
        self._replaced: dict[str, str] = {}  # parameter -> the adapter's name of what has replaced it
        self._changed: dict[str, str] = {}  # the same of what has changed it
        self.weights = dict(weights)

    def replace(self, parameter: str, by: str, read: Callable[[], Tensor]) -> None:
        """Replace the parameter's weight by what `read` returns; a pair of the same adapter may change that."""
        self._claim(self._replaced, parameter, by, additive=False)
        base = self.weights[parameter]
        self._set(parameter, Weight(shape=base.shape, dtype=base.dtype, load=lambda: read().numpy()), additive=False)

    def change(self, parameter: str, by: str, change: Callable[[Tensor], Tensor], *, additive: bool) -> None:
        """Replace the parameter's weight by what `change` makes of it when it is written.

        by: the adapter's name of what changes it, for errors.
        additive: whether it adds something to the weight.
        """
        self._claim(self._changed, parameter, by, additive=additive)
        base = self.weights[parameter]
        self._set(parameter, base.derive(base.shape, lambda w: change(_as_tensor(w)).numpy()), additive=additive)

    def add_to_parts(self, parameter: str, by: str, deltas: Mapping[int, Callable[[], Tensor]]) -> None:
        """Add to slices [1, ...] along axis 0 of a tensor of experts; memory holds the tensor and one change at a time.

        deltas: by the slice's number.
        """
        self._claim(self._changed, parameter, by, additive=True)
        base = self.weights[parameter]
        parts = [
            part.derive(part.shape, lambda w, d=deltas[number]: w + d().numpy()) if number in deltas else part  # type: ignore[misc]
            for number, part in enumerate(base.parts)
        ]
        whole = base.derive(base.shape, lambda w: _with_deltas(w, deltas))
        self._set(parameter, whole, additive=True, parts=tuple(parts))

    def share_equal(self, names: tuple[str, ...]) -> None:
        """Give names of one parameter of the model one weight again, where their changes have made them equal."""
        changed = [name for name in names if self.weights[name] is not self._given[name]]
        for other in changed[1:]:
            one, two = self.weights[changed[0]], self.weights[other]
            if one is not two and np.array_equal(one.load(), two.load()):
                self.weights[other] = one

    def _claim(self, claimed: dict[str, str], parameter: str, by: str, *, additive: bool) -> None:
        """Raise unless the parameter may change in this way, and note that it does."""
        given = self._given[parameter]
        if given.quantized is not None:
            raise ExportError(
                f"{self._root}: adapts {by!r}, which is quantised by then; apply lora before what quantises"
            )
        if parameter in claimed:
            raise ExportError(
                f"{self._root}: got {claimed[parameter]!r} and {by!r}, which are both {parameter!r}, expected one of them"
            )
        claimed[parameter] = by
        if not additive and self._factor != 1:
            raise UnsupportedError(
                f"{self._root}: got weight={self._factor}, expected 1: the adapter does more with {by!r} than add to it, and "
                "a factor would not scale that"
            )
        if isinstance(given, AdaptedWeight) and not (given.additive and additive):
            raise UnsupportedError(
                f"{self._root}: changes {by!r} after another adapter, and one of the two does more than add to it, so they "
                "have no sum; apply one of them"
            )

    def _set(self, parameter: str, made: Weight, *, additive: bool, parts: tuple[Weight, ...] = ()) -> None:
        base = self.weights[parameter]
        self.weights[parameter] = AdaptedWeight(
            shape=made.shape,
            dtype=made.dtype,
            load=made.load,
            parts=parts,
            additive=additive and (not isinstance(base, AdaptedWeight) or base.additive),
        )


def _as_tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _with_deltas(values: np.ndarray, deltas: Mapping[int, Callable[[], Tensor]]) -> np.ndarray:
    result = values if values.flags.writeable else values.copy()
    for number, delta in deltas.items():
        result[number : number + 1] += delta().numpy()
    return result
