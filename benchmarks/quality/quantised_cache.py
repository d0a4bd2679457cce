"""Simulates a quantised cache in an engine: each tile that a step completes is replaced by its quantised values.

The engine itself is unchanged, so all codecs share the same code and the same three regions: a sequence's first tile is exact
(attention sinks), whole tiles after it are quantised once their step has run, and the newest, unfinished tile is exact. This
is also the life cycle of a KVarN cache. As there, a prompt is computed in chunks that end at multiples of CHUNK tokens, and a
scored text is computed tile by tile.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.cache_codecs import Codec, Floats
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.backends.onnxruntime.cpu_session import CpuSession
from enginewright.runtime.backends.session import Outputs, PackedStep, Session, TilesAlone
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.registry import find_kind
from enginewright.runtime.errors import UnsupportedError
from enginewright.runtime.llm import LLM
from enginewright.runtime.loader import load
from enginewright.runtime.scheduling.scheduler import Scheduler

Ints = NDArray[np.int64]

CHUNK = 512
"""Chunks of a prompt end at multiples of this many tokens."""
BLOCK_TOKENS = 16  # of PagedAttention's key layout on the CPU


@dataclass(frozen=True, kw_only=True)
class CompletedTiles:
    """The tiles that one step completed; created by QuantisedSession.

    rows: [n], the row of each tile.
    tiles: [n], the tile's place in its sequence.
    keys, values: [layers, n, heads, TILE_TOKENS, D], as the step wrote them.
    stored_keys, stored_values: the same shape, as the cache holds them from now on.
    """

    rows: Ints
    tiles: Ints
    keys: Floats
    values: Floats
    stored_keys: Floats
    stored_values: Floats


class QuantisedSession(TilesAlone):
    """A Session that quantises the tiles of another one; created by `open_quantised`.

    inner: the session that runs the graph.
    codec: quantises tiles from now on; None leaves them as they are.
    observer: called on the engine's thread with the tiles that a step completed; set by the measuring code.
    codec_seconds: time spent on completed tiles.
    """

    offers: frozenset[str] = frozenset()

    def __init__(self, inner: CpuSession, manifest: Manifest, tables: TileTables, codec: Codec | None) -> None:
        self.inner: Session = inner
        self.codec = codec
        self.observer: Callable[[CompletedTiles], None] | None = None
        self.run_seconds = self.codec_seconds = 0.0
        self._tables = tables
        self._windows = [layer.window for layer in manifest.cache.layers]
        layer = manifest.cache.layers[0]
        self._heads = layer.kv_heads
        element = np.float16 if manifest.cache.kv_bits == 16 else np.float32
        pools = [inner._buffers[f"kv.{index}.tiles"].view(element) for index in range(len(manifest.cache.layers))]
        split = TILE_TOKENS * layer.key_dim
        blocks = (-1, TILE_TOKENS // BLOCK_TOKENS, layer.key_dim, BLOCK_TOKENS)
        self._keys = [pool[:, :split].reshape(blocks).transpose(0, 1, 3, 2) for pool in pools]
        self._values = [pool[:, split:].reshape(-1, TILE_TOKENS, layer.value_dim) for pool in pools]

    def run(self, step: PackedStep) -> Outputs:
        """Run the step, then quantise the tiles that it completed."""
        held: Ints = self._tables.held.copy()
        outputs = self.inner.run(step)
        self.run_seconds = self.inner.run_seconds
        if self.codec is not None or self.observer is not None:
            start = time.perf_counter()
            self._quantise(held, held + np.diff(step.query_starts))
            self.codec_seconds += time.perf_counter() - start
        return outputs

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Pass the entry of a condition on."""
        self.inner.fill(port, entry, values)

    def _quantise(self, before: Ints, after: Ints) -> None:
        """Quantise the tiles that the tokens before[row] .. after[row] - 1 completed."""
        first, end = np.maximum(before // TILE_TOKENS, 1), after // TILE_TOKENS
        done = [(row, tile) for row in np.flatnonzero(end > first) for tile in range(first[row], end[row])]
        if not done:
            return
        rows, tiles = np.array(done, np.int64).T
        ids = self._tables.tile_table[:, rows, : self._heads, tiles].transpose(1, 0, 2)  # [layers, n, heads]
        shape = (*ids.shape, TILE_TOKENS, -1)
        keys = np.stack([pool[own] for pool, own in zip(self._keys, ids, strict=True)]).reshape(shape)
        values = np.stack([pool[own] for pool, own in zip(self._values, ids, strict=True)])
        stored_keys, stored_values = keys, values
        if self.codec is not None:
            stored_keys, stored_values = self.codec.restore_layers(keys, values, self.codec.layers(self._windows))
            for index, own in enumerate(ids):
                self._keys[index][own] = stored_keys[index].reshape(*own.shape, *self._keys[index].shape[1:])
                self._values[index][own] = stored_values[index]
        if self.observer is not None:
            self.observer(
                CompletedTiles(
                    rows=rows,
                    tiles=tiles,
                    keys=keys,
                    values=values,
                    stored_keys=stored_keys,
                    stored_values=stored_values,
                )
            )


def open_quantised(root: Path, codec: Codec | None, *, threads: int | None, max_batch: int) -> LLM:
    """Load the engine at `root` with a cache that `codec` quantises.

    Raises:
        UnsupportedError: the engine's cache is not PagedAttention's, its layers' heads differ, or a window is shorter than
            the tile that is just complete.
    """
    llm = load(root, threads, max_batch=max_batch, prefill_chunk=CHUNK + max_batch, prefix_reuse=False, verify=False)
    cache, engine = llm.manifest.cache, llm.loop
    heads = {(layer.kv_heads, layer.key_dim, layer.value_dim) for layer in cache.layers}
    if cache.kind != "paged" or len(heads) > 1 or any(0 < layer.window < TILE_TOKENS for layer in cache.layers):
        llm.close()
        raise UnsupportedError(
            f"{root}: got other layers, expected layers with equal heads over plain tiles, and windows of {TILE_TOKENS} "
            "tokens or more; choose another engine"
        )
    tables = engine.scheduler.tables
    assert isinstance(engine.session, CpuSession)
    engine.session = QuantisedSession(engine.session, llm.manifest, tables, codec)
    scored = (
        llm.capacity.logit_rows - llm.capacity.rows * llm.capacity.width
    )  # fewer than a tile for large vocabularies
    piece = 1 << (
        min(cache.tile_tokens, scored).bit_length() - 1
    )  # its own tile is exact, so parts of one see the same
    decoder = find_kind(llm.manifest).open(llm.manifest.decoding, Pieces(chunk=CHUNK, tile_tokens=piece))
    engine.scheduler = Scheduler(tables, dataclasses.replace(llm.capacity, chunk=CHUNK), decoder)
    return llm
