"""Tests of KVarNAttention through ONNX Runtime against its oracle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.tiles import TILE_TOKENS, kvarn_tile_bytes
from enginewright.plugins.oracles.kvarn import record_bytes
from tests.support.ops.kvarn_cases import CASES
from tests.support.ops.kvarn_inputs import (
    Arrays,
    Case,
    Row,
    check,
    check_record,
    inputs_and_answer,
    make_inputs,
    tile_views,
)
from tests.support.ops.op_session import run_op, run_op_in_place

pytestmark = pytest.mark.native
NAME = KVARN_ATTENTION.name
BY_NAME = {case.name: case for case in CASES}


def run(case: Case, arrays: Arrays, threads: int = 2) -> list[np.ndarray]:
    return run_op(NAME, arrays, threads, **case.attributes)


def assert_bitwise_equal(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for mine, its in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(mine.view(np.uint8), its.view(np.uint8))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_oracle_and_itself_in_place_and_on_one_thread(case: Case, isa: str) -> None:
    arrays, answer = inputs_and_answer(case)
    copied = run(case, arrays)
    check(case, arrays, copied, answer)
    assert_bitwise_equal(run_op_in_place(NAME, arrays, **case.attributes), copied)
    assert_bitwise_equal(run(case, arrays, threads=1), copied)


def row_alone(case: Case, arrays: Arrays, row: int) -> tuple[Case, Arrays]:
    """The call with one of its rows only."""
    start, end = arrays["query_starts"][row : row + 2]
    alone = dict(arrays)
    for name in ("query", "key", "value"):
        alone[name] = arrays[name][start:end]
    alone["query_starts"] = np.array([0, end - start], np.int32)
    for name in ("kv_lens", "tile_table"):
        alone[name] = arrays[name][:, row : row + 1]
    alone["encoded_lens"] = arrays["encoded_lens"][:, :, row : row + 1]
    alone["slots"] = arrays["slots"][row : row + 1]
    return replace(case, rows=case.rows[row : row + 1]), alone


@pytest.mark.parametrize("name", ["mixed", "decode_edges", "everything", "window_200", "late"])
def test_a_row_is_bitwise_the_same_alone_and_in_a_batch(name: str, isa: str) -> None:
    case = BY_NAME[name]
    arrays, _ = inputs_and_answer(case)
    together = run(case, arrays)
    for row in range(len(case.rows)):
        start, end = arrays["query_starts"][row : row + 2]
        alone = run(*row_alone(case, arrays, row))
        np.testing.assert_array_equal(alone[0], together[0][start:end])
        slot, ids = arrays["slots"][row], arrays["tile_table"][case.layer, row]
        assert_bitwise_equal([alone[1][ids[ids >= 0]], alone[2][slot]], [together[1][ids[ids >= 0]], together[2][slot]])


def test_one_session_serves_concurrent_calls(isa: str) -> None:
    case = BY_NAME["mixed"]
    calls = [make_inputs(case, seed) for seed in range(4)]
    wanted = [run(case, arrays) for arrays in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        for _ in range(3):
            for got, alone in zip(pool.map(lambda arrays: run(case, arrays), calls), wanted, strict=True):
                assert_bitwise_equal(got, alone)


@pytest.mark.parametrize(("k_bits", "v_bits"), [(4, 2), (2, 2), (2, 8), (8, 4)])
@pytest.mark.parametrize("dim", [64, 128])
def test_reading_codes_is_decoding_then_attending(k_bits: int, v_bits: int, dim: int, isa: str) -> None:
    """Few lanes read codes and many lanes read decoded tiles; the same query goes through both."""
    few = Case(name="few", rows=(Row(1400, 1),), query_heads=4, kv_heads=1, dim=dim, k_bits=k_bits, v_bits=v_bits)
    arrays = make_inputs(few)
    many = {**arrays, "query": np.tile(arrays["query"], (1, 8, 1))}
    answers = run(few, arrays)[0], run(few, many)[0]
    np.testing.assert_allclose(answers[1], np.tile(answers[0], (1, 8, 1)), rtol=0, atol=1e-5)


class Generation:
    """A sequence with its own caches, decoded call by call by both the op and the oracle."""

    def __init__(self, tokens: int, *, form: dict[str, int], exact_tiles: int = 2, dim: int = 32) -> None:
        rng = np.random.default_rng(0)
        self.form, self.held, self.encoded, tiles = form, 0, 0, tokens // TILE_TOKENS + 1
        self.source = {
            name: rng.standard_normal((tokens, heads, dim)).astype(np.float32)
            for name, heads in (("query", 4), ("key", 2), ("value", 2))
        }
        self.table = rng.permutation(2 * tiles).astype(np.int32).reshape(1, 1, 2, tiles)
        size = kvarn_tile_bytes(dim, form["k_bits"], form["v_bits"])
        self.pools = {
            "tiles": np.zeros((2 * tiles, size), np.int8),
            "exact": np.zeros((1, 2, exact_tiles, 2 * TILE_TOKENS * dim), np.float16),
        }

    def call(self, count: int, drafts: int = 0) -> tuple[Arrays, int]:
        """The arrays of a call with the next `count` tokens, with the number of tokens encoded after it."""
        end = self.held + count
        after = max(self.encoded, (end - drafts) // TILE_TOKENS * TILE_TOKENS)
        lens = np.array([self.encoded, after], np.int32).reshape(2, 1, 1, 1)
        arrays = {name: x[self.held : end] for name, x in self.source.items()} | self.pools
        arrays |= {
            "query_starts": np.array([0, count], np.int32),
            "kv_lens": np.full((1, 1, 2), self.held, np.int32),
            "tile_table": self.table,
            "slots": np.zeros(1, np.int32),
            "encoded_lens": np.broadcast_to(lens, (2, 1, 1, 2)).copy(),
        }
        return arrays, after

    def commit(self, held: int, encoded: int, tiles: np.ndarray, exact: np.ndarray) -> None:
        self.held, self.encoded, self.pools = held, encoded, {"tiles": tiles, "exact": exact}

    @property
    def attributes(self) -> dict[str, float]:
        return {"layer": 0, "scale": 0.2, **self.form}


@pytest.mark.parametrize("form", [{"k_bits": 4, "v_bits": 2}, {"k_bits": 2, "v_bits": 8, "robust": 1}], ids=str)
def test_a_long_decode_token_by_token(form: dict[str, int], isa: str) -> None:
    """Each call starts from the op's own cache; the oracle follows from the same bytes."""
    s = Generation(460, form=form)
    oracle = KVARN_ATTENTION.load_oracle()
    for count in [3] + [1] * 457:
        arrays, after = s.call(count)
        got = run_op_in_place(NAME, arrays, **s.attributes)
        end, completes = s.held + count, after > s.encoded
        if completes or s.held % 16 == 3:
            wanted = oracle(**arrays, **s.attributes)
            np.testing.assert_allclose(got[0], wanted[0], rtol=0, atol=1e-4)
            size = s.pools["tiles"].shape[1]
            same = (got[1] == wanted[1]).mean() if completes else float(np.array_equal(got[1], s.pools["tiles"]))
            assert same > 0.999, size
        s.commit(end, after, got[1], got[2])
    assert s.encoded == 384


@pytest.mark.parametrize("chunks", [(460,), (128, 128, 204), (127, 1, 1, 331), (200, 200, 60), (1,) * 140 + (320,)])
def test_records_do_not_depend_on_chunks(chunks: tuple[int, ...], isa: str) -> None:
    """A tile's record is a function of its tokens: not of the calls that brought them, nor of the ring or spare tiles."""
    form = {"k_bits": 4, "v_bits": 2}
    records = []
    for parts, exact_tiles in (((300, 160), 3), (chunks, 2)):
        s = Generation(460, form=form, exact_tiles=exact_tiles)
        for count in parts:
            arrays, after = s.call(count)
            _, tiles, exact = run_op_in_place(NAME, arrays, **s.attributes)
            s.commit(s.held + count, after, tiles, exact)
        records.append(s.pools["tiles"][s.table[0, 0, :, 1:3]])
    np.testing.assert_array_equal(*records)


def test_rejected_drafts_leave_no_trace(isa: str) -> None:
    form = {"k_bits": 4, "v_bits": 2}
    plain, drafted = Generation(400, form=form, exact_tiles=3), Generation(400, form=form, exact_tiles=3)
    for s, drafts in ((plain, 0), (drafted, 20)):
        for count in (250, 20, 150) if drafts else (250, 150):
            truth = {name: x.copy() for name, x in s.source.items()}
            if count == 20:
                for x in s.source.values():
                    x[250:270] = 9.0
            arrays, after = s.call(count, drafts if count == 20 else 0)
            output, tiles, exact = run_op_in_place(NAME, arrays, **s.attributes)
            s.commit(s.held + (0 if count == 20 else count), after, tiles, exact)
            s.source = truth
        s.last = output  # type: ignore[attr-defined]
    np.testing.assert_array_equal(plain.last, drafted.last)  # type: ignore[attr-defined]
    ids = plain.table[0, 0, :, 1:3]
    np.testing.assert_array_equal(plain.pools["tiles"][ids], drafted.pools["tiles"][ids])


@pytest.mark.parametrize("magnitude", [0.02, 1.0, 40.0])
@pytest.mark.parametrize("robust", [0, 1])
@pytest.mark.parametrize("dim", [64, 128])
def test_uneven_tiles_are_encoded_as_the_codec_does(magnitude: float, robust: int, dim: int, isa: str) -> None:
    """Outlier channels, offsets, and tokens of very different size, from the very halves that the oracle encodes."""
    case = Case(name="uneven", rows=(Row(256, 1, 0, 1),), query_heads=2, dim=dim, k_bits=4, v_bits=4, robust=robust)
    arrays, rng = make_inputs(case), np.random.default_rng(5)
    for head in range(case.kv_heads):
        for view in tile_views(arrays["exact"][arrays["slots"][0], head, 1]):
            x = rng.standard_normal((TILE_TOKENS, dim)) + 3 * rng.standard_normal(dim)
            x[:, rng.choice(dim, 4, replace=False)] *= 12
            x *= np.exp(0.4 * rng.standard_normal((TILE_TOKENS, 1))) * magnitude
            view[:TILE_TOKENS] = x.astype(np.float16)
    got, wanted = run(case, arrays), KVARN_ATTENTION.load_oracle()(**arrays, **case.attributes)
    records = arrays["tile_table"][case.layer, 0, :, 1]
    assert not np.array_equal(got[1][records], arrays["tiles"][records])
    for record in records:
        check_record(case, got[1][record], wanted[1][record])


def test_constant_tiles_and_zeros_are_exact(isa: str) -> None:
    for robust in (0, 1):
        s = Generation(300, form={"k_bits": 2, "v_bits": 2, "robust": robust, "rotate_values": 0})
        s.source["key"][:], s.source["value"][:] = 0.0, 0.75
        arrays, after = s.call(299)
        _, tiles, exact = run_op_in_place(NAME, arrays, **s.attributes)
        s.commit(299, after, tiles, exact)
        arrays, _ = s.call(1)
        np.testing.assert_allclose(run_op_in_place(NAME, arrays, **s.attributes)[0], 0.75, rtol=1e-3)


def test_infinities_saturate_and_nothing_breaks(isa: str) -> None:
    s = Generation(300, form={"k_bits": 4, "v_bits": 2, "rotate_values": 0})
    s.source["value"][130, 0, :2] = np.inf, np.nan
    arrays, after = s.call(300)
    _, tiles, exact = run_op_in_place(NAME, arrays, **s.attributes)
    s.commit(300, after, tiles, exact)
    assert tiles[s.table[0, 0, 1, 1]].any()


@pytest.mark.parametrize("dim", [16, 64, 128, 512])
def test_bytes_of_a_tile(dim: int) -> None:
    for bits in ((4, 2), (2, 2), (8, 8), (4, 4)):
        assert kvarn_tile_bytes(dim, *bits) == record_bytes(dim, TILE_TOKENS, *bits)
    assert kvarn_tile_bytes(128, 4, 2) == 108 * TILE_TOKENS


@given(
    rows=st.lists(st.tuples(st.integers(0, 600), st.integers(0, 140), st.integers(0, 20)), max_size=3),
    window=st.sampled_from([0, 0, 1, 37, 130]),
    group=st.integers(1, 9),
    dim=st.sampled_from([16, 32, 64]),
    skew=st.integers(0, 200),
    bits=st.tuples(st.sampled_from([2, 4, 8]), st.sampled_from([2, 4, 8])),
    exact_tiles=st.integers(2, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_ragged_shapes(
    rows: list[tuple[int, int, int]],
    window: int,
    group: int,
    dim: int,
    skew: int,
    bits: tuple[int, int],
    exact_tiles: int,
    seed: int,
) -> None:
    drafts = exact_tiles > 2  # one tile has no room for drafts across its end
    case = Case(
        name="ragged",
        rows=tuple(Row(held, new, min(draft, new) if drafts else 0) for held, new, draft in rows),
        window=window,
        query_heads=2 * group,
        dim=dim,
        k_bits=bits[0],
        v_bits=bits[1],
        held_skew=skew,
        exact_tiles=exact_tiles,
    )
    arrays = make_inputs(case, seed)
    check(case, arrays, run(case, arrays), KVARN_ATTENTION.load_oracle()(**arrays, **case.attributes))
