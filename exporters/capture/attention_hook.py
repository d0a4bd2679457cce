"""The attention function that transformers calls in place of its own, which puts our ops into the graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from enginewright.exporters.capture.cache_formats import AttentionCall, AttentionLayer, CacheFormat, Tensors
from enginewright.exporters.methods.depth_attention.rule import DepthMixer, Pair
from enginewright.runtime.artifact.manifest import CacheLayer
from enginewright.runtime.errors import UnsupportedError

ATTENTION = "enginewright"


@dataclass
class Trace:
    """What the attention hook reads and notes while one forward pass runs."""

    config: PreTrainedConfig
    cache: CacheFormat
    mixer: DepthMixer | None = None
    tables: Tensors | None = None
    pools: Tensors = field(default_factory=dict)
    written: Tensors = field(default_factory=dict)
    layers: dict[int, CacheLayer] = field(default_factory=dict)


_current: list[Trace] = []


@contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    _current.append(trace)
    try:
        yield
    finally:
        _current.pop()


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls: query [1, Hq, T, D], key and value [1, Hkv, T, D].

    The signature is transformers'; the extra keywords carry dropout and masks that a decoder's inference has no use for.
    """
    trace = _current[-1]
    layer: int = module.layer_idx  # type: ignore[assignment]
    window = _window(trace.config, layer, sliding_window)
    scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # meets the model's own transpose
    if trace.mixer is not None:
        v = trace.mixer(layer, q, k, v, scale)
    if trace.tables is None:
        _note_layer(trace, module, AttentionLayer(
            family=trace.config.model_type,
            index=layer,
            kv_heads=k.shape[1],
            key_dim=k.shape[2],
            value_dim=v.shape[2],
            window=window,
        ))  # fmt: skip
        return q.new_empty(1, q.shape[0], q.shape[1], v.shape[2]), None
    call = AttentionCall(
        query=q,
        key=k,
        value=v,
        sinks=s_aux,
        layer=layer,
        scale=scale,
        window=window,
        softcap=float(softcap or 0),
    )
    output, written = trace.cache.attend(call, trace.tables, trace.pools)
    trace.written |= written
    return output[None], None


def mix_over_depth(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sources: list[Pair], scale: float
) -> torch.Tensor:
    """Values [T, Hkv, Dv] mixed with those of earlier layers, by a node of the graph."""
    flat = [tensor for pair in sources for tensor in pair]
    mixed: torch.Tensor = torch.ops.enginewright.depth_mix(query, key, value, flat, scale)
    return mixed


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask subgraph: the op knows the sequences."""


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, _no_mask)


def _window(config: PreTrainedConfig, layer: int, passed: int | None) -> int:
    """The layer's window in tokens; a layer that the config calls sliding has one even if it does not pass it on."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] == "sliding_attention" and not passed:
        return int(config.sliding_window)
    return int(passed or 0)


def _note_layer(trace: Trace, module: torch.nn.Module, found: AttentionLayer) -> None:
    if found.index in trace.layers:
        raise UnsupportedError(f"{found.family}: layer {found.index} attends twice in one pass")
    if getattr(module, "is_causal", True) is False:
        raise UnsupportedError(f"{found.family}: layer {found.index} attends to later tokens; expected a decoder")
    trace.layers[found.index] = trace.cache.describe(found)
