"""Cases of CompactTiles, the same for every implementation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from enginewright.plugins.ops.compact_tiles import COMPACT_TILES
from enginewright.plugins.ops.tiles import TILE_TOKENS, tile_bytes

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: moves from half of the tiles to the other half; channels None: no marks."""

    name: str
    moves: int
    tiles: int = 12
    head_dim: int = 64
    value_dim: int = 64
    kv_bits: int = 16
    channels: int | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """The node's attributes; a default is left out so that it is tested."""
        sizes = {"head_dim": self.head_dim, "value_dim": self.value_dim}
        return sizes | ({} if self.kv_bits == 16 else {"kv_bits": self.kv_bits})


CASES = (
    Case(name="one", moves=1, tiles=2, head_dim=1, value_dim=1),
    Case(name="none", moves=0),
    Case(name="no_tiles", moves=0, tiles=0),
    Case(name="many", moves=640),
    Case(name="float_cache", moves=37, kv_bits=32, head_dim=24, value_dim=40),
    Case(name="odd_sizes", moves=101, head_dim=33, value_dim=7, channels=2),
    Case(name="marks", moves=300, head_dim=32, value_dim=16, channels=1),
    Case(name="large_heads", moves=19, head_dim=256, value_dim=192, channels=2),
)


def make_inputs(case: Case) -> Arrays:
    """Random bytes, NaN among them, and moves of random tokens to different places."""
    rng = np.random.default_rng(case.moves)
    ids, half = rng.permutation(case.tiles), case.tiles // 2
    targets = rng.permutation(half * TILE_TOKENS)[: case.moves]
    moves = np.zeros((case.moves, 4), np.int32)
    if case.moves:
        moves[:, 0], moves[:, 1] = ids[rng.integers(0, half, case.moves)], rng.integers(0, TILE_TOKENS, case.moves)
        moves[:, 2], moves[:, 3] = ids[half + targets // TILE_TOKENS], targets % TILE_TOKENS
    size = tile_bytes(case.head_dim, case.value_dim, case.kv_bits)
    arrays = {"tiles": rng.integers(-128, 128, (case.tiles, size), np.int8), "moves": moves}
    if case.channels is not None:
        arrays["marks"] = rng.standard_normal((case.tiles, case.channels, TILE_TOKENS)).astype(np.float32)
    return arrays


def expected(case: Case, arrays: Arrays) -> list[np.ndarray]:
    """The oracle's answer: the pool, and the marks where there are any."""
    outputs = COMPACT_TILES.load_oracle()(**arrays, **case.attributes)
    return [output for output in outputs if output is not None]
