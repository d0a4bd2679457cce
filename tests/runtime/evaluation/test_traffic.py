"""Bytes per token, counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from enginewright.runtime import artifact
from enginewright.runtime.evaluation.traffic import traffic


def test_a_token_reads_all_weights_and_what_it_sees(tiny_engine: Path) -> None:
    """Three layers, the second with a window of 64; a token of a layer is 2 heads x 2 x 16 values of 2 bytes."""
    manifest = artifact.load(tiny_engine)
    found = traffic(manifest, np.array([10, 100]))
    assert found.weights == (tiny_engine / "graphs/decoder.onnx").stat().st_size, "the weights lie in the graph here"
    assert found.context == 55
    assert found.cache == 128 * (55 + (10 + 64) / 2 + 55)
    assert found.total == found.weights + found.cache


def test_weights_are_the_data_files(tiny_engine: Path) -> None:
    manifest = artifact.load(tiny_engine)
    graph = manifest.graphs["decoder"]
    data = artifact.File(path="decoder.onnx.data", size=12345, sha256="")
    graphs = {"decoder": artifact.Graph(files=(*graph.files, data), inputs=(), outputs=())}
    other = artifact.Manifest(**{**vars(manifest), "graphs": graphs})
    assert traffic(other, np.array([1])).weights == 12345
