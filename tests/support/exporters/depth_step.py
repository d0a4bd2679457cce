"""Runs a decoder graph by hand, to see what its cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from enginewright.plugins.libraries.locate import ort_library
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.artifact.manifest import Manifest

Pool = tuple[np.ndarray, np.ndarray]


def run_decoder(
    root: Path, manifest: Manifest, tokens: np.ndarray, chunks: Sequence[int]
) -> tuple[np.ndarray, list[Pool]]:
    """Logits [T, V] of one sequence fed chunk by chunk, and each layer's keys and values [T, Hkv, D] in the cache.

    The engine's cache is of float32, of tiles of TILE_TOKENS tokens as `plugins.oracles.paged_attention` describes.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(ort_library()))
    graph = manifest.graphs["decoder"]
    weights, path = root / graph.files[0].path, root / graph.engines[0].files[0].path
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.parent))
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    layers = manifest.cache.layers
    heads, width = layers[0].kv_heads, -(-len(tokens) // TILE_TOKENS)
    table = np.arange(heads * width, dtype=np.int32).reshape(1, 1, heads, width)
    pools = {f"kv.{i}.tiles": np.zeros((heads * width, layer.tile_bytes), np.int8) for i, layer in enumerate(layers)}
    logits, held = [], 0
    for count in chunks:
        feeds = {
            "input_ids": tokens[held : held + count].astype(np.int64),
            "position_ids": np.arange(held, held + count),
            "query_starts": np.array([0, count], np.int32),
            "sample_rows": np.arange(count),
            "kv_lens": np.full((len(layers), 1, heads), held, np.int32),
            "tile_table": table.repeat(len(layers), axis=0),
        }
        names = ["logits", *(f"{name}.out" for name in pools)]
        found, *written = session.run(names, feeds | pools)
        pools = dict(zip(pools, written, strict=True))
        logits.append(found)
        held += count
    return np.concatenate(logits), [
        read_pool(pool, heads, layer.key_dim, len(tokens)) for pool, layer in zip(pools.values(), layers, strict=True)
    ]


def read_pool(pool: np.ndarray, heads: int, dim: int, tokens: int) -> Pool:
    """Keys and values [T, Hkv, D] of a sequence whose tiles lie one after another in the pool, head by head."""
    tiles = pool.view(np.float32).reshape(heads, -1, 2, TILE_TOKENS * dim)
    keys = tiles[:, :, 0].reshape(heads, -1, dim, 16).transpose(0, 1, 3, 2).reshape(heads, -1, dim)
    values = tiles[:, :, 1].reshape(heads, -1, dim)
    return keys.transpose(1, 0, 2)[:tokens], values.transpose(1, 0, 2)[:tokens]
