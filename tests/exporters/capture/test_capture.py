"""Tests of the sizes of layers that capture learns before it makes a graph."""

from __future__ import annotations

import copy

import pytest

from enginewright.exporters.capture.attention_hook import ATTENTION
from enginewright.exporters.capture.cache_formats import PagedCacheFormat
from enginewright.exporters.capture.capture import read_layers
from enginewright.exporters.source.skeleton import build_skeleton
from tests.support.exporters.families import WINDOW, make_model


@pytest.mark.parametrize(
    ("family", "windows"), [("llama", [0, 0]), ("gemma3_text", [WINDOW, 0]), ("mistral", [WINDOW] * 2)]
)
def test_layers_are_read_without_weights(family: str, windows: list[int]) -> None:
    config = copy.deepcopy(make_model(family).config)
    layers = read_layers(build_skeleton(config, attention=ATTENTION, max_context=64), PagedCacheFormat(16))
    assert [layer.window for layer in layers] == windows
    assert all(layer.kv_heads == config.num_key_value_heads for layer in layers)
