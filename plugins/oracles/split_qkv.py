"""The numpy definition of SplitQkv, which `plugins/ops/split_qkv.py` declares."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def split_qkv(
    packed: Floats,
    cos: Floats | None = None,
    sin: Floats | None = None,
    query_norm: Floats | None = None,
    key_norm: Floats | None = None,
    *,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    value_dim: int,
    epsilon: float = 1e-6,
) -> tuple[Floats, Floats, Floats]:
    """Query [T, Hq, D], key [T, Hkv, D] and value [T, Hkv, Dv].

    `plugins/ops/split_qkv.py` declares the arguments' shapes and meaning.
    """
    tokens = packed.shape[1]
    shapes = [(tokens, query_heads, head_dim), (tokens, kv_heads, head_dim), (tokens, kv_heads, value_dim)]
    parts = np.split(packed[0], np.cumsum([query_heads * head_dim, kv_heads * head_dim]), axis=1)
    query, key, value = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    def prepare(x: Floats, norm: Floats | None) -> Floats:
        x = x.astype(np.float64)
        if norm is not None:
            x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * norm
        if cos is not None and sin is not None:
            half = cos.shape[2]
            c, s = cos[0][:, None], sin[0][:, None]
            left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
            x = np.concatenate([left * c - right * s, right * c + left * s, rest], axis=-1)
        return x.astype(packed.dtype)

    return prepare(query, query_norm), prepare(key, key_norm), value
