"""The graphs that serve an engine's cache policy in ONNX Runtime on the CPU: scores of tokens, and copies between tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from numpy.typing import NDArray

from enginewright.runtime.artifact.decoder_graph import (
    COMPACT_GRAPH,
    ENCODE_GRAPH,
    ENCODED_LENS,
    IMPORTANCE,
    KV_LENS,
    LAST_POSITIONS,
    MARKS,
    MOVES,
    POOL,
    REDUNDANCY,
    SCORES_GRAPH,
    SLOTS,
    TILE_TABLE,
    pool_name,
)
from enginewright.runtime.artifact.manifest import Graph, Manifest
from enginewright.runtime.backends.graph_check import check_ops
from enginewright.runtime.cache.policy import LayerScores, StoredRow, governed_layers

Arrays = Mapping[str, NDArray[np.generic]]


class PolicyGraphs:
    """Runs the graphs "scores" and "compact" over a session's own buffers, as far as the engine has them; CpuSession creates it.

    They run between steps, for one row at a time.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        buffers: Arrays,
        *,
        open_graph: Callable[[Path, Graph], ort.InferenceSession],
    ) -> None:
        self._buffers = buffers
        self._layers = governed_layers(manifest.cache)
        self._tile_tokens = manifest.cache.tile_tokens
        self._heads = [manifest.cache.layers[layer].kv_heads for layer in self._layers]
        self._sessions: dict[str, _Opened] = {}
        for name in (SCORES_GRAPH, COMPACT_GRAPH, ENCODE_GRAPH):
            if name in manifest.graphs:
                check_ops(root, manifest.graphs[name])
                self._sessions[name] = _Opened(open_graph(root, manifest.graphs[name]), buffers)

    def score(self, row: StoredRow) -> Sequence[LayerScores]:
        """Return the scores of a row's tokens in each layer without a window."""
        most = int(row.stored.max())
        tiles = -(-most // row.tile_tokens)
        at = slice(row.row, row.row + 1)
        step: dict[str, NDArray[np.generic]] = {
            KV_LENS.name: np.ascontiguousarray(self._buffers[KV_LENS.name][:, at]),
            TILE_TABLE.name: np.ascontiguousarray(self._buffers[TILE_TABLE.name][:, at, :, :tiles]),
            SLOTS.name: np.array([row.row], np.int32),
            LAST_POSITIONS.name: np.array([row.processed - 1], np.int64),
        }
        if ENCODED_LENS.name in self._buffers:
            step[ENCODED_LENS.name] = np.ascontiguousarray(self._buffers[ENCODED_LENS.name][:, :, at])
        found = self._sessions[SCORES_GRAPH].run(step)
        scores = []
        for layer in self._layers:
            importance, redundancy = (
                found[pool_name(port, layer)][0, :, :most].astype(np.float32, copy=False)
                for port in (IMPORTANCE, REDUNDANCY)
            )
            scores.append(LayerScores(importance=importance, redundancy=redundancy if redundancy.shape[1] else None))
        return scores

    def marks(self, row: StoredRow) -> Sequence[NDArray[np.float32]]:
        """Return the marks of a row's tokens in each layer without a window, [heads, channels, n]."""
        most, found = int(row.stored.max()), []
        tiles = -(-most // row.tile_tokens)
        for layer, heads in zip(self._layers, self._heads, strict=True):
            ids = self._buffers[TILE_TABLE.name][layer, row.row, :heads, :tiles]
            own = self._buffers[pool_name(MARKS, layer)][ids]  # [heads, tiles, channels, tokens]
            found.append(own.transpose(0, 2, 1, 3).reshape(heads, own.shape[2], -1)[..., :most].astype(np.float32))
        return found

    def compact(self, moves: Mapping[int, NDArray[np.int32]]) -> None:
        """Copy tokens between tiles of every layer without a window."""
        self._sessions[COMPACT_GRAPH].run({pool_name(MOVES, layer): each for layer, each in moves.items()})

    def encode(self, row: int, table: NDArray[np.int32], lens: NDArray[np.int32], encoded: NDArray[np.int32]) -> None:
        """Encode tiles of a row, in every layer without a window."""
        tiles = max(-(-int(encoded.max()) // self._tile_tokens), 1)
        step: dict[str, NDArray[np.generic]] = {
            KV_LENS.name: lens,
            TILE_TABLE.name: np.ascontiguousarray(table[..., :tiles]),
            SLOTS.name: np.array([row], np.int32),
            ENCODED_LENS.name: encoded,
        }
        self._sessions[ENCODE_GRAPH].run({name: np.ascontiguousarray(each) for name, each in step.items()})


class _Opened:
    """An opened graph, whose pools are the session's buffers for good."""

    def __init__(self, session: ort.InferenceSession, buffers: Arrays) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._step = [port.name for port in session.get_inputs() if not port.name.startswith(POOL)]
        self._outputs = [port.name for port in session.get_outputs()]
        pools: dict[str, NDArray[np.generic]] = {}
        for port in session.get_inputs():
            if port.name.startswith(POOL):
                pools[port.name] = _as_port(buffers[port.name], port)
                self._bind(self._binding.bind_input, port.name, pools[port.name])
        for name in self._outputs:
            if name.startswith(POOL):
                self._bind(self._binding.bind_output, name, pools[name.removesuffix(".out")])

    def run(self, step: Arrays) -> Arrays:
        """Return the outputs that are no pools; those are updated in place."""
        for name in self._step:
            self._bind(self._binding.bind_input, name, step[name])
        for name in self._outputs:
            if not name.startswith(POOL):
                self._binding.bind_output(name)
        self._session.run_with_iobinding(self._binding)
        values = self._binding.get_outputs()
        return {
            name: value.numpy() for name, value in zip(self._outputs, values, strict=True) if not name.startswith(POOL)
        }

    @staticmethod
    def _bind(bind: Callable[..., None], name: str, array: NDArray[np.generic]) -> None:
        bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _as_port(array: NDArray[np.generic], port: ort.NodeArg) -> NDArray[np.generic]:
    """Return a view of a pool as a graph declares it: exact tiles are rows of bytes to the op that copies tokens."""
    if port.type != "tensor(int8)" or array.dtype == np.int8:
        return array
    return array.view(np.int8).reshape(-1, port.shape[1])
