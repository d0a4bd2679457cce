"""A plain simulation of a policy that evicts tokens: lists of positions, without tiles, tables or batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from enginewright.runtime.cache.policy import (
    COMPACT,
    RECORDS,
    EncodedRow,
    LayerScores,
    RecordPolicy,
    StoredRow,
    TokenPolicy,
    governed_layers,
    open_policy,
)
from tests.support.runtime.evicting_model import ENCODED, SIZE, cache_of, hashed_marks, hashed_scores
from tests.support.runtime.sample_policies import Seen


class _Hashes:
    """The scores and marks of EvictingSession, of positions that are known."""

    offers = frozenset[str]()

    def __init__(self, heads: Sequence[int]) -> None:
        self._heads = heads

    def _positions(self, row: StoredRow) -> list[np.ndarray]:
        return [each[:heads] for each, heads in zip(row.all_positions(), self._heads, strict=True)]

    def score(self, row: StoredRow) -> list[LayerScores]:
        return hashed_scores(self._positions(row), row.processed)

    def marks(self, row: StoredRow) -> list[np.ndarray]:
        return hashed_marks(self._positions(row), row.processed)

    def compact(self, moves: Any) -> None:
        raise AssertionError("nothing is moved here")


def simulated(options: dict[str, Any], windows: Sequence[int]) -> tuple[dict[str, Any], Seen]:
    """The policy `evict` as a manifest has it, and the positions that a token sees, one eviction after another."""
    policy = {"kind": "evict", **options}
    cache = cache_of(policy, windows)
    heads = [cache.layers[index].kv_heads for index in governed_layers(cache)]
    encoded: dict[tuple[int, int], np.ndarray] = {}
    known: dict[int, list[tuple[int, list[list[np.ndarray]]]]] = {}

    def evictions(prompt: int, position: int) -> list[tuple[int, list[list[np.ndarray]]]]:
        """The evictions up to a position: processed tokens, and what each layer and head has left."""
        evictor: TokenPolicy = open_policy(cache)  # type: ignore[assignment]
        nothing = [[np.zeros(0, np.int64)] * max(heads) for _ in heads]
        done = known.setdefault(prompt, [(0, nothing)])
        while True:
            time, kept = done[-1]
            tiles = encoded.setdefault((prompt, time), np.zeros((len(heads), max(heads)), np.int64))
            row = _row(prompt, time, time, kept, heads)
            due = evictor.next_due(row)
            if due is None or due > position:
                return done
            row = _row(prompt, due, time, kept, heads)
            if RECORDS in evictor.needs:
                lens = np.where(tiles > 0, (1 + tiles) * SIZE, 0)
                row = EncodedRow(**vars(row), encoded=lens)
            (mask,) = evictor.keep([row], _Hashes(heads))
            wide = mask if evictor.needs & {COMPACT, RECORDS} else _of_tokens(mask, row)
            wide = np.broadcast_to(wide, (*row.stored.shape, int(row.stored.max())))
            left = [
                [row.positions(layer, head)[wide[layer, head, : row.stored[layer, head]]] for head in range(max(heads))]
                for layer in range(len(heads))
            ]
            done.append((due, left))
            if RECORDS in evictor.needs:
                encoded[prompt, due] = _encoded_after(wide, row, tiles, cast(RecordPolicy, evictor).newest)

    def seen(layer: int, head: int, position: int, prompt: int) -> np.ndarray:
        time, kept = [each for each in evictions(prompt, position) if each[0] <= position][-1]
        coded = ENCODED * (np.arange(len(kept[layer][head])) // SIZE - 1 < encoded[prompt, time][layer, head])
        coded[:SIZE] = 0  # the first tile stays exact
        return np.concatenate([kept[layer][head] + coded, np.arange(time, position + 1)])

    return policy, seen


def _encoded_after(mask: np.ndarray, row: StoredRow, tiles: np.ndarray, newest: int) -> np.ndarray:
    """How many encoded tiles each head has after an eviction: those that stay, and one more that is full of chosen tokens."""
    after = np.zeros_like(tiles)
    for layer, head in np.ndindex(*tiles.shape):
        begin, end = int(1 + tiles[layer, head]) * SIZE, int(row.stored[layer, head])
        stay = mask[layer, head, :end]
        after[layer, head] = stay[SIZE:begin].sum() // SIZE + (stay[begin:].sum() - newest >= SIZE)
    return after


def _of_tokens(mask: np.ndarray, row: StoredRow) -> np.ndarray:
    """A mask over full tiles as one over tokens; those of an unfinished tile stay."""
    tiles = np.broadcast_to(mask, (*row.stored.shape, int(row.whole_tiles.max())))
    wide = np.ones((*row.stored.shape, int(row.stored.max())), bool)
    wide[..., : tiles.shape[2] * SIZE] = np.repeat(tiles, SIZE, axis=2)
    return wide | (np.arange(wide.shape[2]) >= (row.whole_tiles * SIZE)[..., None])


def _row(prompt: int, processed: int, since: int, kept: list[list[np.ndarray]], heads: Sequence[int]) -> StoredRow:
    left = np.array([[len(own) for own in layer] for layer in kept], np.int64)
    has = np.arange(left.shape[1]) < np.array(heads)[:, None]
    padded = np.zeros((*left.shape, int(left.max(initial=0))), np.int64)
    for (layer, head), count in np.ndenumerate(left):
        padded[layer, head, :count] = kept[layer][head]
    return StoredRow(
        row=0,
        prompt_tokens=prompt,
        processed=processed,
        stored=np.where(has, left + processed - since, 0),
        kept=padded,
        left=np.where(has, left, 0),
        tile_tokens=SIZE,
    )
