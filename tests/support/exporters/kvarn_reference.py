"""A model whose attention is KVarN's oracle, inside PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.exporters.capture.attention_mask import make_mask
from enginewright.exporters.features.depth_attention.rule import DepthMixer
from enginewright.exporters.methods.kvarn import Config
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.plugins.oracles.kvarn import record_bytes
from enginewright.plugins.oracles.kvarn_attention import KVarNCache, KVarNFormat, Weighting, attend_and_store


def plain_logits(model: PreTrainedModel, tokens: Sequence[int]) -> np.ndarray:
    """Logits [n, vocab] of the model as it is."""
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        logits: np.ndarray = model(input_ids=torch.tensor([list(tokens)])).logits[0].numpy()
    return logits


def oracle_logits(
    model: PreTrainedModel, tokens: Sequence[int], config: Config, mixer: DepthMixer | None = None
) -> np.ndarray:
    """Logits [n, vocab] of the model over the oracle's cache, a tile of tokens at a time.

    mixer: of a model with Depth-Attention; values are mixed before the cache gets them.
    """
    form = KVarNFormat(k_bits=config.k_bits, v_bits=config.v_bits, iterations=config.iterations, mode=config.mode)
    caches: dict[int, KVarNCache] = {}

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, **more: Any) -> Any:
        if mixer is not None:
            value = mixer(module.layer_idx, query, key, value, scaling)
        q, k, v = (x[0].transpose(0, 1).numpy() for x in (query, key, value))
        cache = caches.setdefault(module.layer_idx, empty_cache(len(tokens), k.shape[1], k.shape[2], form))
        cache.encoded[1] = (cache.held + len(q)) // TILE_TOKENS * TILE_TOKENS
        sinks = more.get("s_aux")
        weighting = Weighting(
            scale=scaling,
            window=attention_mask.window,
            softcap=more.get("softcap") or 0.0,
            sinks=None if sinks is None else sinks.numpy(),
        )
        output = attend_and_store(q, k, v, cache, np.array([0, len(q)], np.int32), weighting)
        cache.held[:] += len(q)
        cache.encoded[0] = cache.encoded[1]
        return torch.from_numpy(output.astype(np.float32))[None], None

    ALL_ATTENTION_FUNCTIONS.register("kvarn_oracle", attend)
    AttentionMaskInterface.register("kvarn_oracle", make_mask)
    model.config._attn_implementation = "kvarn_oracle"
    pieces = []
    with torch.no_grad():
        for begin in range(0, len(tokens), TILE_TOKENS):
            ids = torch.tensor([tokens[begin : begin + TILE_TOKENS]])
            positions = torch.arange(begin, begin + ids.shape[1])[None]
            pieces.append(model(input_ids=ids, position_ids=positions, use_cache=False).logits[0].numpy())
    return np.concatenate(pieces)


def empty_cache(tokens: int, heads: int, dim: int, form: KVarNFormat) -> KVarNCache:
    """A cache of one row for `tokens` tokens."""
    tiles = -(-tokens // TILE_TOKENS)
    return KVarNCache(
        records=np.zeros((heads * tiles, record_bytes(dim, TILE_TOKENS, form.k_bits, form.v_bits)), np.int8),
        exact=np.zeros((1, heads, 2, 2 * TILE_TOKENS * dim), np.float16),
        table=np.arange(heads * tiles, dtype=np.int32).reshape(1, heads, tiles),
        slots=np.zeros(1, np.int32),
        held=np.zeros((1, heads), np.int32),
        encoded=np.zeros((2, 1, heads), np.int32),
        format=form,
    )
