"""Runs packed steps on a graph of standard ops, which takes the same number of new tokens from every row.

In one run, such a graph would pad every row to the longest. Instead a step is cut into several runs: one for all rows that
have a single new token, and one or more for each row that has more, so that nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import Port
from enginewright.runtime.backends.session import NO_ARRAYS, Outputs, PackedStep, TilesAlone
from enginewright.runtime.backends.step_arrays import StepArrays
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DenseCall:
    """A run of the graph on rows first .. first + b - 1 of the caches; created by DenseSession.

    first: the first row of the caches that takes part.
    input_ids, position_ids: int64 [b, t], the new tokens and their positions.
    past_lens: int64 [b], tokens that each row has in the cache.
    sample_rows: int64 [n], n at least 1: the tokens whose logits are wanted, counted over the b * t tokens of the run.
    at: the row of the outputs to which the first of those logits goes.
    conditions: by port, the arrays of conditions, [b, t] or [b] as the condition is per token or per row.
    """

    first: int
    input_ids: Ints
    position_ids: Ints
    past_lens: Ints
    sample_rows: Ints
    at: int = 0
    conditions: Mapping[str, NDArray[Any]] = field(default_factory=lambda: NO_ARRAYS)


class DenseGraph(Protocol):
    """A graph of standard ops, bound to its caches; one implementation for each backend, created by the backend.

    longest: the most tokens of a row in one run.
    run_seconds: seconds spent inside the backend so far.
    """

    longest: int
    run_seconds: float

    def run(self, call: DenseCall) -> None:
        """Start a run whose outputs go to rows `at` .. `at + n - 1` of the results.

        The results have one row more than a step can sample, for runs of which nothing is wanted.
        """
        ...

    def outputs(self, rows: int, *, reads_logits: bool) -> Outputs:
        """Wait for all runs, and return the first `rows` rows of the results, writable and valid until the next run.

        reads_logits: False leaves the logits as they were, and returns everything else anew.
        """
        ...

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor, as a session does."""
        ...


class DenseSession(TilesAlone):
    """A Session over a graph of standard ops; created by the backend.

    The run of rows with a single new token takes all rows from 0 to the last of them. Rows in between that have no new
    token, or several, still write one; it lands where their next real token will overwrite it.

    conditions: the ports of conditions.
    offers: what a cache policy may ask of it: nothing, as every row has its own memory.
    """

    offers: frozenset[str] = frozenset()

    def __init__(
        self, graph: DenseGraph, tables: TileTables, capacity: Capacity, conditions: tuple[Port, ...] = ()
    ) -> None:
        self._graph = graph
        self._ports = {port.name: port for port in conditions if port.lives == "step"}
        self._arrays = StepArrays(conditions)
        self._tables = tables
        self._spare_row = capacity.logit_rows  # the row of the results for runs of which nothing is wanted
        self._last_position = capacity.context - 1

    @property
    def run_seconds(self) -> float:
        """Seconds inside the backend so far."""
        return self._graph.run_seconds

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; logits are new only if the step reads them."""
        sample_order: list[Ints] = []  # places in sample_rows, in the order in which the runs sample them
        at = 0
        for call, wanted in self._calls(step):
            samples = call.sample_rows if len(wanted) else np.zeros(1, np.int64)
            start = at if len(wanted) else self._spare_row
            self._graph.run(replace(call, sample_rows=samples, at=start))
            sample_order.append(wanted)
            at += len(wanted)
        outputs = self._graph.outputs(at, reads_logits=step.reads_logits)
        order = np.concatenate(sample_order)
        if (order == np.arange(at)).all():
            return outputs
        places = np.empty(at, np.int64)
        places[order] = np.arange(at)
        ordered = outputs[places]
        return ordered if step.reads_logits else replace(ordered, logits=outputs.logits)

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor."""
        self._graph.fill(port, entry, values)

    def _calls(self, step: PackedStep) -> Iterator[tuple[DenseCall, Ints]]:
        """Yield each run of the step, without its `at`, and the places in the step's sample_rows that it samples."""
        starts = step.query_starts
        counts = np.diff(starts)
        single = np.flatnonzero(counts == 1)
        if len(single):
            yield self._single_token_call(step, single)
        for row in np.flatnonzero(counts > 1).tolist():
            for begin in range(int(starts[row]), int(starts[row + 1]), self._graph.longest):
                end = min(begin + self._graph.longest, int(starts[row + 1]))
                wanted = np.flatnonzero((step.sample_rows >= begin) & (step.sample_rows < end))
                ids, positions = step.input_ids[None, begin:end], step.position_ids[None, begin:end]
                samples = step.sample_rows[wanted] - begin
                conditions = self._conditions(step, np.arange(begin, end)[None], np.array([row]))
                yield DenseCall(row, ids, positions, positions[:, 0], samples, conditions=conditions), wanted

    def _single_token_call(self, step: PackedStep, single: Ints) -> tuple[DenseCall, Ints]:
        """Return the run of the rows `single`, which have one new token each, and the samples that it gives."""
        rows = int(single[-1]) + 1
        tokens = step.query_starts[single]
        past = np.minimum(self._tables.held[:rows], self._last_position)
        past[single] = step.position_ids[tokens]
        ids = np.zeros((rows, 1), np.int64)
        ids[single, 0] = step.input_ids[tokens]
        row_of = dict(zip(tokens.tolist(), single.tolist(), strict=True))
        wanted = np.flatnonzero(np.isin(step.sample_rows, tokens))
        samples = np.array([row_of[token] for token in step.sample_rows[wanted].tolist()], np.int64)
        places = np.full((rows, 1), -1)
        places[single, 0] = tokens
        conditions = self._conditions(step, places, np.arange(rows))
        return DenseCall(0, ids, past[:, None], past, samples, conditions=conditions), wanted

    def _conditions(self, step: PackedStep, tokens: Ints, rows: Ints) -> Mapping[str, NDArray[Any]]:
        """Return the arrays of conditions for a run.

        tokens: [b, t], the places of its tokens in the step; -1 for one that is not in the step, which gets 0.
        rows: [b], its rows.
        """
        if not self._ports:
            return NO_ARRAYS
        return {
            name: np.where(tokens < 0, array.dtype.type(0), array[tokens])
            if "T" in self._ports[name].axes
            else array[rows]
            for name, array in self._arrays.conditions(step).items()
        }
