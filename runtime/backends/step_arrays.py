"""A step's arrays by the ports that they go to, those of conditions among them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import PER_STEP, Port
from enginewright.runtime.backends.session import PackedStep


class StepArrays:
    """Names the arrays of steps; created by a session.

    conditions: the ports of conditions; those that each step writes are taken from them.
    names: of the ports of a packed graph that each step writes, in order.
    """

    def __init__(self, conditions: Iterable[Port]) -> None:
        self._ports = tuple(port for port in conditions if port.lives == "step")
        self.names = (*PER_STEP, *(port.name for port in self._ports))
        self._zeros: dict[tuple[str, int], NDArray[Any]] = {}

    def of(self, step: PackedStep) -> dict[str, NDArray[Any]]:
        """Return the arrays of `names`."""
        arrays: dict[str, NDArray[Any]] = {name: getattr(step, name) for name in PER_STEP}
        return arrays | self.conditions(step)

    def conditions(self, step: PackedStep) -> dict[str, NDArray[Any]]:
        """Return the arrays of conditions alone: those of the step, and zeros where it has none.

        Zeros of one length are the same object each time, so that they need not be written again.
        """
        if not self._ports:
            return {}
        return {port.name: step.conditions.get(port.name, self._none(port, step)) for port in self._ports}

    def _none(self, port: Port, step: PackedStep) -> NDArray[Any]:
        length = len(step.input_ids) if "T" in port.axes else len(step.query_starts) - 1
        key = port.dtype, length
        if key not in self._zeros:
            self._zeros[key] = np.zeros(length, port.dtype)
        return self._zeros[key]
