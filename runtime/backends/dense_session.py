"""Runs packed steps on a graph of standard ops, which takes the same number of new tokens from every row.

In one run, such a graph would pad every row to the longest. Instead a step is cut into several runs: one for all rows that
have a single new token, and one or more for each row that has more, so that nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import DENSE_INPUTS
from enginewright.runtime.artifact.manifest import Manifest, TensorSpec
from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables

Ints = NDArray[np.int64]
PER_CALL = tuple(port.name for port in DENSE_INPUTS)
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}  # of the caches; numpy has no bfloat16


@dataclass(frozen=True, slots=True)
class DenseCall:
    """A run of the graph on rows first .. first + b - 1 of the caches; created by DenseSession.

    first: the first row of the caches that takes part.
    input_ids, position_ids: int64 [b, t], the new tokens and their positions.
    past_lens: int64 [b], tokens that each row has in the cache.
    sample_rows: int64 [n], n at least 1: the tokens whose logits are wanted, counted over the b * t tokens of the run.
    at: the row of the outputs to which the first of those logits goes.
    """

    first: int
    input_ids: Ints
    position_ids: Ints
    past_lens: Ints
    sample_rows: Ints
    at: int


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

        reads_logits: False leaves the logits as they were, and returns new greedy tokens alone.
        """
        ...


class DenseSession:
    """A Session over a graph of standard ops; created by the backend.

    The run of rows with a single new token takes all rows from 0 to the last of them. Rows in between that have no new
    token, or several, still write one; it lands where their next real token will overwrite it.
    """

    def __init__(self, graph: DenseGraph, tables: TileTables, capacity: Capacity) -> None:
        self._graph = graph
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
            self._graph.run(DenseCall(call.first, call.input_ids, call.position_ids, call.past_lens, samples, start))
            sample_order.append(wanted)
            at += len(wanted)
        outputs = self._graph.outputs(at, reads_logits=step.reads_logits)
        order = np.concatenate(sample_order)
        if (order == np.arange(at)).all():
            return outputs
        places = np.empty(at, np.int64)
        places[order] = np.arange(at)
        return Outputs(outputs.logits[places] if step.reads_logits else outputs.logits, outputs.greedy[places])

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
                yield DenseCall(row, ids, positions, positions[:, 0], samples, 0), wanted

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
        return DenseCall(0, ids, past[:, None], past, samples, 0), wanted


def cache_shapes(manifest: Manifest, rows: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape and type of every cache of the graph for `rows` rows; bfloat16 as uint16."""
    shapes = {}
    for spec in manifest.graphs["decoder"].inputs:
        if spec.name.startswith("kv."):
            shapes[spec.name] = _cache_shape(spec, rows)
    return shapes


def _cache_shape(spec: TensorSpec, rows: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    return (rows, *sizes), np.dtype(DTYPES[spec.dtype])
