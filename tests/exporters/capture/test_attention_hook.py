"""Tests of layers that are refused: those that attend to later tokens, and those whose heads do not fit together."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import Qwen2Config

from enginewright.exporters.capture.attention_hook import Trace, attend, note_layer, tracing
from enginewright.exporters.capture.attention_mask import AttentionMask
from enginewright.exporters.capture.cache_formats import AttentionLayer, PagedCacheFormat
from enginewright.runtime.errors import UnsupportedError


def test_a_layer_that_attends_to_later_tokens_needs_a_format_that_does() -> None:
    module, cache = torch.nn.Module(), PagedCacheFormat(16)
    module.is_causal = False
    layer = AttentionLayer(family="qwen2", index=0, kv_heads=2, key_dim=16, value_dim=16, query_heads=4, window=0)
    with pytest.raises(UnsupportedError, match="qwen2: layer 0 attends to later tokens"):
        note_layer(Trace(Qwen2Config(), cache), module, layer)
    trace = Trace(Qwen2Config(), dataclasses.replace(cache, sees_later=True))
    note_layer(trace, module, layer)
    assert list(trace.layers) == [0]


def test_query_heads_that_kv_heads_do_not_divide() -> None:
    module = torch.nn.Module()
    module.layer_idx = 0
    query, key = torch.zeros(1, 6, 3, 16), torch.zeros(1, 4, 3, 16)
    refusal = pytest.raises(
        UnsupportedError, match="qwen2: layer 0 has 6 query heads for 4 KV heads; expected a multiple"
    )
    with refusal, tracing(Trace(Qwen2Config(), PagedCacheFormat(16))):
        attend(module, query, key, key, AttentionMask(family="qwen2"))
