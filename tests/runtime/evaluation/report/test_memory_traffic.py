"""Tests of the bytes read per token, against numbers counted by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Cache, CacheLayer, File, Graph, Manifest
from enginewright.runtime.evaluation.report.memory_traffic import estimate_traffic


def test_a_token_reads_all_weights_and_what_it_sees(tiny_engine: Path) -> None:
    """Three layers, the second with a window of 64; a token of a layer is 2 heads x 2 x 16 values of 2 bytes."""
    manifest = directory.load(tiny_engine)
    found = estimate_traffic(manifest, np.array([10, 100]))
    assert found.weights == (tiny_engine / "graphs/decoder.onnx").stat().st_size, "the weights lie in the graph here"
    assert found.context == 55
    assert found.cache == 128 * (55 + (10 + 64) / 2 + 55)
    assert found.total == found.weights + found.cache


def test_weights_are_the_data_files(tiny_engine: Path) -> None:
    manifest = directory.load(tiny_engine)
    graph = manifest.graphs["decoder"]
    data = File(path="decoder.onnx.data", size=12345, sha256="")
    graphs = {"decoder": Graph(files=(*graph.files, data), inputs=(), outputs=())}
    other = Manifest(**{**vars(manifest), "graphs": graphs})
    assert estimate_traffic(other, np.array([1])).weights == 12345


def test_encoded_tiles_cost_less_than_the_first_and_the_newest(tiny_engine: Path) -> None:
    """Per token 2 heads x 10 bytes encoded, 2 x 40 exact; a step reads its newest tile as it was, even if it fills it."""
    plain = directory.load(tiny_engine)
    for window, context, exact, encoded in (
        (0, 1, 1, 0),
        (0, 128, 128, 0),
        (0, 129, 129, 0),
        (0, 256, 256, 0),
        (0, 257, 129, 128),
        (0, 384, 256, 128),
        (0, 1000, 128 + 104, 768),
        (128, 1000, 104, 24),
        (300, 301, 128 - 1 + 45, 128),
        (300, 384, 128 + 44, 128),
        (300, 400, 16 + 28, 256),
        (300, 500, 116, 184),
    ):
        layer = CacheLayer(kv_heads=2, key_dim=16, value_dim=16, tile_bytes=1280, exact_bytes=5120, window=window)
        cache = Cache(kind="kvarn", tile_tokens=128, kv_bits=16, layers=(layer,))
        found = estimate_traffic(dataclasses.replace(plain, cache=cache), np.array([context]))
        assert found.cache == 2 * (10 * encoded + 40 * exact), (window, context)
    both = estimate_traffic(dataclasses.replace(plain, cache=cache), np.array([384, 500]))
    assert both.cache == (2 * (10 * 128 + 40 * 172) + 2 * (10 * 184 + 40 * 116)) / 2
