"""Tests of the command `benchmarks.quality.evicted_texts`: the kept share of attention, cells, and a small run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import results_file, topic_texts
from benchmarks.quality import evicted_texts
from benchmarks.quality.evicted_cells import TextCell, compared_with
from benchmarks.quality.kept_attention import attention_weights, kept_share, sample_queries
from enginewright.runtime.cache.policy import StoredRow
from tests.support.paths import ROOT

CELL = TextCell(
    windows=[100, 200],
    tokens=[10, 30],
    nats=[20.0, 60.0],
    exact_nats=[10.0, 50.0],
    kl=[4.0, 8.0],
    queries=[2, 6],
    mass=[1.0, 5.0],
    heads=[[0.75]],
    peaks={"100": 7, "200": 9},
)


def test_weights_are_the_softmax_of_each_query_over_what_it_sees() -> None:
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 6, 5)).astype(np.float32), rng.normal(size=(7, 3, 5)).astype(np.float32)
    found = attention_weights(query, key, np.array([3, 6]), 0.5)
    for index, position in enumerate((3, 6)):
        for head in range(3):
            wanted = np.zeros(7)
            for each in (2 * head, 2 * head + 1):
                weights = np.exp(0.5 * key[: position + 1, head] @ query[index, each])
                wanted[: position + 1] += weights / weights.sum() / 2
            np.testing.assert_allclose(found[head, index], wanted, rtol=1e-5, atol=1e-7)


def row(processed: int, kept: list[list[int]]) -> StoredRow:
    """A row with one layer, whose heads have kept these positions."""
    most = max(map(len, kept))
    return StoredRow(
        row=0,
        prompt_tokens=0,
        processed=processed,
        stored=np.array([[len(each) for each in kept]]),
        kept=np.array([[each + [0] * (most - len(each)) for each in kept]]),
        left=np.array([[len(each) for each in kept]]),
        tile_tokens=128,
    )


def test_a_query_sees_what_the_eviction_before_it_left_and_all_that_came_after() -> None:
    weights = np.random.default_rng(1).random((1, 2, 4, 12)).astype(np.float32)
    positions = np.array([3, 4, 7, 10])
    found = kept_share(weights, positions, [row(4, [[0, 2, 3], [3]]), row(8, [[0, 6], [1, 4, 7]])])
    held: list[list[list[int]]] = [
        [[0, 2, 3, 4], [3, 4]],
        [[0, 2, 3, 4, 5, 6, 7], [3, 4, 5, 6, 7]],
        [[0, 6, 8, 9, 10], [1, 4, 7, 8, 9, 10]],
    ]
    assert found[0, :, 0].tolist() == [1, 1]  # nothing has left
    for index, heads in enumerate(held, start=1):
        for head, places in enumerate(heads):
            assert found[0, head, index] == pytest.approx(weights[0, head, index, places].sum(), rel=1e-6)


def test_queries_come_from_every_block() -> None:
    found = sample_queries(100, 250, 60, 4, 0)
    assert len(found) == 12 and (np.diff(found) > 0).all() and found[0] >= 100 and found[-1] < 250
    assert [int(((found >= a) & (found < b)).sum()) for a, b in ((100, 160), (160, 220), (220, 250))] == [4, 4, 4]
    assert sample_queries(0, 3, 60, 4, 0).tolist() == [0, 1, 2]


def test_cells() -> None:
    assert CELL.perplexity.value == pytest.approx(np.exp(2)) and CELL.mean_kl.value == 0.3
    assert (CELL.mean_mass.value, CELL.peak) == (0.75, 9)
    assert (CELL.kl_of(100).value, CELL.kl_of(200).value) == (0.4, pytest.approx(8 / 30))
    worse = dataclasses.replace(CELL, kl=[6.0, 14.0], mass=[0.5, 3.5])
    found = worse.kl_minus(CELL)
    assert (found.value, found.low, found.high) == (0.2, 0.2, 0.2)  # 0.2 a token in both texts
    assert worse.mass_minus(CELL).value == -0.25


def test_policies_are_compared_with_the_first_of_their_budget() -> None:
    policies = ["full", "score=rkv,budget=512", "score=rkv,budget=256", "score=h2o,budget=512", "score=h2o,budget=256"]
    assert [compared_with(each, policies) for each in policies] == [None, None, None, policies[1], policies[2]]


@pytest.mark.parametrize("wrong", ["4096", "a:b", "1:2:3"])
def test_wrong_windows(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--model", "m", "--data", "d", "--json", "cells.json", "--policies", "full", "--windows", wrong]
    with pytest.raises(SystemExit, match="2"):
        evicted_texts.parse_arguments(given)
    assert f"--windows: got {wrong}, expected tokens and a count" in capsys.readouterr().err


def test_the_topics_of_prompts_are_not_in_the_text(tmp_path: Path) -> None:
    text, prompts = tmp_path / "text.txt", tmp_path / "prompts.jsonl"
    assert topic_texts.main([str(text), str(prompts)]) == 0 and topic_texts.main([]) == 2
    found = [json.loads(line)["text"] for line in prompts.read_text().splitlines()]
    assert len(found) == topic_texts.PROMPTS and len(text.read_text()) > 100_000
    assert not any(each in text.read_text() for each in found)


@pytest.mark.native
@pytest.mark.slow
def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of the whole text changes nothing; a smaller one keeps the first and the newest tokens."""
    cells, results, kept = tmp_path / "cells.json", tmp_path / "results.json", tmp_path / "kept"
    tiny = str(ROOT / "examples/tiny-text")
    given = ["--model", tiny, "--data", f"{tiny}/held_out.txt", "--windows", "400:2", "--json", str(cells)]
    kept.mkdir()
    policies = ["full", "score=streaming,budget=400", "score=streaming,budget=64"]
    arguments = [*given, "--keep", str(kept), "--policies", *policies]
    assert evicted_texts.main([*arguments, "--results", str(results)]) == 0
    full, whole, small = (TextCell(**each) for each in json.loads(cells.read_text()).values())
    assert full.tokens == [199, 199] and full.nats == full.exact_nats == small.exact_nats
    # pieces of other sizes round otherwise
    assert sum(full.kl) == 0 and sum(whole.kl) < 1e-4 < 0.1 < sum(small.kl)
    assert np.min(full.heads) == np.min(whole.heads) == 1 and 0.1 < np.max(small.heads) < 1
    assert full.peaks["400"] == whole.peaks["400"] > small.peaks["400"]
    figures = results_file.read(results).figures
    assert len([each for each in figures if each.name == "kept attention"]) == 3
    again = capsys.readouterr().out

    def refuse(*_: Any) -> None:
        raise AssertionError("all is measured")

    monkeypatch.setattr(evicted_texts, "build", refuse)
    assert evicted_texts.main(arguments) == 0 and capsys.readouterr().out == again
    more = [*arguments, "score=streaming,budget=100"]  # goes on with the engines and reads that were kept
    assert evicted_texts.main(more) == 0 and "budget=100" in capsys.readouterr().out
