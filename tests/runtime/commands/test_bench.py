"""Tests of what `bench` says of evictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enginewright.runtime import Sampling, load
from enginewright.runtime.artifact import directory
from enginewright.runtime.cache.eviction_watch import EvictionWatch
from enginewright.runtime.cache.policy_tables import PolicyTables
from enginewright.runtime.cli import main
from tests.support.runtime.evicting_model import SIZE, make_llm
from tests.support.runtime.sample_policies import extended, first_and_newest
from tests.support.runtime.simulated_requests import Arrival, serve, watch

TILE = 128


@pytest.fixture(autouse=True, scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with extended(tmp_path_factory.mktemp("extension")):
        yield


@pytest.mark.native
def test_bench_says_what_evictions_cost_and_save(
    make_engine: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    policy = first_and_newest(TILE, 1, 1)[0]
    root = make_engine(windows=(0, 0, 100), kv_heads=(1, 4, 2), policy=policy)
    command = ["bench", str(root), "--prompt-tokens", "500", "--new-tokens", "160", "--batch", "1,2", "--repeat", "1"]
    assert main([*command, "--json", "--threads", "1"]) == 0
    one, two = (each["evicting"] for each in json.loads(capsys.readouterr().out))
    layers = directory.load(root).cache.layers
    block = sum(layer.kv_heads * layer.tile_bytes for layer in layers if not layer.window)
    for measured, rows in ((one, 1), (two, 2)):
        assert measured["policy"] == policy
        assert 0 < measured["time_share"] < 1
        assert measured["tokens"] == rows * (1 + 4) * 3 * TILE, (
            "659 tokens; a tile of each head leaves at 384, 512 and 640"
        )
        windowed = measured["full_bytes"] - rows * 6 * block  # 659 tokens take six tiles
        assert 0 < windowed <= rows * 6 * layers[2].kv_heads * layers[2].tile_bytes
        assert rows * 3 * block < measured["peak_bytes"] < measured["full_bytes"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "policy first_and_newest, first 1, newest 1"
    assert lines[2].endswith("evicting %  evicted  held MiB  full MiB")
    assert lines[3].split()[-3] == str(one["tokens"])


def test_a_watch_counts_tokens_and_tiles_of_every_moment() -> None:
    options = {"kind": "evict", "score": "random", "budget": 12, "interval": 5, "window": 3, "kernel": 1}
    llm = make_llm(options, (0, 0, 0, 0), rows=2)
    tables = llm.loop.scheduler.tables
    assert isinstance(tables, PolicyTables)
    tables.watch = EvictionWatch(llm.manifest.cache)
    most = [0]
    sizes = [layer.tile_bytes for layer in llm.manifest.cache.layers]

    def held(*_: object) -> None:
        each = [int(pool.count.sum()) * size for pool, size in zip(tables._pools, sizes, strict=True)]
        most[0] = max(most[0], sum(each))

    watch(llm, held)
    prompts = list(range(1, 10)), list(range(1, 5))
    serve(llm, [Arrival(prompt=prompt, new=30) for prompt in prompts])
    gone = (34 - 12) + (29 - 12)  # of 38 and 33 tokens, the last evictions were after 34 and 29
    assert tables.watch.tokens == 7 * gone, "seven heads in all"
    assert tables.watch.peak_bytes >= most[0] > 0 and tables.watch.seconds > 0
    blocks = sum(-(-(len(prompt) + 29) // SIZE) for prompt in prompts)
    assert tables.watch.full_bytes <= blocks * sum(
        layer.kv_heads * layer.tile_bytes for layer in llm.manifest.cache.layers
    )


def test_nothing_is_measured_without_a_watch(make_engine: Callable[..., Path]) -> None:
    with load(make_engine(), 1) as llm:
        assert not isinstance(llm.loop.scheduler.tables, PolicyTables)
        llm.generate([[5, 6]], Sampling(max_tokens=2))
