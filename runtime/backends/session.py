"""The interface of a session, which runs the decoder graph, with the step that it takes and the outputs that it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import COMPACT_GRAPH, ENCODE_GRAPH, GREEDY, LOGITS, SCORES_GRAPH
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.cache.policy import COMPACT, GATES, MARKS, RECORDS, SCORES, TILES, LayerScores, StoredRow
from enginewright.runtime.errors import UnsupportedError

NO_ARRAYS: Mapping[str, NDArray[Any]] = MappingProxyType({})
"""No arrays by name; shared, so that a step or an output without any costs nothing."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def _no_arrays() -> Mapping[str, NDArray[Any]]:
    return NO_ARRAYS


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One step's new tokens, all rows one after another.

    input_ids, position_ids: int64 [T].
    query_starts: int32 [rows + 1]; a row without new tokens has equal bounds.
    sample_rows: int64 [N], at least one: the tokens whose logits are wanted.
    sink_copies: (from, to) rows whose exact first tile is copied before anything else, in this order.
    reads_logits: whether the logits are read, and not only the greedy tokens; if not, they need not leave the device.
    conditions: by port, the arrays that say which entry of each condition applies: int32 indices, 0 for none, and float32
        scales, [T] or [rows] as the condition is per token or per row. A port that is missing here is all zeros. An array
        must not be changed once it is in a step: one that comes again is not written again.
    """

    input_ids: Ints
    position_ids: Ints
    query_starts: NDArray[np.int32]
    sample_rows: Ints
    sink_copies: tuple[tuple[int, int], ...] = ()
    reads_logits: bool = True
    conditions: Mapping[str, NDArray[Any]] = field(default_factory=_no_arrays)


@dataclass(frozen=True, slots=True)
class Outputs:
    """A step's results for its sampled tokens.

    logits: float32 [N, V].
    greedy: int64 [N], the most probable token of each: the lowest id among equals, -1 where the logits are not finite.
    extra: by name, the graph's other outputs that a step writes, as the manifest's decoder graph describes them; each has N
        rows.
    """

    logits: Floats
    greedy: Ints
    extra: Mapping[str, NDArray[Any]] = field(default_factory=_no_arrays)

    def __getitem__(self, rows: slice | Ints) -> Outputs:
        """Return those rows."""
        extra = {name: array[rows] for name, array in self.extra.items()} if self.extra else self.extra
        return Outputs(self.logits[rows], self.greedy[rows], extra)

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]]) -> Outputs:
        """Return the outputs from arrays by the names that the graph has for them."""
        extra = {name: array for name, array in arrays.items() if name not in (LOGITS.name, GREEDY.name)}
        return Outputs(arrays[LOGITS.name], arrays[GREEDY.name], extra or NO_ARRAYS)


class Session(Protocol):
    """A decoder graph bound to its cache tables and tile pools."""

    @property
    def run_seconds(self) -> float:
        """Seconds spent inside the backend so far."""
        ...

    def run(self, step: PackedStep) -> Outputs:
        """Return the outputs, writable and valid until the next run; the new tokens' keys and values are cached."""
        ...

    @property
    def offers(self) -> frozenset[str]:
        """What a cache policy may ask of the session, out of TILES, SCORES, COMPACT and MARKS of `cache/policy.py`."""
        ...

    def score(self, row: StoredRow) -> Sequence[LayerScores]:
        """Return the scores of a row's tokens, as CacheSession says."""
        ...

    def marks(self, row: StoredRow) -> Sequence[Floats]:
        """Return the marks of a row's tokens, as CacheSession says."""
        ...

    def compact(self, moves: Mapping[int, NDArray[np.int32]]) -> None:
        """Copy tokens between tiles, as CacheSession says."""
        ...

    def encode(self, row: int, table: NDArray[np.int32], lens: NDArray[np.int32], encoded: NDArray[np.int32]) -> None:
        """Encode tiles of a row, as CacheSession says."""
        ...

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Write an entry of a condition's tensor, between two steps; later steps see it.

        port: the tensor's port, "cond.NAME.TENSOR".
        entry: 1 to the condition's capacity; entry 0 stands for no condition and stays 0.
        values: of the tensor's shape, without the axis of entries; converted to its type.

        Raises:
            RequestError: there is no such port or entry, or the values have another shape.
        """
        ...


def policy_offers(manifest: Manifest, *, runs_graphs: bool = False) -> frozenset[str]:
    """Return what a session of this engine offers to cache policies.

    runs_graphs: whether the session runs the engine's graphs "scores" and "compact".
    """
    cache = manifest.cache
    if cache.is_dense:
        return frozenset()
    if not runs_graphs:
        return frozenset() if any(layer.exact_bytes for layer in cache.layers) else frozenset({TILES})
    found = {SCORES: SCORES_GRAPH in manifest.graphs, COMPACT: COMPACT_GRAPH in manifest.graphs}
    found[RECORDS] = ENCODE_GRAPH in manifest.graphs and COMPACT_GRAPH in manifest.graphs
    found[MARKS] = found[GATES] = any(layer.marks for layer in cache.layers)
    return frozenset({TILES, *(name for name, has in found.items() if has)})


class TilesAlone:
    """The part of a session that serves cache policies, of one that offers them nothing but whole tiles."""

    def score(self, row: StoredRow) -> Sequence[LayerScores]:
        """Refuse: the backend scores no tokens."""
        raise _refusal("score")

    def marks(self, row: StoredRow) -> Sequence[Floats]:
        """Refuse: the backend gives no marks."""
        raise _refusal("marks")

    def compact(self, moves: Mapping[int, NDArray[np.int32]]) -> None:
        """Refuse: the backend moves no tokens."""
        raise _refusal("compact")

    def encode(self, row: int, table: NDArray[np.int32], lens: NDArray[np.int32], encoded: NDArray[np.int32]) -> None:
        """Refuse: the backend encodes nothing between steps."""
        raise _refusal("encode")


def _refusal(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"session: {name}: got a call from a cache policy, expected none on this backend; choose backend onnxruntime"
    )
