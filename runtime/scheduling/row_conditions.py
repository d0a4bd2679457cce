"""The arrays that tell a decoder graph which entry of each condition applies to which token, or row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import condition_ports
from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.backends.session import NO_ARRAYS, PackedStep
from enginewright.runtime.requests.request import Request

Ints = NDArray[np.int64]


class RowConditions:
    """The entries that the running requests have chosen; created by the Scheduler, and changed as requests come and go."""

    def __init__(self, conditions: Mapping[str, Condition], rows: int) -> None:
        self._conditions = conditions
        self._entry = {name: np.zeros(rows, np.int32) for name in conditions}
        self._scale = {name: np.zeros(rows, np.float32) for name in conditions}
        self._begin: Ints = np.zeros(rows, np.int64)
        self._users: set[int] = set()

    def enter(self, row: int, request: Request) -> None:
        """Let `row` have what its new request has chosen."""
        if not request.conditions:
            return
        self._users.add(row)
        self._begin[row] = request.conditions_begin
        for name, (entry, scale) in request.conditions.items():
            self._entry[name][row], self._scale[name][row] = entry, scale

    def leave(self, row: int) -> None:
        """Let `row` have no condition."""
        if row in self._users:
            self._users.remove(row)
            for name in self._conditions:
                self._entry[name][row] = self._scale[name][row] = 0

    def arrays(self, positions: Ints, query_starts: NDArray[np.int32], last: PackedStep | None) -> Mapping[str, Any]:
        """Return the arrays of a step by port; none where no row has a condition.

        positions[T], query_starts[rows + 1]: as in PackedStep.
        last: the step before, where each of its rows decodes and still runs with the same conditions; its arrays come again
            if the tokens are laid out as there.
        """
        if not self._users:
            return NO_ARRAYS
        if last is not None and last.query_starts is query_starts:
            return last.conditions
        rows = np.repeat(np.arange(len(query_starts) - 1), np.diff(query_starts))
        arrays: dict[str, Any] = {}
        for name, condition in self._conditions.items():
            index, scale = condition_ports(name)
            entries, scales = self._entry[name], self._scale[name]
            if condition.per == "row":
                arrays[index] = entries.copy()
                found = scales.copy()
            else:
                chosen = entries[rows]
                if condition.applies == "decoded":
                    chosen[positions < self._begin[rows]] = 0
                arrays[index], found = chosen, scales[rows]
            if condition.scaled:
                arrays[scale] = found
        return arrays
