"""The tiny engine's logits by numpy, without a cache: every token, layer and head is told what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from enginewright.runtime.artifact import directory
from tests.support.runtime.tiny_engine import HEAD_DIM, HEADS

Seen = Callable[[int, int, int], np.ndarray]
"""(layer, KV head, position) -> the positions that a token sees there, itself included."""


def everything(layer: int, head: int, position: int) -> np.ndarray:
    """What a token sees in a layer without a window or a policy."""
    return np.arange(position + 1)


def logits(root: Path, tokens: Sequence[int], seen: Seen = everything) -> np.ndarray:
    """Logits [n, V] after each token; keys and values are rounded to halves, as the cache stores them."""
    manifest = directory.load(root, verify=False)
    graph = onnx.load(root / manifest.graphs["decoder"].files[0].path).graph
    weights = {each.name: numpy_helper.to_array(each).astype(np.float64) for each in graph.initializer}
    x = weights["embed"][list(tokens)] + weights["positions"][: len(tokens)]
    for index, layer in enumerate(manifest.cache.layers):
        q = (x @ weights[f"q{index}.w"]).reshape(-1, HEADS, HEAD_DIM)
        k, v = ((x @ weights[f"{part}{index}.w"]).reshape(-1, layer.kv_heads, HEAD_DIM) for part in "kv")
        k, v = (part.astype(np.float32).astype(np.float16).astype(np.float64) for part in (k, v))
        mixed = np.zeros_like(q)
        group = HEADS // layer.kv_heads
        for head in range(layer.kv_heads):
            for position in range(len(tokens)):
                places = seen(index, head, position)
                if layer.window:
                    places = places[places > position - layer.window]
                own = slice(head * group, (head + 1) * group)
                weight = q[position, own] @ k[places, head].T * 0.25
                weight = np.exp(weight - weight.max(axis=1, keepdims=True))
                mixed[position, own] = weight @ v[places, head] / weight.sum(axis=1, keepdims=True)
        x = x + mixed.reshape(len(tokens), -1) @ weights[f"o{index}.w"]
    return np.asarray(x @ weights["head"])
