"""Tests of the definition of KVarN attention: its regions, its life cycle, and its independence of chunks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.kvarn import decode, encode, from_record, hadamard, record_bytes
from enginewright.plugins.oracles.kvarn_attention import (
    KVarNCache,
    KVarNFormat,
    Weighting,
    attend_and_store,
)

DIM, HEADS, KV_HEADS, SCALE = 16, 4, 2, 0.25
FORMAT = KVarNFormat(k_bits=4, v_bits=2)


class Sequence:
    """One row that grows call by call; `drafts` of a call's tokens are not committed yet."""

    def __init__(self, tokens: int, *, exact_tiles: int = 2, form: KVarNFormat = FORMAT, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.query = rng.standard_normal((tokens, HEADS, DIM)).astype(np.float32)
        self.key = (rng.standard_normal((tokens, KV_HEADS, DIM)) * 2).astype(np.float32)
        self.value = rng.standard_normal((tokens, KV_HEADS, DIM)).astype(np.float32)
        tiles = -(-tokens // TILE_TOKENS)
        count = KV_HEADS * tiles
        self.cache = KVarNCache(
            records=rng.integers(-128, 128, (count, record_bytes(DIM, TILE_TOKENS, form.k_bits, form.v_bits)), np.int8),
            exact=np.full((3, KV_HEADS, exact_tiles, 2 * TILE_TOKENS * DIM), np.nan, np.float16),
            table=rng.permutation(count).astype(np.int32).reshape(1, KV_HEADS, tiles),
            slots=np.array([1], np.int32),
            held=np.zeros((1, KV_HEADS), np.int32),
            encoded=np.zeros((2, 1, KV_HEADS), np.int32),
            format=form,
        )

    @property
    def held(self) -> int:
        """The number of tokens so far."""
        return int(self.cache.held[0, 0])

    def call(self, count: int, *, drafts: int = 0, window: int = 0) -> np.ndarray:
        """Attend with the next `count` tokens."""
        new = slice(self.held, self.held + count)
        self.cache.encoded[1] = (new.stop - drafts) // TILE_TOKENS * TILE_TOKENS
        parts = (x[new] for x in (self.query, self.key, self.value))
        starts = np.array([0, count], np.int32)
        output = attend_and_store(*parts, self.cache, starts, Weighting(scale=SCALE, window=window))
        self.cache.encoded[0] = self.cache.encoded[1]
        self.cache.held[:] = new.stop
        return output

    def reject(self, count: int) -> None:
        """Forget the last tokens, which were drafts."""
        self.cache.held[:] -= count

    def records(self) -> np.ndarray:
        """The records that are valid, in order."""
        return self.cache.records[self.cache.table[0, :, 1 : self.cache.encoded[0, 0, 0] // TILE_TOKENS]]


def dense(s: Sequence, keys: np.ndarray, values: np.ndarray, tokens: slice, window: int = 0) -> np.ndarray:
    """Attention of the sequence's queries over keys and values [n, KV_HEADS, DIM]."""
    output = np.zeros((tokens.stop - tokens.start, HEADS, DIM))
    for i, token in enumerate(range(tokens.start, tokens.stop)):
        first = max(0, token + 1 - window) if window else 0
        for head in range(HEADS):
            seen = slice(first, token + 1)
            kv = head // (HEADS // KV_HEADS)
            logits = keys[seen, kv] @ s.query[token, head].astype(np.float64) * SCALE
            weights = np.exp(logits - logits.max())
            output[i, head] = weights @ values[seen, kv] / weights.sum()
    return output


@pytest.mark.parametrize("window", [0, 50])
def test_short_sequences_are_those_of_a_half_cache(window: int) -> None:
    s = Sequence(TILE_TOKENS)
    got = np.concatenate([s.call(n, window=window) for n in (1, 60, 67)])
    expected = dense(s, s.key.astype(np.float64), s.value.astype(np.float64), slice(0, TILE_TOKENS), window)
    np.testing.assert_allclose(got, expected, atol=6e-3)  # keys of size 2 as halves
    assert not s.records().size


def test_a_long_sequence_sees_its_regions() -> None:
    s = Sequence(700)
    s.call(600)
    got, h = s.call(1), hadamard(DIM)
    keys, values = s.key.astype(np.float64), s.value.astype(np.float64)
    for tile in range(1, 4):  # tokens 512 and later are not a whole tile
        span = slice(tile * TILE_TOKENS, (tile + 1) * TILE_TOKENS)
        for head in range(KV_HEADS):
            turned = [(x[span, head] @ h).astype(np.float16) for x in (keys, values)]
            keys[span, head] = decode(encode(turned[0].T, 4)).T @ h
            values[span, head] = decode(encode(turned[1], 2)) @ h
    np.testing.assert_allclose(got, dense(s, keys, values, slice(600, 601)), atol=6e-3)
    exact = dense(s, s.key.astype(np.float64), s.value.astype(np.float64), slice(600, 601))
    assert np.abs(got - exact).max() > 0.05  # so that the comparison above says something


def test_a_call_sees_its_own_tokens_exactly() -> None:
    s = Sequence(640)
    got = s.call(640)
    exact = dense(s, s.key.astype(np.float64), s.value.astype(np.float64), slice(0, 640))
    np.testing.assert_allclose(got, exact, atol=6e-3)
    assert s.records().shape[1] == 4


@pytest.mark.parametrize("chunks", [(128, 128, 144), (1,) * 400, (127, 1, 1, 271), (200, 200)])
def test_records_do_not_depend_on_chunks(chunks: tuple[int, ...]) -> None:
    whole, chunked = Sequence(400), Sequence(400)
    whole.call(400)
    for count in chunks:
        chunked.call(count)
    np.testing.assert_array_equal(chunked.records(), whole.records())
    np.testing.assert_array_equal(chunked.cache.exact[1, :, 0], whole.cache.exact[1, :, 0])


def test_a_token_is_exact_until_its_tile_is_complete() -> None:
    s = Sequence(300)
    s.call(255)
    last = s.call(1)  # completes tile 1 and still sees it exactly
    exact = dense(s, s.key.astype(np.float64), s.value.astype(np.float64), slice(255, 256))
    np.testing.assert_allclose(last, exact, atol=6e-3)
    assert s.records().shape[1] == 1
    exact = dense(s, s.key.astype(np.float64), s.value.astype(np.float64), slice(256, 257))
    assert np.abs(s.call(1) - exact).max() > 0.01


def test_rejected_drafts_leave_no_trace() -> None:
    plain, drafted = Sequence(400), Sequence(400, exact_tiles=3)
    for s in (plain, drafted):
        s.call(250)
    truth = drafted.key.copy(), drafted.value.copy()
    for x in (drafted.key, drafted.value):
        x[250:270] = 9.0  # drafts across the end of a tile, all rejected
    drafted.call(20, drafts=20)
    assert drafted.records().shape[1] == 0
    drafted.reject(20)
    drafted.key[:], drafted.value[:] = truth
    for count in (3, 1, 40):
        np.testing.assert_allclose(drafted.call(count), plain.call(count), atol=1e-6)
    np.testing.assert_array_equal(drafted.records(), plain.records())


def test_accepted_drafts_are_encoded_by_a_later_call() -> None:
    plain, drafted = Sequence(400), Sequence(400, exact_tiles=3)
    plain.call(250), drafted.call(250)
    plain.call(10), drafted.call(10, drafts=10)
    assert plain.records().shape[1] == 1 and drafted.records().shape[1] == 0
    plain.call(1), drafted.call(1)
    np.testing.assert_array_equal(drafted.records(), plain.records())


def test_rows_and_heads_have_lengths_of_their_own() -> None:
    s = Sequence(300)
    s.call(290)
    before = s.cache.exact.copy()
    cache = dataclasses.replace(
        s.cache,
        slots=np.array([2, 1], np.int32),
        held=np.array([[0, 0], [290, 290]], np.int32),
        table=np.concatenate([s.cache.table, s.cache.table]),
        encoded=np.array([[[0, 0], [256, 256]]] * 2, np.int32),
    )
    rows = [np.concatenate([x[:1], x[290:291]]) for x in (s.query, s.key, s.value)]
    together = attend_and_store(*rows, cache, np.array([0, 1, 2], np.int32), Weighting(scale=SCALE))
    s.cache.exact[:] = before
    np.testing.assert_array_equal(together[1:], s.call(1))
    values = s.value[0].astype(np.float64).repeat(HEADS // KV_HEADS, axis=0)
    np.testing.assert_allclose(together[0], values, atol=3e-3)


def test_records_are_the_codec_s() -> None:
    s = Sequence(256, form=KVarNFormat(k_bits=2, v_bits=8, iterations=3, mode="robust"))
    s.call(256)
    h = hadamard(DIM)
    for head in range(KV_HEADS):
        turned = (s.key[128:, head].astype(np.float64) @ h).astype(np.float16)
        key, _ = from_record(s.records()[head, 0].view(np.uint8), DIM, TILE_TOKENS, 2, 8)
        np.testing.assert_array_equal(key.codes, encode(turned.T, 2, 3, "robust").codes)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [((0, 130), "got 0 and 130 of 0 held"), ((0, 384), "got 0 and 384"), ((0, 0), "room for 1 newest tiles")],
)
def test_lengths_that_contradict_each_other(encoded: tuple[int, int], message: str) -> None:
    s = Sequence(300)
    s.cache.encoded[:] = np.array(encoded, np.int32).reshape(2, 1, 1)
    with pytest.raises(ValueError, match=message):
        attend_and_store(s.query, s.key, s.value, s.cache, np.array([0, 300], np.int32), Weighting(scale=SCALE))
