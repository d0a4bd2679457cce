"""A cache policy that keeps the first tiles of a request and its newest ones, as StreamingLLM does with tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from enginewright.runtime.artifact.manifest import Cache
from enginewright.runtime.cache.policy import TILES, CacheSession, Ints, Mask, PolicyKind, StoredRow


@dataclass(frozen=True, kw_only=True)
class FirstAndNewestConfig:
    """Tiles that stay.

    first: at the beginning of the request.
    newest: full tiles at its end.
    """

    first: int = 1
    newest: int = 1

    def __post_init__(self) -> None:
        for name in ("first", "newest"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 0 or more")


class FirstAndNewest:
    """Evicts whenever a tile more than `first` and `newest` is full, the same in all layers and heads."""

    needs = frozenset({TILES})

    def __init__(self, config: FirstAndNewestConfig, cache: Cache) -> None:
        self._config = config
        self._room = (config.first + config.newest + 1) * cache.tile_tokens

    def most_stored(self, prompt_tokens: int, tokens: int) -> Ints:
        """Return the budget and the tile that fills up, whatever the prompt."""
        return np.array(min(tokens, self._room))

    def next_due(self, row: StoredRow) -> int | None:
        """Return where the tile after the budget is full."""
        return row.processed + self._room - int(row.stored.max())

    def keep(self, rows: Sequence[StoredRow], session: CacheSession) -> list[Mask]:
        """Keep tiles by their places alone."""
        masks = []
        for row in rows:
            full = int(row.whole_tiles.max())
            places = np.arange(full)
            masks.append((places < self._config.first) | (places >= full - self._config.newest))
        return masks


POLICY = PolicyKind(name="first_and_newest", config=FirstAndNewestConfig, open=FirstAndNewest)
