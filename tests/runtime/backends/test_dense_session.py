"""Tests of packed steps as runs of a dense graph: the tokens of each run, their places, and the returned outputs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Cache, CacheLayer
from enginewright.runtime.backends.dense_session import DenseCall, DenseSession
from enginewright.runtime.backends.session import Outputs, PackedStep
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.tile_tables import TileTables

ROWS, CONTEXT, VOCAB = 5, 64, 100
CAPACITY = Capacity(rows=ROWS, context=CONTEXT, step_tokens=40, logit_rows=20, tiles=(ROWS,))
LAYER = CacheLayer(kv_heads=1, key_dim=1, value_dim=1, tile_bytes=8 * CONTEXT)
CACHE = Cache(kind="dense", tile_tokens=CONTEXT, kv_bits=32, layers=(LAYER,))


class HistoryGraph:
    """A graph whose cache is the tokens themselves, and whose logits depend on all of a token's past.

    A token's prediction is a sum over what its row holds up to it, so a token in a wrong place shows in the outputs.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.run_seconds = 0.0
        self.cache = np.full((ROWS, CONTEXT), -1, np.int64)
        self.calls: list[DenseCall] = []
        self.logits = np.full((CAPACITY.logit_rows + 1, VOCAB), np.nan, np.float32)
        self.greedy = np.full(CAPACITY.logit_rows + 1, -7, np.int64)

    def run(self, call: DenseCall) -> None:
        self.calls.append(call)
        rows, tokens = call.input_ids.shape
        assert tokens <= self.longest and call.position_ids.shape == (rows, tokens) and call.past_lens.shape == (rows,)
        for i in range(rows):
            begin = int(call.past_lens[i])
            assert begin + tokens <= CONTEXT
            self.cache[call.first + i, begin : begin + tokens] = call.input_ids[i]
        for n, flat in enumerate(call.sample_rows.tolist()):
            row, place = call.first + flat // tokens, int(call.position_ids.reshape(-1)[flat])
            self.greedy[call.at + n] = signature(self.cache[row, : place + 1])
            self.logits[call.at + n] = self.greedy[call.at + n]

    def outputs(self, rows: int, *, reads_logits: bool) -> Outputs:
        return Outputs(self.logits[:rows], self.greedy[:rows], {"twice": 2 * self.greedy[:rows]})


def signature(tokens: NDArray[np.int64]) -> int:
    """A number that depends on every token and its place."""
    assert (tokens >= 0).all(), "a token that was never written is read"
    return int((tokens * (np.arange(len(tokens)) * 37 + 11)).sum() % 9973)


def step_of(tables: TileTables, new: dict[int, list[int]], *, order: list[int] | None = None) -> PackedStep:
    """A step with the `new` tokens of each row; samples every token, in `order` where given."""
    counts = np.array([len(new.get(row, [])) for row in range(ROWS)])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    ids = np.array([token for row in range(ROWS) for token in new.get(row, [])], np.int64)
    positions = np.concatenate([tables.held[row] + np.arange(counts[row]) for row in range(ROWS)]).astype(np.int64)
    samples = np.arange(len(ids)) if order is None else np.array(order, np.int64)
    return PackedStep(ids, positions, starts, samples)


def serve(longest: int, steps: list[dict[int, list[int]]], order: list[int] | None = None) -> HistoryGraph:
    """Run the steps and compare every sampled token with its row's own history."""
    tables, graph = TileTables(CACHE, CAPACITY), HistoryGraph(longest)
    session = DenseSession(graph, tables, CAPACITY)
    history: dict[int, list[int]] = {row: [] for row in range(ROWS)}
    for new in steps:
        step = step_of(tables, new, order=order)
        outputs = session.run(step)
        seen = [(row, len(history[row]) + i + 1) for row in range(ROWS) for i in range(len(new.get(row, [])))]
        for row, tokens in new.items():
            history[row] += tokens
        expected = [signature(np.array(history[seen[s][0]][: seen[s][1]])) for s in step.sample_rows.tolist()]
        assert outputs.greedy.tolist() == expected
        assert (outputs.logits == np.array(expected, np.float32)[:, None]).all()
        assert outputs.extra["twice"].tolist() == [2 * token for token in expected]
        tables.advance(np.array([len(new.get(row, [])) for row in range(ROWS)]))
    return graph


def test_decoding_is_one_run() -> None:
    graph = serve(40, [{0: [3, 4, 5], 1: [6], 2: [7, 8]}, {0: [9], 1: [10], 2: [11]}])
    last = graph.calls[-1]
    assert len(graph.calls) == 1 + 2 + 1  # row 1 alone, rows 0 and 2, then all
    assert (last.first, last.input_ids.tolist(), last.past_lens.tolist()) == (0, [[9], [10], [11]], [3, 1, 2])


def test_rows_between_decoding_ones_stay_whole() -> None:
    """A run writes a token to every row; rows without one, or with several, overwrite it with their own tokens."""
    serve(
        40, [{0: [1, 2], 1: [3, 4, 5], 3: [9]}, {0: [6], 3: [7]}, {0: [8], 1: [5, 5], 3: [1]}, {1: [2], 4: [3, 3, 3]}]
    )


@pytest.mark.parametrize("longest", [1, 2, 3, 7, 40])
def test_long_rows_come_in_pieces(longest: int) -> None:
    graph = serve(longest, [{1: list(range(1, 10))}, {1: [4], 2: [5, 6, 7, 8, 9]}])
    assert all(call.input_ids.shape[1] <= longest for call in graph.calls)


def test_outputs_come_in_the_order_asked_for() -> None:
    new = {0: [3, 4, 5], 1: [6], 2: [7, 8], 3: [9]}
    for order in ([6, 0, 3], [2, 3, 5, 6], [1], [5, 4, 3, 2, 1, 0]):
        serve(40, [new], order=order)


def test_a_run_of_which_nothing_is_wanted_leaves_the_outputs_alone() -> None:
    graph = serve(2, [{0: [1, 2, 3, 4, 5], 1: [6]}], order=[0])  # row 1, and all pieces of row 0 but the first
    assert [call.at for call in graph.calls] == [CAPACITY.logit_rows, 0, CAPACITY.logit_rows, CAPACITY.logit_rows]
    assert all(len(call.sample_rows) == 1 for call in graph.calls)


def test_a_full_row_is_not_written_beyond_its_end() -> None:
    tables, graph = TileTables(CACHE, CAPACITY), HistoryGraph(CONTEXT)
    tables.held[0] = CONTEXT  # its request has just ended, and row 1 goes on
    graph.cache[1, 0] = 5
    tables.held[1] = 1
    step = step_of(tables, {1: [6]})
    assert DenseSession(graph, tables, CAPACITY).run(step).greedy.tolist() == [signature(np.array([5, 6]))]
    assert graph.calls[0].past_lens.tolist() == [CONTEXT - 1, 1]
