"""Tests of the layers that attention attends to later tokens in: refused, unless the cache's format can do it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import Qwen2Config

from enginewright.exporters.capture.attention_hook import Trace, note_layer
from enginewright.exporters.capture.cache_formats import AttentionLayer, PagedCacheFormat
from enginewright.runtime.errors import UnsupportedError


def test_a_layer_that_attends_to_later_tokens_needs_a_format_that_does() -> None:
    module, cache = torch.nn.Module(), PagedCacheFormat(16)
    module.is_causal = False
    layer = AttentionLayer(family="qwen2", index=0, kv_heads=2, key_dim=16, value_dim=16, window=0)
    with pytest.raises(UnsupportedError, match="qwen2: layer 0 attends to later tokens"):
        note_layer(Trace(Qwen2Config(), cache), module, layer)
    trace = Trace(Qwen2Config(), dataclasses.replace(cache, sees_later=True))
    note_layer(trace, module, layer)
    assert list(trace.layers) == [0]
