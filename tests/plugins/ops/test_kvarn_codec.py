"""Tests of KVarN's tile codec: the invariants that define it, and values computed independently of this code."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enginewright.plugins.oracles.kvarn import (
    BITS,
    MODES,
    Tile,
    balance,
    decode,
    encode,
    from_record,
    hadamard,
    pack,
    record_bytes,
    to_record,
    unpack,
)

# A 4 x 4 tile whose imbalance falls in every iteration, with the numbers that the published algorithm gives for it.
TILE = np.array([[1, -2, 4, 0.5], [10, 20, -30, 5], [0.5, 1.5, -1, 3], [-2, 6, 8, -4]])
TRACE = [17.359288, 5.355511, 3.640813, 2.968494, 2.691235, 2.506346, 2.387522, 2.315527, 2.282874]
B2 = [-0.738281, -6.527344, -0.217651, -1.767578]
C = [1.131836, 2.708984, 4.59375, 2.455078]
TILES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12),
    elements=st.floats(-100, 100, width=32),
)


def synthetic_keys(seed: int, *, tokens: int = 1024, channels: int = 128) -> np.ndarray:
    """Keys [tokens, channels] with outlier channels, channel offsets, and tokens of very different size."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((tokens, channels))
    keys[:, rng.choice(channels, 4, replace=False)] *= 12
    keys += rng.standard_normal(channels)
    sizes = np.exp(0.4 * rng.standard_normal(tokens))
    sizes[rng.random(tokens) < 0.02] *= 6
    return keys * sizes[:, None]


def tiles_of(x: np.ndarray) -> np.ndarray:
    """[tokens, channels] as tiles [n, 128, channels]."""
    return x.reshape(-1, 128, x.shape[1])


def relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


class TestBalance:
    def test_trace_and_scales_of_the_reference_tile(self) -> None:
        balanced, columns, rows, trace = balance(TILE)
        np.testing.assert_allclose(trace, TRACE, atol=5e-7)
        np.testing.assert_allclose(columns, [1.131358, 2.708853, 4.595571, 2.454257], atol=5e-7)
        np.testing.assert_allclose(rows, [0.764541, 6.952161, 0.740818, 2.132288], atol=5e-7)
        assert balance(TILE, 16).imbalance_trace[-1] == pytest.approx(2.174577, abs=5e-7)
        np.testing.assert_allclose(balanced * rows[:, None] * columns, TILE, rtol=1e-12)

    def test_one_iteration_of_the_reference_tile(self) -> None:
        _, columns, rows, _ = balance(TILE, 1)
        np.testing.assert_allclose(columns, [5.25, 9.655525, 17.23127, 3.881044], rtol=1e-6)
        np.testing.assert_allclose(rows, [0.740818, 1.780068, 0.740818, 0.770823], rtol=1e-6)

    @given(tile=TILES, iterations=st.integers(0, 12), mode=st.sampled_from(MODES))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_invariants(self, tile: np.ndarray, iterations: int, mode: str) -> None:
        balanced, columns, rows, trace = balance(tile, iterations, mode)
        np.testing.assert_allclose(balanced * rows[:, None] * columns, tile, rtol=1e-6, atol=1e-30)
        assert trace.shape == (iterations + 1,)
        assert trace.min() <= trace[0]
        low, high = np.exp(-0.3) * (1 - 1e-12), np.exp(10.0) * (1 + 1e-12)
        assert ((rows >= low) & (rows <= high)).all()
        if mode == "release":
            assert ((columns >= low) & (columns <= high)).all() or iterations == 0

    def test_the_best_iterate_is_kept(self) -> None:
        for tile in tiles_of(synthetic_keys(3) @ hadamard(128)):
            balanced, _, _, trace = balance(tile, 16)
            stds = [balanced.std(axis=axis, ddof=1) for axis in (0, 1)]
            assert sum(std.max() / std.min() for std in stds) == pytest.approx(trace.min(), rel=1e-9)
            assert 2 <= trace.min() < 2.6

    def test_no_iteration_scales_nothing(self) -> None:
        balanced, columns, rows, _ = balance(TILE, 0)
        np.testing.assert_array_equal(balanced, TILE)
        assert (columns == 1).all() and (rows == 1).all()

    def test_release_leaves_small_tiles_unbalanced_and_robust_does_not(self) -> None:
        small = 0.01 * tiles_of(synthetic_keys(1) @ hadamard(128))[0].T
        released, robust = balance(small), balance(small, mode="robust")
        assert np.ptp(released.row_scale) == 0 and np.ptp(released.imbalance_trace) < 1e-9
        assert robust.imbalance_trace.min() < 0.25 * robust.imbalance_trace[0]
        errors = [relative_error(decode(encode(small, 2, mode=mode)), small) for mode in MODES]
        assert errors[1] < 0.7 * errors[0]
        scaled = balance(small * 1000, mode="robust")
        np.testing.assert_allclose(scaled.column_scale, 1000 * robust.column_scale, rtol=1e-9)

    def test_a_batch_is_its_tiles(self) -> None:
        tiles = tiles_of(synthetic_keys(2))[:3] * np.array([1, 0.01, 30])[:, None, None]
        for mode in MODES:
            together = balance(tiles, mode=mode)
            for i, tile in enumerate(tiles):
                for got, alone in zip(together, balance(tile, mode=mode), strict=True):
                    np.testing.assert_array_equal(got[:, i] if got is together.imbalance_trace else got[i], alone)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"tile": np.zeros(8)}, r"tile: got shape \(8,\), expected two rows"),
            ({"tile": np.zeros((1, 8))}, r"tile: got shape \(1, 8\)"),
            ({"tile": np.full((2, 2), np.nan)}, "not finite"),
            ({"tile": TILE, "iterations": -1}, "iterations: got -1"),
            ({"tile": TILE, "mode": "fast"}, "mode: got 'fast', expected one of release, robust"),
        ],
    )
    def test_bad_input(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            balance(**arguments)


class TestEncode:
    def test_reference_tile_in_two_bits(self) -> None:
        tile = encode(TILE, 2)
        assert tile.codes.tolist() == [[3, 0, 3, 2], [3, 3, 0, 2], [1, 2, 0, 3], [0, 3, 3, 0]]
        np.testing.assert_allclose(tile.a, [0.540527, 5.121094, 0.47998, 1.327148], atol=5e-7)
        np.testing.assert_allclose(tile.b, B2, atol=5e-7)
        np.testing.assert_allclose(tile.c, C, atol=5e-7)
        assert np.mean((decode(tile) - TILE) ** 2) == pytest.approx(2.35738, abs=5e-6)

    def test_reference_tile_in_four_bits(self) -> None:
        tile = encode(TILE, 4)
        assert tile.codes.tolist() == [[15, 0, 15, 9], [15, 14, 0, 8], [7, 8, 0, 15], [0, 15, 13, 1]]
        np.testing.assert_allclose(tile.a, [0.108154, 1.024414, 0.096008, 0.265625], atol=5e-7)
        np.testing.assert_allclose(tile.b, B2, atol=5e-7)
        np.testing.assert_allclose(tile.c, C, atol=5e-7)
        assert np.mean((decode(tile) - TILE) ** 2) == pytest.approx(0.147509, abs=5e-7)

    @pytest.mark.parametrize(("bits", "per_row", "per_column"), [(2, 3.52216, 3.03853), (4, 0.196770, 0.210890)])
    def test_without_iterations_it_is_plain_rounding(self, bits: int, per_row: float, per_column: float) -> None:
        # the reference rounds with float64 scales, ours with halves
        for tile, wanted in ((TILE, per_row), (TILE.T, per_column)):
            assert np.mean((decode(encode(tile, bits, 0)) - tile) ** 2) == pytest.approx(wanted, rel=2e-3)

    @given(tile=TILES, bits=st.sampled_from(BITS), mode=st.sampled_from(MODES))
    @settings(max_examples=150, deadline=None, derandomize=True)
    def test_invariants(self, tile: np.ndarray, bits: int, mode: str) -> None:
        stored = encode(tile, bits, mode=mode)
        assert stored.codes.max(initial=0) <= 2**bits - 1
        balanced = balance(tile, mode=mode)
        for row, codes in zip(balanced.balanced, stored.codes, strict=True):
            if np.ptp(row) > 1e-6:  # far above the smallest step
                assert {0, 2**bits - 1} <= set(codes.tolist())
        error = np.abs(decode(stored) - tile)
        a, b, c = (x.astype(np.float64) for x in (stored.a, stored.b, stored.c))
        halves = 2.0**-10 * (np.abs(stored.codes * a[:, None]) + np.abs(b)[:, None]) * c + 2.0**-23 * (2**bits) * c
        assert (error <= 0.5 * a[:, None] * c * (1 + 2.0**-9) + halves + 1e-6).all()

    def test_constant_rows_and_zeros_are_exact(self) -> None:
        np.testing.assert_array_equal(decode(encode(np.zeros((4, 4)), 2)), np.zeros((4, 4)))
        rows = np.array([[3.0] * 8, [-0.5] * 8])
        stored = encode(rows, 2)
        assert not stored.codes.any()
        np.testing.assert_allclose(decode(stored), rows, rtol=2e-3)

    def test_columns_may_be_permuted(self) -> None:
        tile = tiles_of(synthetic_keys(5) @ hadamard(128))[0].T
        order = np.random.default_rng(0).permutation(128)
        plain, mixed = encode(tile, 4), encode(tile[:, order], 4)
        np.testing.assert_array_equal(mixed.codes, plain.codes[:, order])
        np.testing.assert_array_equal(mixed.c, plain.c[order])
        np.testing.assert_array_equal(mixed.a, plain.a)

    def test_huge_numbers_saturate(self) -> None:
        stored = encode(np.array([[1e30, -1e30], [1e30, 0.0]]), 2)
        assert np.isfinite(decode(stored)).all()

    def test_bits_that_are_not_offered(self) -> None:
        with pytest.raises(ValueError, match="bits: got 3, expected one of 2, 4, 8"):
            encode(TILE, 3)


class TestRecord:
    def test_packing(self) -> None:
        assert pack(np.array([3, 0, 1, 2, 2, 1, 0, 3], np.uint8), 2).tolist() == [0x93, 0xC6]
        assert pack(np.array([15, 0, 9, 7], np.uint8), 4).tolist() == [0x0F, 0x79]
        rng = np.random.default_rng(0)
        for bits in BITS:
            codes = rng.integers(0, 2**bits, (3, 16), np.uint8)
            np.testing.assert_array_equal(unpack(pack(codes, bits), bits), codes)

    @pytest.mark.parametrize(
        ("dim", "tokens", "bits", "size"),
        [
            (128, 128, (2, 2), 9728),
            (128, 128, (4, 2), 13824),
            (128, 128, (4, 4), 17920),
            (128, 64, (4, 2), 7296),
            (64, 128, (4, 2), 7296),
            (256, 128, (4, 2), 26880),
            (512, 128, (4, 2), 52992),
        ],
    )
    def test_sizes_and_round_trip(self, dim: int, tokens: int, bits: tuple[int, int], size: int) -> None:
        assert record_bytes(dim, tokens, *bits) == size
        keys, values = synthetic_keys(0, tokens=tokens, channels=dim), synthetic_keys(1, tokens=tokens, channels=dim)
        stored = encode(keys.T, bits[0]), encode(values, bits[1])
        record = to_record(*stored, *bits)
        assert record.shape == (size,) and record.dtype == np.uint8
        for got, wanted in zip(from_record(record, dim, tokens, *bits), stored, strict=True):
            for name in ("codes", "a", "b", "c"):
                np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))

    def test_order(self) -> None:
        def numbered(rows: int, columns: int, base: int) -> Tile:
            vectors = [np.full(n, base + i, np.float16) for i, n in enumerate((rows, rows, columns))]
            return Tile(np.full((rows, columns), base, np.uint8), *vectors)

        record = to_record(numbered(4, 8, 1), numbered(8, 4, 4), 4, 8)
        codes, rest = record[:16], record[16 : 16 + 2 * 16].view(np.float16)
        assert (codes == 0x11).all() and rest.tolist() == [1] * 4 + [2] * 4 + [3] * 8
        codes, rest = record[48 : 48 + 32], record[80:].view(np.float16)
        assert (codes == 4).all() and rest.tolist() == [6] * 4 + [4] * 8 + [5] * 8

    def test_a_record_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"got shape \(5,\), expected \(13824,\)"):
            from_record(np.zeros(5, np.uint8), 128, 128, 4, 2)


class TestRotation:
    @pytest.mark.parametrize("size", [1, 2, 64, 128, 256])
    def test_orthonormal_and_symmetric(self, size: int) -> None:
        h = hadamard(size)
        np.testing.assert_allclose(h @ h, np.eye(size), atol=1e-12)
        np.testing.assert_array_equal(h, h.T)

    @pytest.mark.parametrize("size", [0, 3, 96])
    def test_other_sizes_are_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match=f"got {size}, expected a power of two"):
            hadamard(size)


class TestErrors:
    """The purpose of the method: tokens of all magnitudes keep their norms."""

    @staticmethod
    def norm_error(got: np.ndarray, wanted: np.ndarray) -> float:
        """Mean relative error of the norm over the worst 5 % of tokens."""
        norms = np.linalg.norm(wanted, axis=-1)
        errors = np.abs(np.linalg.norm(got, axis=-1) - norms) / norms
        return float(np.sort(errors.reshape(-1))[-errors.size // 20 :].mean())

    @pytest.mark.parametrize("seed", range(3))
    def test_two_bit_keys(self, seed: int) -> None:
        keys, h = synthetic_keys(seed), hadamard(128)
        tiles, rotated = tiles_of(keys), tiles_of(keys @ h)

        def per_channel(x: np.ndarray, iterations: int) -> np.ndarray:
            return decode(encode(x.swapaxes(-1, -2), 2, iterations)).swapaxes(-1, -2)

        kvarn, kivi, turned = per_channel(rotated, 8) @ h, per_channel(tiles, 0), per_channel(rotated, 0) @ h
        assert relative_error(kvarn, tiles) < 0.6 * min(relative_error(kivi, tiles), relative_error(turned, tiles))
        assert self.norm_error(kvarn, tiles) < 0.1 * min(self.norm_error(kivi, tiles), self.norm_error(turned, tiles))

    def test_two_bit_values(self) -> None:
        values, h = synthetic_keys(7), hadamard(128)
        tiles, rotated = tiles_of(values), tiles_of(values @ h)
        assert relative_error(decode(encode(rotated, 2)) @ h, tiles) < relative_error(
            decode(encode(tiles, 2, 0)), tiles
        )

    def test_nothing_is_gained_where_there_is_nothing_to_balance(self) -> None:
        tiles = tiles_of(np.random.default_rng(0).standard_normal((1024, 128)))
        errors = [relative_error(decode(encode(tiles, 2, iterations)), tiles) for iterations in (0, 8)]
        assert errors == pytest.approx([0.5, 0.5], abs=0.03)
