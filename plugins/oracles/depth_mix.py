"""The numpy definition of DepthMix, which `plugins/ops/depth_mix.py` declares.

Source: Depth-Attention, arXiv 2606.05014, section 3.2 (equations 1 to 4) and 3.3 (grouped queries).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def depth_mix(
    q: Floats, k: Floats, v: Floats, source_k: Sequence[Floats], source_v: Sequence[Floats], scale: float | None = None
) -> tuple[Floats, Floats]:
    """The mixed value [T, Hkv, dv] and the weights [T, Hkv, sources + 1], the layer's own weight last.

    weights = softmax over the sources and the layer itself of (mean of the group's q) . k_j * scale
    mixed   = sum_j weights_j v_j

    q [T, Hq, d], k [T, Hkv, d], v [T, Hkv, dv]: the layer's own query, key and value.
    source_k, source_v: the keys and mixed values of earlier layers for the same tokens, in layer order.
    scale: 1 / sqrt(d) if not given.

    Without sources the value stays as it is. Both results are in float32 or better.
    """
    tokens, kv_heads, dim = k.shape
    group_mean = q.astype(np.float64).reshape(tokens, kv_heads, q.shape[1] // kv_heads, dim).mean(axis=2)
    keys = np.stack([*source_k, k], axis=2).astype(np.float64)  # [T, Hkv, sources + 1, d]
    values = np.stack([*source_v, v], axis=2).astype(np.float64)
    logits = np.einsum("thd,thsd->ths", group_mean, keys) * (dim**-0.5 if scale is None else scale)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    mixed = np.einsum("ths,thsd->thd", weights, values)
    kind = np.result_type(v.dtype, np.float32)
    return mixed.astype(kind), weights.astype(kind)


def mix_values(query: Floats, key: Floats, value: Floats, sources: Sequence[Floats], *, scale: float) -> Floats:
    """DepthMix with the op's arguments: the mixed value alone.

    sources: key, value, key, value, ... in layer order.
    """
    mixed, _ = depth_mix(query, key, value, sources[0::2], sources[1::2], scale)
    return mixed.astype(value.dtype)
